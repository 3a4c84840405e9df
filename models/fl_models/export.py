# SPDX-License-Identifier: AGPL-3.0-or-later
"""A version's weights as an Ultralytics checkpoint, and in all formats that it exports to.

What is written is Ultralytics' own: `YOLO(FILE)` predicts, validates, trains and exports with it
where this project is not installed.
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from ultralytics import YOLO, __version__
from ultralytics.cfg import get_cfg, parse_key_value_pair
from ultralytics.engine.exporter import export_formats
from ultralytics.utils import DEFAULT_CFG_DICT, LOGGER, remove_colorstr

from fl_models.serving import described_network

logger = logging.getLogger(__name__)

CHECKPOINT = "pt"
"""The format of Ultralytics' own checkpoints."""
_DOWNLOADING = {"saved_model", "pb", "edgetpu"}  # fetch a calibration file or a compiler
_NEEDED = {"onnx": ("onnx", "onnxslim")}  # without onnxslim Ultralytics goes on, with a warning
_ALWAYS_TAKEN = ("imgsz", "device")
_TAKEN_WITH_NMS = ("conf", "iou", "max_det", "agnostic_nms")


class ExportError(ValueError):
    """A version cannot be exported; the text says why and what to do."""


def suffixes() -> dict[str, str]:
    """Return how the name of a file, or folder, of each format ends, by format."""
    formats = export_formats()
    known = dict(zip(formats["Argument"], formats["Suffix"], strict=True))
    return {CHECKPOINT: known.pop("-"), **known}


def arguments_of(format: str) -> set[str]:
    """Return the arguments of `YOLO.export` that have an effect on a format."""
    formats = export_formats()
    if format == CHECKPOINT:
        return set()
    own = dict(zip(formats["Argument"], formats["Arguments"], strict=True))[format]
    return {*own, *_ALWAYS_TAKEN, *(_TAKEN_WITH_NMS if "nms" in own else ())}


def parse_arguments(pairs: Iterable[str]) -> dict[str, Any]:
    """Return arguments such as ``imgsz=640`` by name, read as Ultralytics' command line does.

    Raises
    ------
    ExportError
        One is not of this form.
    """
    found = {}
    for pair in pairs:
        try:
            name, value = parse_key_value_pair(pair)
        except (AssertionError, ValueError) as error:
            raise ExportError(
                f"{pair!r} is not an argument, expected one such as imgsz=640"
            ) from error
        found[name] = value
    return found


def export(
    weights: Path,
    description: Mapping[str, Any],
    path: Path,
    *,
    format: str = "",
    half: bool = False,
    force: bool = False,
    **arguments: Any,
) -> None:
    """Write a version's weights to a file that Ultralytics reads, whole or not at all.

    Nothing is downloaded or installed, and no other file is left behind.

    Parameters
    ----------
    weights : Path
        The version's safetensors file.
    description : Mapping[str, Any]
        The version's description of its model.
    path : Path
        The file to write; some formats are folders.
    format : str
        One of `suffixes`: ``pt``, ``onnx``, ``torchscript``, …; by default that of the path's
        ending.
    half : bool
        Half precision, as Ultralytics' own `best.pt` has; the default keeps every digit.
    force : bool
        Replace what is at `path`.
    **arguments : Any
        Ultralytics' arguments of `YOLO.export`, such as ``imgsz``, ``dynamic`` or ``opset``. By
        default `imgsz` is the picture side of training.

    Raises
    ------
    ExportError
        The version is no Ultralytics detector, the format or an argument is unknown, a package is
        missing, there is a file already, or Ultralytics fails.
    OSError
        The file cannot be written.
    """
    chosen = _format_of(path, format)
    _require_possible(chosen, path, arguments, force=force)
    content = checkpoint(weights, description)
    with tempfile.TemporaryDirectory(
        prefix=f".{path.name}.", suffix=".tmp", dir=path.parent
    ) as folder:
        file = Path(folder) / f"{path.name.removesuffix(suffixes()[chosen])}.pt"
        if chosen == CHECKPOINT and half:
            content["model"].half()
        torch.save(content, file)
        del content
        made = file if chosen == CHECKPOINT else _exported(file, chosen, half, arguments)
        _move(made, path)


