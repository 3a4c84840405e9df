# SPDX-License-Identifier: AGPL-3.0-or-later
"""Ultralytics' detectors by name or file, as the dictionaries that Ultralytics builds them from.

Nothing is downloaded, and a name means the architecture that the installed Ultralytics ships.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import ultralytics.nn.tasks
from ultralytics.nn.tasks import guess_model_scale, guess_model_task
from ultralytics.utils import ROOT, YAML

_HEADS = ("Detect", "v10Detect")  # the heads whose loss and boxes are a plain detector's
_SUFFIXES = (".yaml", ".yml")
_SIZE_IN_NAME = re.compile(r"(\d+)([nslmx])(.+)?$")  # as Ultralytics finds yolov8.yaml for yolov8x
_ACTIVATION = re.compile(r"(torch\.)?nn\.\w+\([\w\s.,=+-]*\)")  # Ultralytics evaluates this text
_SIZES = "nsmlx"
_EXAMPLES = (
    *("yolov8n", "yolo11s", "yolo26n", "yolov8n-p2 and other detectors of Ultralytics"),
    "the path of a model's .yaml file",
)

Architecture = dict[str, Any]


def read_architecture(model: str | Path) -> Architecture:
    """Return what Ultralytics builds a detector from.

    Parameters
    ----------
    model : str | Path
        A detector of Ultralytics by name, such as ``yolov8n``, ``yolo11s`` or ``yolov8n-p2``; n,
        s, m, l or x for YOLOv8 of that size; or the path of a model's ``.yaml`` file. A size in
        the file's name is the model's, as in Ultralytics: ``own-yolov8s.yaml``.

    Raises
    ------
    ValueError
        The name or the file is unknown, or it is no detector that can be trained here.
    """
    text = f"yolov8{model}" if str(model) in tuple(_SIZES) else str(model)
    path = Path(text)
    if path.suffix == ".pt":
        raise ValueError(
            f"model {text!r} is a checkpoint, and a model is named by its architecture: set model "
            f"to {path.stem!r}, and weights to the absolute path of the checkpoint"
        )
    if path.suffix in _SUFFIXES:
        if not path.is_file():
            raise ValueError(f"the model's file {text} is missing; check its path")
        source = path
    else:
        shipped = _shipped()
        stem = re.sub(r"^(yolov[35][nslmx]?)u$", r"\1", text)  # as its checkpoints are called
        unified = _SIZE_IN_NAME.sub(r"\1\3", stem)
        if stem not in shipped and unified not in shipped:
            raise _unknown(text)
        source, path = shipped.get(stem) or shipped[unified], Path(f"{stem}.yaml")
    try:
        architecture: Architecture = YAML.load(source)
        scales, scale = architecture.get("scales"), guess_model_scale(path)
        head = architecture["head"][-1][2]
    except Exception as error:  # whatever a file of another kind makes of it
        raise ValueError(f"{text} is no model of Ultralytics: {error}") from error
    if scales and scale not in scales and len(scales) > 1:
        raise _unknown(text)
    task = guess_model_task(architecture)
    if head not in _HEADS:
        kind = f"of the task '{task}'" if task not in {None, "detect"} else f"with the head {head}"
        raise ValueError(
            f"model {text!r} is {kind}, and only plain detectors are trained here; choose one such "
            "as 'yolov8n', 'yolo11n' or 'yolo26n'"
        )
    # Without the folders of this machine: it is stored, compared and sent to nodes.
    architecture |= {"scale": scale or next(iter(scales or [""])), "yaml_file": path.name}
    check_architecture(architecture)
    return architecture


def check_architecture(architecture: Mapping[str, Any]) -> None:
    """Check that an architecture names layers only, since Ultralytics runs what it names.

    Raises
    ------
    ValueError
        It names something else, or is no architecture.
    """
    try:
        layers = {str(row[2]) for row in (*architecture["backbone"], *architecture["head"])}
        activation = str(architecture.get("activation") or "nn.SiLU()")
    except (LookupError, TypeError) as error:
        raise ValueError(f"the model's architecture can't be read: {error!r}") from error
    for name in sorted(layers):
        if not _is_layer(name):
            raise ValueError(f"the model's architecture has an unknown layer, {name!r:.60}")
    if not _ACTIVATION.fullmatch(activation):
        raise ValueError(
            f"the model's activation is {activation!r:.60}, expected one such as 'nn.SiLU()'"
        )


def _is_layer(name: str) -> bool:
    place: Any = ultralytics.nn.tasks
    if name.startswith("nn."):
        place, name = torch.nn, name[3:]
    elif name.startswith("torchvision.ops."):
        import torchvision.ops  # takes a second, which no round of a usual model needs

        place, name = torchvision.ops, name[16:]
    layer = getattr(place, name, None)
    return isinstance(layer, type) and issubclass(layer, torch.nn.Module)


def _shipped() -> dict[str, Path]:
    """The architectures that Ultralytics ships, by the stem of the file's name."""
    return {path.stem: path for path in (ROOT / "cfg" / "models").rglob("*.yaml")}


def _names() -> Iterator[str]:
    for stem, path in _shipped().items():
        architecture = YAML.load(path)
        if architecture["head"][-1][2] in _HEADS:
            scales = architecture.get("scales") or []
            if len(scales) > 1:
                yield from (re.sub(r"(\d+)", rf"\g<1>{scale}", stem, count=1) for scale in scales)
            else:
                yield stem


def _unknown(text: str) -> ValueError:
    known = sorted(_names(), key=lambda name: (len(name), name))
    near = [name for name in known if text and name.startswith(text)]
    near = near[:5] or difflib.get_close_matches(text, known, n=5)
    hint = f"did you mean {_listed(near)}?" if near else f"known are {_listed(_EXAMPLES)}"
    return ValueError(f"model {text!r:.100} is unknown: {hint}")


def _listed(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}" if len(names) > 1 else names[0]
