# SPDX-License-Identifier: Apache-2.0
"""Loads verified weights into arrays or torch modules, with a cache of the latest modules."""

from __future__ import annotations

import io
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from types import FunctionType
from typing import Any

from fl_registry.errors import ArtifactError
from fl_registry.files.digests import Weights, WholeFiles
from fl_registry.files.weights import read_header

_CACHED = 2  # models: production and the one before it


@dataclass(frozen=True)
class _Ready:
    module: Any
    arrays: tuple[tuple[Any, str, Any, int, int], ...]  # holder, name, tensor, changes, address

    def untouched(self) -> bool:
        """Return whether all arrays of the module are unchanged since they were loaded."""
        return all(
            holder.get(name) is tensor
            and tensor._version == changes
            and tensor.data_ptr() == address
            for holder, name, tensor, changes, address in self.arrays
        )


class ReadyModels:
    """A cache of the latest modules, ready for inference.

    A module is dropped when its weights file changed, when its arrays were changed in place or
    replaced (by training, ``half()``, a move to another device), or when the cache is full.
    """

    def __init__(self, whole: WholeFiles) -> None:
        self._whole = whole
        self._ready: OrderedDict[Hashable, _Ready] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, weights: Weights, model_class: Callable[[], Any], *, device: str) -> Any:
        """Return the module for these weights, built and loaded only if it is not cached."""
        key = (weights.sha256, str(device), _maker(model_class))
        with self._lock:
            ready = self._ready.pop(key, None)
            if ready is not None and ready.untouched():
                self._whole.verify(weights)
            else:
                ready = _ready(self.load(weights, model_class, device=device))
            self._ready[key] = ready
            while len(self._ready) > _CACHED:
                self._ready.popitem(last=False)
        if ready.module.training:
            ready.module.eval()
        return ready.module

    def load(self, weights: Weights, model_class: Callable[[], Any], *, device: str) -> Any:
        """Return a new module with these weights, on `device`, ready for inference.

        Raises
        ------
        ArtifactError
            The file is missing or has changed, or does not fit the module.
        """
        try:
            import torch
            from safetensors.torch import load
        except ImportError as error:
            raise ArtifactError(
                "load_production_model makes a torch module, and torch is not installed; "
                "load_arrays() returns the weights of any model as NumPy arrays."
            ) from error

        if not callable(model_class):
            raise ArtifactError(
                f"model_class is {model_class!r:.60}; expected a function that makes the model, "
                "such as lambda: get_model(model_size='n', num_classes=7)."
            )
        content = self._whole.read(weights)
        with torch.inference_mode(False):  # inference tensors have no version counter
            module = model_class()
            if not isinstance(module, torch.nn.Module):
                raise ArtifactError(
                    f"model_class made a {type(module).__name__}, which is not a torch module; "
                    "load_arrays() returns the weights of any model as NumPy arrays, see "
                    "docs/use-the-model.md."
                )
            arrays = load(content)
            _describe(module, content, version=weights.version)
            _require_fit(module.state_dict(), arrays, version=weights.version)
            module.load_state_dict(arrays, strict=True)
            return module.to(device).eval()


def _describe(module: Any, content: bytes, *, version: str) -> None:
    """Give a module that wants it the description that was saved with the arrays."""
    take = getattr(module, "load_description", None)
    manifest = read_header(io.BytesIO(content)).manifest
    if take is None or manifest is None or not manifest.model:
        return
    try:
        take(manifest.model)
    except ValueError as error:
        raise ArtifactError(f"Version {version} is of another model: {error}.") from error


def _ready(module: Any) -> _Ready:
    arrays = [
        (holder, name, tensor, tensor._version, tensor.data_ptr())
        for part in module.modules()
        for holder in (part._parameters, part._buffers)
        for name, tensor in holder.items()
        if tensor is not None
    ]
    return _Ready(module, tuple(arrays))


def _maker(model_class: Callable[[], Any]) -> Hashable:
    """Return a key that differs between functions that make different models.

    A lambda is a new object each time its line runs, so its code and its variables are compared.
    """
    if not isinstance(model_class, FunctionType):
        return model_class
    try:
        key = (
            model_class.__code__,
            id(model_class.__globals__),
            model_class.__defaults__,
            repr(model_class.__kwdefaults__),
            tuple(cell.cell_contents for cell in model_class.__closure__ or ()),
        )
        hash(key)
    except (TypeError, ValueError):  # its variables cannot be compared: equal to itself only
        return model_class
    return key


def read_arrays(content: bytes, *, version: str) -> dict[str, Any]:
    """Return the arrays of a weights file in the model's own order.

    Raises
    ------
    ArtifactError
        NumPy lacks the dtype of one.
    """
    from safetensors.numpy import load

    try:
        arrays = load(content)
    except KeyError as error:
        raise ArtifactError(
            f"Version {version} holds arrays of dtype {error.args[0]}, which NumPy lacks; read "
            f"them as tensors with safetensors.torch.load_file(manager.weights_path('{version}'))."
        ) from error
    return {name: arrays[name] for name in read_header(io.BytesIO(content)).order}


def _require_fit(own: Mapping[str, Any], arrays: Mapping[str, Any], *, version: str) -> None:
    missing, extra = sorted(own.keys() - arrays.keys()), sorted(arrays.keys() - own.keys())
    wrong = sorted(n for n in own.keys() & arrays.keys() if own[n].shape != arrays[n].shape)
    problems = [
        f"{len(names)} {what} (first: {names[0]})"
        for names, what in ((missing, "missing"), (extra, "unexpected"), (wrong, "of other shape"))
        if names
    ]
    if problems:
        raise ArtifactError(
            f"Version {version} does not fit the model that was built: arrays "
            f"{', '.join(problems)}; build the model it was trained with."
        )
