# SPDX-License-Identifier: Apache-2.0
"""Converts PyTorch files (.pt, .pth) to safetensors, by safe loading only.

A file's imports and its size in memory are checked before torch reads it. Then torch loads it with
``weights_only=True``, and never in another way.
"""

from __future__ import annotations

import pickletools
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fl_registry.errors import ArtifactError
from fl_registry.files.atomic import write_whole
from fl_registry.files.weights import Manifest

# The imports of a state dict, and no others. ``weights_only=True`` alone is not enough: it had two
# holes (CVE-2025-32434, CVE-2026-24747), and it allows ``bytearray(2**31)``.
_NAMES = re.compile(
    r"collections OrderedDict|torch\._utils _rebuild_(tensor_v[23]|parameter)|"
    r"torch\.storage (Untyped|Typed)Storage|"
    r"torch (\w+Storage|u?int\d+|b?float\d+\w*|complex\d+|bool)"
)
_CALLS = frozenset({"INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "STACK_GLOBAL", "EXT1", "EXT2", "EXT4"})
_ARCHIVE = b"PK\x03\x04"
_GROWTH, _FLOOR = 16, 1 << 20  # tied tensors are stored once in the file


def import_checkpoint(source: Path, target: Path) -> None:
    """Write the plain state dict in `source` to `target` as safetensors, byte for byte repeatable.

    Raises
    ------
    ArtifactError
        torch is not installed, the file cannot be read safely, or it is not a plain state dict.
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
        state = torch.load(source, map_location="cpu", weights_only=True)
    except Exception as error:  # for a damaged or foreign file torch raises anything
        raise ArtifactError(
            f"{source} cannot be read safely: it is damaged, of a PyTorch before 1.6, or holds "
            "more than tensors (such as a pickled model or TorchScript); save model.state_dict() "
            "instead."
        ) from error
    plain = isinstance(state, dict) and all(
        isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in state.items()
    )
    if not (plain and state):
        raise ArtifactError(
            f"{source} does not hold a plain state dict (names to tensors); save "
            "model.state_dict() instead."
        )
    write_whole(target, _as_safetensors(source, state))


def _as_safetensors(source: Path, state: Mapping[str, Any]) -> bytes:
    from safetensors.torch import save

    metadata = Manifest(list(state), {}).as_metadata()
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
    """Raise `ValueError` unless it is an uncompressed archive whose pickle imports tensors only.

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
        packed = any(part.compress_type or part.flag_bits & 1 for part in parts)
        if packed or sum(part.file_size for part in parts) > source.stat().st_size:
            raise ValueError("its parts are compressed, or overlap")
        content = archive.read(pickles[0])
    for code, argument, _ in pickletools.genops(content):
        foreign = code.name == "GLOBAL" and not _NAMES.fullmatch(str(argument))
        if foreign or code.name in _CALLS:
            raise ValueError(f"it imports {argument}")
