# SPDX-License-Identifier: AGPL-3.0-or-later
"""What is done with one registered version of the shipped model, outside of any run.

torch and Ultralytics are loaded when they are used, so that the API and the command line start
without them.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fl_registry import ModelStore
from fl_registry.errors import ArtifactError, require
from fl_registry.files.weights import load_weights, read_description


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


@dataclass(frozen=True)
class Evaluation:
    """How good a version is on a data set.

    Attributes
    ----------
    version : str
        Its number.
    data, split : str
        The data.yaml, and which of its splits.
    pictures : int
        How many were scored.
    image_size : int
        Side in pixels to which they were scaled and padded.
    scores : dict[str, float]
        mAP50, mAP50-95, precision and recall, from 0 to 1.
    classes : list[dict[str, Any]]
        A row for each class with true boxes, as `Holdout.table` has it.
    notes : tuple[str, ...]
        What is left out, and why.
    """

    version: str
    data: str
    split: str
    pictures: int
    image_size: int
    scores: dict[str, float]
    classes: list[dict[str, Any]]
    notes: tuple[str, ...] = ()

    def as_row(self) -> dict[str, Any]:
        """Return it as JSON allows."""
        return asdict(self)


def evaluate_version(
    store: ModelStore,
    version_or_stage: str,
    data_yaml: str | Path,
    *,
    split: str = "val",
    imgsz: int = 0,
    batch: int = 16,
    device: str = "auto",
) -> Evaluation:
    """Score a version on a data set, as a session scores its rounds on the server's.

    Parameters
    ----------
    store : ModelStore
        The registry.
    version_or_stage : str
        A version's number, or a stage, whose newest version it is.
    data_yaml : str | Path
        The data set in Ultralytics' layout. Its classes are those of the version by their names,
        in any order; it may lack some of them.
    split : str
        Which of its splits: ``val``, ``test`` or ``train``.
    imgsz : int
        Side in pixels; 0: that of training.
    batch : int
        Pictures that go through the network at once.
    device : str
        As the setting ``server-device``.

    Raises
    ------
    RegistryError
        There is no such version, or it is no detector.
    ValueError, DeviceError
        The data set, the side or the device cannot be used.
    """
    version = store.named_version(version_or_stage).version
    weights = store.weights_path(version)
    require("An evaluation", "torch", "ultralytics")
    from fl_app.client.data_yaml import DataError, load_split
    from fl_app.devices import chosen_device, device_memory
    from fl_models.classes import name_differences
    from fl_models.holdout import Holdout
    from fl_models.yolo import described_model, from_arrays

    description = read_description(weights)
    try:
        model = described_model(description)
    except ValueError as error:
        raise ArtifactError(f"Nothing was scored: {error}.") from error
    names = list(model.names.values())
    data = load_split(data_yaml, split)
    if set(data.names) - set(names):
        raise DataError(
            f"the classes of {data_yaml} are not those of version {version}: "
            f"{name_differences(data.names, names)}; correct its names"
        )
    data = data.for_model(names, ignore_others=True)
    place = chosen_device(device, setting="--device")
    side, stride = imgsz or model.image_size or 640, int(model.stride.max())
    if side % stride:
        raise ValueError(f"the side is {side} pixels, expected a multiple of {stride}: set imgsz")
    holdout = Holdout(data, image_size=side, batch_size=batch, device=str(place))
    from_arrays(model, load_weights(weights))
    with device_memory(place, "lower --batch or --imgsz, or give --device cpu"):
        scores = holdout(model)
    return Evaluation(
        version=version,
        data=str(data_yaml),
        split=split,
        pictures=len(holdout),
        image_size=side,
        scores=scores,
        classes=holdout.table(),
        notes=tuple(filter(None, (*data.notes, holdout.note))),
    )
