# SPDX-License-Identifier: Apache-2.0
"""A model's arrays as one safetensors file with a manifest in its header.

Needs NumPy and safetensors only: no torch, no model class.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from fl_registry.files.atomic import write_whole
from fl_registry.files.digests import digest_of
from fl_registry.files.safetensors_header import Manifest, read_header


class WeightsError(ValueError):
    """A weights file cannot be written or read; the text says which file and why."""


def save_weights(
    arrays: Mapping[str, np.ndarray], path: Path, *, model: Mapping[str, object] | None = None
) -> str:
    """Write the arrays to one file, whole or not at all, and return its SHA-256.

    Equal arrays in equal order give equal bytes, so equal weights have equal digests.

    Parameters
    ----------
    arrays : Mapping[str, np.ndarray]
        Arrays of any shape (0-d too) with a boolean or number dtype that safetensors supports.
    path : Path
        Where the file goes; an older file there is replaced in one step.
    model : Mapping[str, object] | None
        Free-form description of the model, as JSON allows.

    Raises
    ------
    WeightsError
        An array cannot be stored in this format. Nothing is written then.
    OSError
        The file cannot be written. An older file stays as it is.
    """
    try:
        metadata = Manifest(list(arrays), dict(model or {})).as_metadata()
        plain = {name: _storable(name, array) for name, array in arrays.items()}
        # In memory, so that the digest is computed while the file is written.
        content = save(plain, metadata=metadata)
    except (SafetensorError, TypeError, ValueError) as error:
        raise WeightsError(f"the arrays cannot be stored as safetensors: {error}") from error
    with ThreadPoolExecutor(1) as pool:
        digest = pool.submit(digest_of, content)
        write_whole(Path(path), content)
    return digest.result()


def load_weights(path: Path) -> dict[str, np.ndarray]:
    """Return the arrays of a weights file in the model's own order, writable.

    Raises
    ------
    WeightsError
        The file is missing, damaged, or was not written by `save_weights`.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise WeightsError(f"weights file {path} cannot be read: {error.strerror}") from error
    try:
        manifest = read_header(io.BytesIO(content)).manifest()
        arrays = load(content)
    except (SafetensorError, ValueError, LookupError, TypeError, MemoryError) as error:
        raise WeightsError(
            f"weights file {path} is damaged or not a safetensors file: {error}; "
            "restore it from where it was saved"
        ) from error
    if manifest is None:
        raise WeightsError(
            f"weights file {path} has no manifest, expected one of format '{Manifest.format}': "
            "save the arrays with fl_registry.files.weights.save_weights"
        )
    return {name: arrays[name].copy() for name in manifest.order}


def _storable(name: str, array: np.ndarray) -> np.ndarray:
    if array.dtype.kind not in "biufc" or name == "__metadata__":
        raise ValueError(
            f"array '{name}' of dtype {array.dtype}: expected an array of numbers or booleans "
            "under another name than __metadata__"
        )
    # safetensors reads the memory as it lies. Not ascontiguousarray, which would turn a 0-d array
    # into a 1-d one.
    return np.asarray(array, dtype=array.dtype.newbyteorder("<"), order="C")
