# SPDX-License-Identifier: AGPL-3.0-or-later
"""The commands of `fl-app` for versions of the shipped model, Ultralytics' detectors."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Group, RenderableType

from fl_app.cli.output import escape, fail, table
from fl_app.cli.versions import Answer, of_registry
from fl_app.yolo_versions import evaluate_version, export_version
from fl_registry import ModelManager
from fl_registry.errors import require


@of_registry
def export(
    manager: ModelManager,
    version: str,
    file: Path,
    arguments: Annotated[list[str] | None, typer.Argument()] = None,
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

    def text() -> RenderableType:
        size, name = done["bytes"] / 1e6, escape(done["file"])
        return f"Version {done['version']} is in {name} ({size:.1f} MB)."

    return done, text


@of_registry
def evaluate(
    manager: ModelManager,
    version: str,
    *,
    data: Annotated[str, typer.Option(help="A data.yaml in Ultralytics' layout.")],
    split: Annotated[str, typer.Option(help="val, test or train.")] = "val",
    imgsz: Annotated[int, typer.Option(help="Side in pixels; 0: as in training.", min=0)] = 0,
    batch: Annotated[int, typer.Option(help="Pictures that are scored at once.", min=1)] = 16,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda:0, …")] = "auto",
) -> Answer:
    """Score a version on another data set, as sessions score it on the server's.

    VERSION is a number or a stage. The classes of the data set are matched by their names.
    """
    if split not in (splits := ("val", "test", "train")):
        fail(f"--split is {split!r}, expected {', '.join(splits)}.")
    try:
        found = evaluate_version(
            manager, version, data, split=split, imgsz=imgsz, batch=batch, device=device
        )
    except (ValueError, RuntimeError) as error:  # of the data set, or of the device
        fail(f"Nothing was scored: {error}.")

    def text() -> RenderableType:
        numbers = ("precision", "recall", "mAP50", "mAP50-95")
        shown = table("class", "images", "boxes", *numbers)
        boxes = sum(row["instances"] for row in found.classes)
        every = {"class": "all", "images": found.pictures, "instances": boxes, **found.scores}
        for row in [every, *found.classes]:
            counts = (str(row["images"]), str(row["instances"]))
            shown.add_row(escape(str(row["class"])), *counts, *(f"{row[n]:.4f}" for n in numbers))
        sentence = (
            f"Version {found.version} on {found.split} of {escape(found.data)}, "
            f"{found.image_size} pixels:"
        )
        return Group(sentence, shown, *(f"Note: {escape(note)}." for note in found.notes))

    return found.as_row(), text


def _ultralytics(pairs: list[str]) -> dict[str, Any]:
    """Return arguments such as ``imgsz=640`` by name."""
    require("The command", "torch", "ultralytics")
    from fl_models.export import ExportError, parse_arguments

    try:
        return parse_arguments(pairs)
    except ExportError as error:
        fail(f"{error}.")
