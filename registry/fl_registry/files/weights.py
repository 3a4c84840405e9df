# SPDX-License-Identifier: Apache-2.0
"""A model's arrays as one safetensors file with a manifest in its header.

Needs numpy and safetensors only: no torch, no model class.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load

Arrays = Mapping[str, np.ndarray]

FORMAT = "fl-app-weights/1"
# The library's own writer copies a whole model, and orders its metadata anew each time, so that
# equal weights would have other digests. These are its codes of numpy's dtypes.
_CODES = {"bool": "BOOL", "complex64": "C64"}
_CODES |= {f"float{bits}": f"F{bits}" for bits in (16, 32, 64)}
_CODES |= {
    f"{sign}int{bits}": f"{sign or 'i'}{bits}".upper()
    for sign in ("", "u")
    for bits in (8, 16, 32, 64)
}
_MAX_HEADER = 16 << 20  # bytes; enough for 100,000 arrays. Read, it takes ten times as much
_LENGTH_BYTES = 8  # a safetensors file starts with the length of its JSON header


class WeightsError(ValueError):
    """A weights file can't be written or read; the text says which file and why."""


@dataclass(frozen=True)
class Manifest:
    """What a weights file says about itself.

    Parameters
    ----------
    arrays : Mapping[str, tuple[str, tuple[int, ...]]]
        dtype and shape of each array, in the model's own order.
    model : Mapping[str, object]
        How to build the model that takes these arrays; empty where it is unknown.
    sha256 : str
        Digest of the whole file, 64 hexadecimal digits.
    """

    arrays: Mapping[str, tuple[str, tuple[int, ...]]]
    model: Mapping[str, object]
    sha256: str


def save_weights(arrays: Arrays, path: Path, *, model: Mapping[str, object] | None = None) -> str:
    """Write the arrays to one file, whole or not at all, and return its sha256.

    Equal arrays in equal order give equal bytes, so equal weights have equal digests.

    Parameters
    ----------
    arrays : Mapping[str, np.ndarray]
        Arrays of any shape (0-d too) with a boolean or number dtype that safetensors knows.
    path : Path
        Where the file goes; an older file there is replaced in one step.
    model : Mapping[str, object] | None
        Free-form description of the model, as JSON allows.

    Raises
    ------
    WeightsError
        If an array can't be stored in this format. Nothing is written then.
    """
    pieces = _to_pieces(arrays, {} if model is None else model)
    with ThreadPoolExecutor(1) as beside:  # the digest takes as long as the disk
        digest = beside.submit(_digest, pieces)
        _write_atomically(pieces, Path(path))
    return digest.result()


def load_weights(path: Path) -> dict[str, np.ndarray]:
    """Return the arrays of a weights file in the model's own order, writable.

    Raises
    ------
    WeightsError
        If the file is missing, damaged, or was not written by `save_weights`.
    """
    arrays, _, _ = _read(Path(path))
    return {name: array.copy() for name, array in arrays.items()}


def read_manifest(path: Path) -> Manifest:
    """Return what a weights file says about itself, after the same checks as `load_weights`."""
    arrays, model, data = _read(Path(path))
    shapes = {name: (array.dtype.name, array.shape) for name, array in arrays.items()}
    return Manifest(shapes, model, hashlib.sha256(data).hexdigest())


def _to_pieces(arrays: Arrays, model: Mapping[str, object]) -> list[bytes | memoryview]:
    """What the file holds: its header, and the bytes of each array, which are not copied."""
    plain: dict[str, np.ndarray] = {}
    rows: dict[str, object] = {}
    end = 0
    for name, array in sorted(arrays.items(), key=lambda item: -item[1].dtype.itemsize):
        code = _CODES.get(array.dtype.name)
        if code is None or name == "__metadata__":
            raise WeightsError(
                f"array '{name}' of dtype {array.dtype} can't be stored: "
                "expected an array of numbers or booleans under another name than __metadata__"
            )
        # asarray, not ascontiguousarray, which would turn a 0-d array into a 1-d one.
        plain[name] = np.asarray(array, dtype=array.dtype.newbyteorder("<"), order="C")
        begin, end = end, end + array.nbytes
        rows[name] = {"dtype": code, "shape": array.shape, "data_offsets": [begin, end]}
    try:
        description = json.dumps(dict(model), sort_keys=True)
        metadata = {"format": FORMAT, "model": description, "order": json.dumps(list(arrays))}
        header = {"__metadata__": metadata, **rows}
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    except (TypeError, UnicodeEncodeError) as error:
        raise WeightsError(f"the arrays can't be stored as safetensors: {error}") from error
    text += b" " * (-len(text) % 8)
    length = len(text).to_bytes(_LENGTH_BYTES, "little")
    return [length + text, *(array.reshape(-1).view(np.uint8).data for array in plain.values())]


def _digest(pieces: Iterable[bytes | memoryview]) -> str:
    sha256 = hashlib.sha256()
    for piece in pieces:
        sha256.update(piece)
    return sha256.hexdigest()


def _write_atomically(pieces: Iterable[bytes | memoryview], path: Path) -> None:
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.writelines(pieces)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o644)  # mkstemp gives 0600, which another user's server can't read
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":
        return  # elsewhere a folder can't be opened, and a rename needs no sync
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _read(path: Path) -> tuple[dict[str, np.ndarray], dict[str, object], bytes]:
    """Return the arrays, the model and the whole content of a weights file."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise WeightsError(f"weights file {path} can't be read: {error.strerror}") from error
    try:
        size = int.from_bytes(data[:_LENGTH_BYTES], "little")
        if size > _MAX_HEADER:
            raise ValueError(f"its header has {size} bytes, at most {_MAX_HEADER} are read")
        header = _read_json(data[_LENGTH_BYTES : _LENGTH_BYTES + size])
        arrays = load(data)
    except (SafetensorError, ValueError, LookupError, TypeError, MemoryError) as error:
        raise WeightsError(
            f"weights file {path} is damaged or no safetensors file: {error}; "
            "restore it from where it was saved"
        ) from error
    metadata = header.get("__metadata__") if isinstance(header, dict) else None
    order, model = _manifest_fields(metadata or {}, path)
    if len(order) != len(arrays) or set(order) != set(arrays):
        raise WeightsError(
            f"weights file {path} is damaged: its order names {len(order)} arrays, "
            f"and it holds {len(arrays)} that differ from them"
        )
    return {name: arrays[name] for name in order}, model, data


def _read_json(text: str | bytes) -> Any:
    """Read JSON that means the same to every reader; `ValueError` for any other."""
    try:
        return json.loads(text, object_pairs_hook=_once_each)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name is there twice")
    return found


def _manifest_fields(
    metadata: Mapping[str, str], path: Path
) -> tuple[list[str], dict[str, object]]:
    found = metadata.get("format", "none")
    if found != FORMAT:
        raise WeightsError(
            f"weights file {path} has format {found!r:.60}, expected '{FORMAT}': "
            "save the arrays with fl_registry.files.weights.save_weights"
        )
    try:
        order, model = _read_json(metadata["order"]), _read_json(metadata["model"])
    except (KeyError, ValueError, TypeError) as error:
        raise WeightsError(f"weights file {path} has a damaged manifest: {error}") from error
    if not (isinstance(order, list) and all(isinstance(name, str) for name in order)):
        raise WeightsError(f"weights file {path} has a damaged manifest: order is no list of names")
    if not isinstance(model, dict):
        raise WeightsError(f"weights file {path} has a damaged manifest: model is no JSON object")
    return order, cast(dict[str, object], model)
