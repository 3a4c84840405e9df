# SPDX-License-Identifier: AGPL-3.0-or-later
"""The commands of `fl-app` for versions of the shipped model, Ultralytics' detectors."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from fl_app.cli.options import VersionOrStage, choice
from fl_app.cli.output import Column, Part, Table, fail
from fl_app.cli.versions import Answer, of_registry
from fl_app.yolo_versions import evaluate_version, export_version
from fl_registry import ModelManager
from fl_registry.errors import require
from fl_registry.numbers import number_text


@of_registry
def export(
    manager: ModelManager,
    version: VersionOrStage,
    file: Annotated[Path, typer.Argument(help="File to write, such as best.pt or best.onnx.")],
    arguments: Annotated[
        list[str] | None, typer.Argument(help="Those of Ultralytics' export, such as imgsz=640.")
    ] = None,
    *,
    format: Annotated[
        str, typer.Option(help="onnx, torchscript, …; default: by the file's ending.")
    ] = "",
    half: Annotated[bool, typer.Option("--half", help="Half precision.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it exists.")] = False,
) -> Answer:
    """Write a version to a file for Ultralytics, which needs no fl-app to use it.

    VERSION is a number or a stage, FILE such as best.pt or best.onnx, and ARGUMENTS are those of
    Ultralytics' own export, such as imgsz=640 dynamic=True.
    """
    chosen = {"format": format, "half": half, "force": force}
    done = export_version(manager, version, file, **chosen, **_ultralytics(arguments or []))

    def text() -> list[Part]:
        return [f"Version {done['version']} is in {done['file']} ({done['bytes'] / 1e6:.1f} MB)."]

    return done, text


@of_registry
def evaluate(
    manager: ModelManager,
    version: VersionOrStage,
    *,
    data: Annotated[str, typer.Option(help="A data.yaml in Ultralytics' layout.")],
    split: Annotated[
        str, typer.Option(help="Its pictures.", click_type=choice("val", "test", "train"))
    ] = "val",
    imgsz: Annotated[int, typer.Option(help="Side in pixels; 0: as in training.", min=0)] = 0,
    batch: Annotated[int, typer.Option(help="Pictures that are scored at once.", min=1)] = 16,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda:0, …")] = "auto",
) -> Answer:
    """Score a version on another data set, as sessions score it on the server's.

    VERSION is a number or a stage. The classes of the data set are matched by their names.
    """
    try:
        found = evaluate_version(
            manager, version, data, split=split, imgsz=imgsz, batch=batch, device=device
        )
    except (ValueError, RuntimeError) as error:  # of the data set, or of the device
        fail(f"Nothing was scored: {error}.")

    def text() -> list[Part]:
        numbers = {"precision": 1, "recall": 2, "mAP50": 0, "mAP50-95": 3}
        columns = (Column("class", text=True), Column("images", drop=4), Column("boxes", drop=5))
        rows = []
        boxes = sum(row["instances"] for row in found.classes)
        every = {"class": "all", "images": found.pictures, "instances": boxes, **found.scores}
        for row in [every, *found.classes]:
            counts = (str(row["images"]), str(row["instances"]))
            scores = (number_text(row[name]) for name in numbers)
            rows.append((str(row["class"]), *counts, *scores))
        sentence = (
            f"Version {found.version} on {found.split} of {found.data}, {found.image_size} pixels:"
        )
        shown = (Column(name, drop=drop) for name, drop in numbers.items())
        notes = (f"Note: {note}." for note in found.notes)
        return [sentence, Table((*columns, *shown), rows), *notes]

    return found.as_row(), text


def _ultralytics(pairs: list[str]) -> dict[str, Any]:
    """Return arguments such as ``imgsz=640`` by name."""
    require("The command", "torch", "ultralytics")
    from fl_models.export import ExportError, parse_arguments

    try:
        return parse_arguments(pairs)
    except ExportError as error:
        fail(f"{error}.")
