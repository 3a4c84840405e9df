# SPDX-License-Identifier: Apache-2.0
"""PyTorch files (.pt, .pth) turned into safetensors, by safe loading only.

What a file asks for is looked at before torch sees it: the names it would import, and how large it
would become. Then torch loads it with ``weights_only=True``, and never in another way.
"""

from __future__ import annotations

import pickletools
import re
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

from fl_registry.errors import ArtifactError
from fl_registry.files.atomic import write_whole
from fl_registry.files.safetensors_header import Manifest

_NAMES = re.compile(
    r"collections OrderedDict|torch\._utils _rebuild_(tensor_v[23]|parameter)|"
    r"torch\.storage (Untyped|Typed)Storage|"
    r"torch (\w+Storage|u?int\d+|b?float\d+\w*|complex\d+|bool)"
)
_CALLS = frozenset({"INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "STACK_GLOBAL", "EXT1", "EXT2", "EXT4"})
_ARCHIVE = b"PK\x03\x04"
_GROWTH, _FLOOR = 16, 1 << 20  # tied tensors are stored once and become one each
# What is raised for files that are damaged, foreign, or hold more than tensors.
_LOAD_ERRORS = (
    UnpicklingError,
    struct.error,
    zipfile.BadZipFile,
    RuntimeError,
    EOFError,
    LookupError,
    ValueError,
    TypeError,
    AttributeError,
    AssertionError,
    ImportError,
    MemoryError,
    OverflowError,
    OSError,
)


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
        from safetensors.torch import save
    except ImportError as error:
        raise ArtifactError(
            f"Reading {source} needs torch, which is not installed; install it, or save the "
            "weights as .safetensors."
        ) from error
    try:
        _inspect(source)
        found = torch.load(source, map_location="cpu", weights_only=True)
    except _LOAD_ERRORS as error:
        raise ArtifactError(
            f"{source} cannot be read safely: it is damaged, of a PyTorch before 1.6, or holds "
            "more than tensors (such as a pickled model or TorchScript); save model.state_dict() "
            "instead."
        ) from error
    if not _is_state_dict(found, torch.Tensor):
        raise ArtifactError(
            f"{source} does not hold a plain state dict (names to tensors); save "
            "model.state_dict() instead."
        )
    write_whole(target, _as_safetensors(source, found, save))


def _as_safetensors(source: Path, found: Mapping[str, Any], save: Any) -> bytes:
    metadata = Manifest(list(found), {}).as_metadata()
    size = sum(tensor.numel() * tensor.element_size() for tensor in found.values())
    if size > _FLOOR + _GROWTH * source.stat().st_size:
        raise ArtifactError(
            f"{source} would become {size / 1e9:.1f} GB, far more than the file has; save "
            "model.state_dict() with tensors that are not expanded."
        )
    try:
        # Cloning separates tensors that share memory, which safetensors refuses.
        tensors = {name: tensor.detach().clone().contiguous() for name, tensor in found.items()}
        content: bytes = save(tensors, metadata=metadata)
        return content
    except (ValueError, KeyError, RuntimeError, MemoryError, UnicodeError) as error:
        raise ArtifactError(
            f"{source} holds tensors that safetensors cannot keep (sparse or quantized); save "
            "dense ones."
        ) from error


def _inspect(source: Path) -> None:
    """Raise `ValueError` unless it is an unpacked archive whose pickle names tensors only.

    Nothing is imported and nothing run: the pickle is read as text, instruction by instruction.
    """
    with source.open("rb") as file:
        if file.read(4) != _ARCHIVE:  # what comes before it torch would read in another way
            raise ValueError("it does not begin as an archive")
    with zipfile.ZipFile(source) as archive:
        parts = archive.infolist()
        names = [part.filename for part in parts]
        pickles = [name for name in names if name.rpartition("/")[2] == "data.pkl"]
        if len(pickles) != 1 or len(set(names)) < len(names) or archive.comment:
            raise ValueError("expected one data.pkl, and no name twice")
        packed = any(part.compress_type or part.flag_bits & 1 for part in parts)
        if packed or sum(part.file_size for part in parts) > source.stat().st_size:
            raise ValueError("its parts are packed, or overlap")
        content = archive.read(pickles[0])
    for code, argument, _ in pickletools.genops(content):
        asked = code.name == "GLOBAL" and not _NAMES.fullmatch(str(argument))
        if asked or code.name in _CALLS:
            raise ValueError(f"it asks for {argument}")


def _is_state_dict(found: object, tensor: type[Any]) -> bool:
    return (
        isinstance(found, dict)
        and bool(found)
        and all(isinstance(k, str) and isinstance(v, tensor) for k, v in found.items())
    )
