# SPDX-License-Identifier: Apache-2.0
"""Converts PyTorch files (.pt, .pth) to safetensors; nothing that a file names is run.

A file's imports and its size in memory are checked before torch reads it. Then torch rebuilds the
tensors, and every other class that the file names is replaced by one that only keeps attributes.
So checkpoints of Ultralytics are read where Ultralytics, or its version of them, is not installed.
"""

from __future__ import annotations

import pickle
import pickletools
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from fl_registry.errors import ArtifactError
from fl_registry.files.atomic import write_whole
from fl_registry.files.pt_checkpoint import Placeholder, read_checkpoint
from fl_registry.files.weights import Manifest

# The imports of a state dict, which are the only ones that are made. torch's own
# ``weights_only=True`` had two holes (CVE-2025-32434, CVE-2026-24747), and it allows
# ``bytearray(2**31)``.
_TENSORS = re.compile(
    r"collections OrderedDict|torch\._utils _rebuild_(tensor_v[23]|parameter)|"
    r"torch\.storage (Untyped|Typed)Storage|"
    r"torch (\w+Storage|u?int\d+|b?float\d+\w*|complex\d+|bool)"
)
_PLAIN: dict[str, type] = {"torch Size": tuple, "__builtin__ set": set, "builtins set": set}
# What checkpoints of Ultralytics name besides; ``models`` is the older YOLOv5 repository.
_REPLACED = re.compile(
    r"(ultralytics|models|fl_models|torch\.nn|torch\.optim|torch\.torch_version|numpy|pathlib)"
    r"(\.\w+)* \w+|(__builtin__|builtins) getattr|datetime \w+"
)
_CALLS = frozenset({"INST", "OBJ", "NEWOBJ_EX", "STACK_GLOBAL", "EXT1", "EXT2", "EXT4"})
_ARCHIVE = b"PK\x03\x04"
_GROWTH, _FLOOR = 16, 1 << 20  # tied tensors are stored once in the file


def import_checkpoint(source: Path, target: Path) -> None:
    """Write the state dict in `source` to `target` as safetensors, byte for byte repeatable.

    `source` holds a state dict, as it is or under ``model`` or ``state_dict``, or a checkpoint of
    an Ultralytics detector. Of the latter, architecture, class names and picture size are written
    too, and its floats have 32 bits, as the model's own have.

    Raises
    ------
    ArtifactError
        torch is not installed, the file cannot be read safely, or it holds something else.
    OSError
        `target` cannot be written.
    """
    try:
        import torch
    except ImportError as error:
        raise ArtifactError(
            f"Reading {source} needs torch, which is not installed; install it, or save the "
            "weights as .safetensors."
        ) from error
    try:
        _inspect(source)
        # A pickle module of our own excludes ``weights_only``, and is stricter.
        content = torch.load(
            source,
            map_location="cpu",
            weights_only=False,
            pickle_module=SimpleNamespace(Unpickler=_Unpickler, __name__=__name__),
        )
    except Exception as error:  # for a damaged or foreign file torch raises anything
        raise ArtifactError(
            f"{source} cannot be read safely: it is damaged, of a PyTorch before 1.6, or holds "
            "more than tensors (such as a pickled model or TorchScript); save model.state_dict() "
            "instead."
        ) from error
    state, description = read_checkpoint(content, source)
    write_whole(target, _as_safetensors(source, state, description))


class _Unpickler(pickle.Unpickler):
    """Imports what rebuilds tensors, and replaces every other class."""

    def find_class(self, module: str, name: str) -> Any:
        asked = f"{module} {name}"
        if asked in _PLAIN:
            return _PLAIN[asked]
        if _TENSORS.fullmatch(asked):
            return super().find_class(module, name)
        if _REPLACED.fullmatch(asked):
            return type(name, (Placeholder,), {"of": f"{module}.{name}"})
        raise pickle.UnpicklingError(f"it imports {asked}")


def _as_safetensors(
    source: Path, state: Mapping[str, Any], description: Mapping[str, Any]
) -> bytes:
    from safetensors.torch import save

    try:
        metadata = Manifest(list(state), dict(description)).as_metadata()
    except (TypeError, ValueError) as error:
        raise ArtifactError(
            f"{source} describes its model by more than JSON holds; save model.state_dict() "
            "instead."
        ) from error
    size = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
    if size > _FLOOR + _GROWTH * source.stat().st_size:
        raise ArtifactError(
            f"{source} would become {size / 1e9:.1f} GB, far more than the file has; save "
            "model.state_dict() with tensors that are not expanded."
        )
    try:
        # Cloning separates tensors that share memory, which safetensors refuses.
        tensors = {name: tensor.detach().clone().contiguous() for name, tensor in state.items()}
        content: bytes = save(tensors, metadata=metadata)
        return content
    except (ValueError, KeyError, RuntimeError, MemoryError, UnicodeError) as error:
        raise ArtifactError(
            f"{source} holds tensors that safetensors cannot store (sparse or quantized); save "
            "dense ones."
        ) from error


def _inspect(source: Path) -> None:
    """Raise `ValueError` unless it is an uncompressed archive whose pickle imports what is known.

    Nothing is imported or run: the pickle is only parsed, instruction by instruction.
    """
    with source.open("rb") as file:
        if file.read(4) != _ARCHIVE:  # torch would read content before it in another way
            raise ValueError("it does not begin like an archive")
    with zipfile.ZipFile(source) as archive:
        parts = archive.infolist()
        names = [part.filename for part in parts]
        pickles = [name for name in names if name.rpartition("/")[2] == "data.pkl"]
        if len(pickles) != 1 or len(set(names)) < len(names) or archive.comment:
            raise ValueError("expected one data.pkl, and no name twice")
        if any(name.rpartition("/")[2] == "constants.pkl" for name in names):
            raise ValueError("it is TorchScript, which torch would run")
        packed = any(part.compress_type or part.flag_bits & 1 for part in parts)
        if packed or sum(part.file_size for part in parts) > source.stat().st_size:
            raise ValueError("its parts are compressed, or overlap")
        content = archive.read(pickles[0])
    for code, argument, _ in pickletools.genops(content):
        text = str(argument)
        known = text in _PLAIN or _TENSORS.fullmatch(text) or _REPLACED.fullmatch(text)
        if code.name in _CALLS or (code.name == "GLOBAL" and not known):
            raise ValueError(f"it imports {argument}")
