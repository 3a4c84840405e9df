# SPDX-License-Identifier: AGPL-3.0-or-later
"""What is done with one registered version of the shipped model, outside of any run.

torch and Ultralytics are loaded when they are used, so that the API and the command line start
without them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fl_registry import ModelStore
from fl_registry.errors import ArtifactError, require
from fl_registry.files.weights import read_description


def export_version(
    store: ModelStore, version_or_stage: str, path: Path, **options: Any
) -> dict[str, Any]:
    """Write a version to a file that Ultralytics reads.

    Parameters
    ----------
    store : ModelStore
        The registry.
    version_or_stage : str
        A version's number, or a stage, whose newest version it is.
    path : Path
        The file to write.
    **options : Any
        Those of `fl_models.export.export`.

    Returns
    -------
    dict[str, Any]
        ``version``, ``file`` and ``bytes``, for programs.

    Raises
    ------
    RegistryError
        There is no such version, its weights have changed, or it cannot be exported so.
    """
    version = store.named_version(version_or_stage).version
    file = path.expanduser().absolute()
    write_export(store.weights_path(version), file, **options)
    files = [file, *file.rglob("*")]
    size = sum(each.stat().st_size for each in files if each.is_file())
    return {"version": version, "file": str(file), "bytes": size}


def write_export(weights: Path, path: Path, **options: Any) -> None:
    """Write the weights of a version to a file that Ultralytics reads.

    Raises
    ------
    MissingExtra
        The extra ``yolo`` is not installed.
    ArtifactError
        The weights are not of an Ultralytics detector, or cannot be exported so.
    """
    require("An export", "torch", "ultralytics")
    from fl_models.export import ExportError, export

    try:
        export(weights, read_description(weights), path, **options)
    except ExportError as error:
        raise ArtifactError(f"Nothing was exported: {error}.") from error
    except OSError as error:
        raise ArtifactError(f"{path} cannot be written ({error.strerror or error}).") from error
