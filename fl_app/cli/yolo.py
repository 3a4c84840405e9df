# SPDX-License-Identifier: AGPL-3.0-or-later
"""The commands of `fl-app` for versions of the shipped model, Ultralytics' detectors."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import RenderableType

from fl_app.cli.output import escape, fail
from fl_app.cli.versions import Answer, of_registry
from fl_app.yolo_versions import export_version
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


def _ultralytics(pairs: list[str]) -> dict[str, Any]:
    """Return arguments such as ``imgsz=640`` by name."""
    require("The command", "torch", "ultralytics")
    from fl_models.export import ExportError, parse_arguments

    try:
        return parse_arguments(pairs)
    except ExportError as error:
        fail(f"{error}.")