def checkpoint(weights: Path, description: Mapping[str, Any]) -> dict[str, Any]:
    """Return what Ultralytics' trainer leaves in `best.pt`, in single precision.

    Raises
    ------
    ExportError
        The description is not of an Ultralytics detector.
    """
    try:
        network = described_network(description)
    except ValueError as error:
        raise ExportError(
            f"{error}: load_arrays() of the registry returns any version's arrays"
        ) from error
    network.load_state_dict(load_file(weights), strict=True)
    side = description.get("image_size") or DEFAULT_CFG_DICT["imgsz"]
    network.args = {"task": "detect", "imgsz": side}
    for weight in network.parameters():
        weight.requires_grad = False
    return {
        "date": datetime.now().astimezone().isoformat(),
        "version": __version__,
        "license": "AGPL-3.0 License (https://ultralytics.com/license)",
        "docs": "https://docs.ultralytics.com",
        "epoch": -1,
        "model": network.eval(),
        **dict.fromkeys(("best_fitness", "ema", "updates", "optimizer", "train_results")),
        "train_args": {**DEFAULT_CFG_DICT, **network.args},
        "train_metrics": {},
    }


def _format_of(path: Path, format: str) -> str:
    known = suffixes()
    if format and format not in known:
        raise ExportError(f"the format {format!r} is unknown, expected one of {', '.join(known)}")
    fitting = [each for each, suffix in known.items() if path.name.endswith(suffix)]
    found = max(fitting, key=lambda each: len(known[each]), default="")
    if not found and not format:
        raise ExportError(
            f"{path.name} ends as no format does; name it best.pt or best.onnx, or give the format "
            "and its ending"
        )
    # Ultralytics recognises a format by the name alone.
    if format and not path.name.endswith(known[format]):
        raise ExportError(f"{path.name} must end in {known[format]} to be read as {format}")
    return format or found


def _require_possible(
    chosen: str, path: Path, arguments: Mapping[str, Any], *, force: bool
) -> None:
    if path.exists() and not force:
        raise ExportError(f"{path} exists; choose another name, or replace it with --force")
    if not path.parent.is_dir():
        raise ExportError(f"the folder {path.parent} does not exist; make it first")
    if chosen in _DOWNLOADING:
        raise ExportError(
            f"Ultralytics downloads files for the format {chosen}; export to best.pt, then use "
            f"`yolo export model=best.pt format={chosen}`"
        )
    missing = [name for name in _NEEDED.get(chosen, ()) if find_spec(name) is None]
    if missing:
        raise ExportError(
            f"the format {chosen} needs {' and '.join(missing)}, which is not installed; install "
            "fl-app[export], which brings it"
        )
    try:
        known = get_cfg(overrides=dict(arguments))
    except (SyntaxError, TypeError, ValueError) as error:  # the first: an unknown name
        raise ExportError(_one_line(error)) from error
    taken = arguments_of(chosen)
    if vain := sorted(arguments.keys() - taken):
        raise ExportError(
            f"the format {chosen} takes no {vain[0]}, expected {', '.join(sorted(taken)) or 'none'}"
        )
    if known.quantize in (8, "w8a16") and not known.data:
        raise ExportError(
            "8 bit precision is calibrated on pictures; name them with data=/path/data.yaml"
        )


def _exported(file: Path, chosen: str, half: bool, arguments: Mapping[str, Any]) -> Path:
    precision = {"quantize": 16} if half else {}
    try:
        with _remarks() as remarks:
            made = Path(YOLO(file).export(format=chosen, **precision, **arguments))
    except ImportError as error:
        raise ExportError(
            f"the format {chosen} needs {error.name or _one_line(error)}, which is not installed; "
            "install it, as Ultralytics' documentation of this format says"
        ) from error
    except Exception as error:  # Ultralytics and its exporters raise anything
        raise ExportError(
            f"Ultralytics cannot export to {chosen} here: {_one_line(error)}"
        ) from error
    for remark in remarks:
        logger.warning("Ultralytics: %s", remark)
    return made


@contextmanager
def _remarks() -> Iterator[list[str]]:
    """Collect what Ultralytics warns of, which it prints nowhere without YOLO_VERBOSE."""
    remarks: list[str] = []

    class Keeper(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            remarks.append(" ".join(remove_colorstr(record.getMessage()).split()))

    before = LOGGER.level, LOGGER.handlers[:]
    LOGGER.handlers[:] = [Keeper()]
    LOGGER.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch, about its own exporters' future
            yield remarks
    finally:
        LOGGER.setLevel(before[0])
        LOGGER.handlers[:] = before[1]


def _move(made: Path, path: Path) -> None:
    """Put a finished file or folder in its place, on disk before anybody sees it."""
    if made.is_file():
        handle = os.open(made, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    elif path.is_dir():
        shutil.rmtree(path)
    made.replace(path)


def _one_line(error: Exception) -> str:
    return " ".join(remove_colorstr(str(error)).split()) or type(error).__name__
