# SPDX-License-Identifier: Apache-2.0
"""PyTorch files (.pt, .pth) turned into safetensors, by safe loading only."""

from __future__ import annotations

import json
import pickle
import struct
from pathlib import Path
from typing import Any

from registry.errors import ArtifactError

# What torch.load raises for files that are damaged, foreign, or hold more than tensors.
_LOAD_ERRORS = (
    pickle.UnpicklingError,
    struct.error,
    RuntimeError,
    EOFError,
    LookupError,
    ValueError,
    TypeError,
    AttributeError,
    AssertionError,
    ImportError,
    OSError,
)


def import_checkpoint(source: Path, target: Path) -> None:
    """Write the plain state dict in `source` to `target` as safetensors, byte for byte repeatable.

    Raises
    ------
    ArtifactError
        torch is not installed, the file cannot be read safely, or it is not a plain state dict.
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
        found = torch.load(source, map_location="cpu", weights_only=True)
    except _LOAD_ERRORS as error:
        raise ArtifactError(
            f"{source} cannot be read safely: it is damaged or holds more than tensors (such as "
            "a pickled model); save model.state_dict() instead."
        ) from error
    if not _is_state_dict(found, torch.Tensor):
        raise ArtifactError(
            f"{source} does not hold a plain state dict (names to tensors); save "
            "model.state_dict() instead."
        )
    metadata = {"format": "fl-app-weights/1", "order": json.dumps(list(found)), "model": "{}"}
    try:
        # Cloning separates tensors that share memory, which safetensors refuses.
        tensors = {name: tensor.detach().clone().contiguous() for name, tensor in found.items()}
        data = save(tensors, metadata=metadata)
    except (ValueError, KeyError, RuntimeError) as error:
        raise ArtifactError(
            f"{source} holds tensors that safetensors cannot keep (sparse or quantized); save "
            "dense ones."
        ) from error
    target.write_bytes(_with_sorted_header(data))


def _is_state_dict(found: object, tensor: type[Any]) -> bool:
    return (
        isinstance(found, dict)
        and bool(found)
        and all(isinstance(k, str) and isinstance(v, tensor) for k, v in found.items())
    )


def _with_sorted_header(data: bytes) -> bytes:
    """Sort the header's metadata, whose order differs from process to process."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data[8 + length :]
