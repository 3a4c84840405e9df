# SPDX-License-Identifier: Apache-2.0
"""What the content of a PyTorch file means: its state dict, and the model that it describes."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fl_registry.errors import ArtifactError

_STATES = ("model", "state_dict", "model_state_dict")  # where training scripts put a state dict
_DETECTORS = ("DetectionModel", "YOLOv10DetectionModel", "YoloModel")
_HEADS = ("Detect", "v10Detect")
_FAMILY = "ultralytics-detect"  # as in fl_models, which this package does not know
# Names that only the arrays of an Ultralytics detector have.
_CLASS_LAYER = re.compile(r"model\.(\d+)\.cv3\.0\.2\.weight")
_WRAPPED = "module."  # by DistributedDataParallel

State = dict[str, Any]


class Placeholder:
    """Stands for an object of a class that was not imported; keeps its attributes."""

    of = ""
    """Module and name of the class."""

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        if isinstance(state, dict):
            self.__dict__.update(state)


def read_checkpoint(content: object, source: Path) -> tuple[State, dict[str, Any]]:
    """Return the state dict in a file's content, and the description of the model if it has one.

    Raises
    ------
    ArtifactError
        It holds neither a state dict nor an Ultralytics detector that can be trained.
    """
    model = content
    if isinstance(content, dict) and not _is_state(content):
        model = content.get("ema") or content.get("model")
        nested = [content[key] for key in _STATES if _is_state(content.get(key))]
        content = nested[0] if nested else content
    if isinstance(model, Placeholder):
        wrapped = vars(model).get("_modules", {}).get("module")
        return _read_model(wrapped or model, source)
    if not _is_state(content):
        raise ArtifactError(
            f"{source} does not hold a state dict (names to tensors); save model.state_dict() "
            "instead."
        )
    return _checked(dict(content), source), {}  # type: ignore[call-overload]


def _is_state(content: object) -> bool:
    import torch

    return (
        isinstance(content, dict)
        and bool(content)
        and all(isinstance(k, str) and isinstance(v, torch.Tensor) for k, v in content.items())
    )


def _checked(state: State, source: Path) -> State:
    """Return a state dict under its model's own names, and an Ultralytics detector's in float32."""
    if all(name.startswith(_WRAPPED) for name in state):
        state = {name.removeprefix(_WRAPPED): tensor for name, tensor in state.items()}
    if not any(_CLASS_LAYER.fullmatch(name) for name in state):
        return state
    if not any(".bn." in name for name in state):
        raise ArtifactError(
            f"{source} holds a model that is fused for inference and can't be trained or loaded "
            "as one that can; save it before fuse() is called on it."
        )
    return {n: t.float() if t.is_floating_point() else t for n, t in state.items()}


def _read_model(model: Placeholder, source: Path) -> tuple[State, dict[str, Any]]:
    kind, has = model.of.rpartition(".")[2], vars(model)
    if model.of.startswith("models."):
        raise ArtifactError(
            f"{source} is of the YOLOv5 repository, whose models the package ultralytics can't "
            "load; train a yolov5nu or another detector of that package."
        )
    if not model.of.startswith(("ultralytics.", "fl_models.")):
        raise ArtifactError(
            f"{source} holds a pickled {kind}, which is not loaded; save model.state_dict() "
            "instead."
        )
    try:
        architecture, names = dict(has["yaml"]), has["names"]
        head = architecture["head"][-1][2]
        if isinstance(names, dict):
            names = [names[number] for number in range(len(names))]
        names = [str(name) for name in names]
        architecture["nc"], architecture["yaml_file"] = len(names), _file_name(architecture, has)
        state = _checked(dict(_arrays(model)), source)
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        raise ArtifactError(
            f"{source} holds a {kind} whose parts can't be read; save model.state_dict() instead."
        ) from error
    if kind not in _DETECTORS or head not in _HEADS:
        raise ArtifactError(
            f"{source} holds a {kind} of Ultralytics, and only its plain detectors are known here; "
            "to store its arrays alone, save model.state_dict()."
        )
    last = [state[name] for name in state if _CLASS_LAYER.fullmatch(name)]
    if not last or len(last[0]) != len(names):
        raise ArtifactError(
            f"{source} holds a model whose arrays are not those of its architecture (it may be "
            "quantized or changed); save model.state_dict() instead."
        )
    return state, {
        "family": _FAMILY,
        "model": Path(architecture["yaml_file"]).stem,
        "yaml": architecture,
        "class_width": last[0].shape[1],
        "num_classes": len(names),
        "names": names,
        "image_size": _image_size(has),
    }


def _arrays(module: Placeholder, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the arrays of a module in the order of its state dict."""
    has = vars(module)
    fleeting = has.get("_non_persistent_buffers_set", ())
    for kind in ("_parameters", "_buffers"):
        for name, tensor in has.get(kind, {}).items():
            if tensor is not None and not (kind == "_buffers" and name in fleeting):
                yield prefix + name, tensor
    for name, part in has.get("_modules", {}).items():
        if part is not None:
            yield from _arrays(part, f"{prefix}{name}.")


def _file_name(architecture: Mapping[str, Any], has: Mapping[str, Any]) -> str:
    """Return the name of the architecture's file, without its folder; "" if nothing tells it."""
    named = architecture.get("yaml_file")
    started = Path(str(_arguments(has).get("model", "")))  # checkpoints before 8.0.70 have no file
    if not named and re.match(r"yolo(v?\d+)[a-z]", started.stem):
        named = f"{started.stem}.yaml"
    return Path(str(named or "")).name


def _arguments(has: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the arguments of the training that made a model."""
    args = has.get("args")
    if isinstance(args, Placeholder):
        return vars(args)
    return args if isinstance(args, Mapping) else {}


def _image_size(has: Mapping[str, Any]) -> int:
    """Return the side of the pictures of training; 0 if the checkpoint does not tell."""
    size = _arguments(has).get("imgsz", 0)
    sides = size if isinstance(size, list | tuple) else [size]
    return max((side for side in sides if isinstance(side, int)), default=0)
