# SPDX-License-Identifier: Apache-2.0
"""A model's arrays as one safetensors file: its header, fully checked, and fl-app's manifest in it.

Needs no torch and no model class.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Literal

import numpy as np
from pydantic import Field, TypeAdapter

from fl_registry.files.atomic import replacing
from fl_registry.files.digests import digest_of
from fl_registry.files.strict_json import read_strict_json

_MANIFEST = "fl-app"  # the key of the metadata
_LENGTH_BYTES = 8  # a safetensors file starts with the length of its JSON header
_MAX_HEADER = 16 << 20  # bytes
_MAX_PARTS = 150_000
"""Commas and colons of a header: enough for 10,000 arrays, and what can be parsed in 0.2 s."""
_BITS = {"F64": 64, "F32": 32, "F16": 16, "BF16": 16, "BOOL": 8, "C64": 64} | {
    f"{sign}{bits}": bits for sign in "IU" for bits in (8, 16, 32, 64)
}
# The order in which safetensors stores arrays.
_ORDER = ["U64", "I64", "F64", "C64", "F32", "U32", "I32", "F16", "U16", "I16", "I8", "U8", "BOOL"]
_KINDS = {"F": "float", "I": "int", "U": "uint", "BF": "bfloat", "C": "complex"}

_Size = Annotated[int, Field(strict=True, ge=0, lt=1 << 63)]


class WeightsError(ValueError):
    """A weights file cannot be written or read; the text says which file and why."""


@dataclass(frozen=True)
class ArrayRow:
    """One array of a safetensors file.

    Attributes
    ----------
    dtype : str
        The format's own code, such as ``F32``.
    shape : list[int]
        Length of each axis.
    data_offsets : tuple[int, int]
        First byte and the byte after the last one, counted from the end of the header.
    """

    dtype: str
    shape: Annotated[list[_Size], Field(max_length=64)]  # as many axes as NumPy allows
    data_offsets: tuple[_Size, _Size]

    def __post_init__(self) -> None:
        first, last = self.data_offsets
        bits = _BITS.get(self.dtype)
        if last < first or (bits and math.prod(self.shape) * bits != (last - first) * 8):
            raise ValueError("the size does not match the shape")

    @property
    def dtype_name(self) -> str:
        """The dtype as NumPy and torch call it."""
        return _dtype_name(self.dtype)


def _dtype_name(code: str) -> str:
    kind = code.rstrip("0123456789")
    bits = code.lstrip("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
    known = kind in _KINDS and bits.isdigit()
    return f"{_KINDS[kind]}{bits}" if known else code.lower()


_CODES = {np.dtype(_dtype_name(code)): code for code in _ORDER}  # as a dtype makes its name slowly


@dataclass(frozen=True)
class Manifest:
    """What fl-app writes about the arrays of a weights file.

    Attributes
    ----------
    order : list[str]
        Names of the arrays in the model's own order.
    model : dict[str, Any]
        How to build the model that takes these arrays; empty if unknown.
    format : str
        Name and version of this format.
    """

    order: list[str]
    model: dict[str, Any]
    format: Literal["fl-app-weights/2"] = "fl-app-weights/2"

    def as_metadata(self) -> dict[str, str]:
        """Return the metadata of the safetensors file.

        Raises
        ------
        ValueError, TypeError
            The description of the model is not JSON.
        """
        # One key: safetensors writes several in an order that differs from process to process,
        # and equal weights would have different digests.
        return {_MANIFEST: json.dumps(vars(self), sort_keys=True, allow_nan=False)}


@dataclass(frozen=True)
class Header:
    """A checked header.

    Attributes
    ----------
    rows : Mapping[str, ArrayRow]
        The arrays by name, as they are listed in the header.
    metadata : Mapping[str, str]
        The texts that the writer added.
    data_start : int
        Position in the file at which the arrays begin.
    manifest : Manifest | None
        What fl-app wrote about the arrays; None if another program wrote the file.
    """

    rows: Mapping[str, ArrayRow]
    metadata: Mapping[str, str]
    data_start: int
    manifest: Manifest | None

    @property
    def order(self) -> list[str]:
        """Names of the arrays in the model's own order, or as they are listed."""
        return list(self.rows) if self.manifest is None else self.manifest.order


_ROWS = TypeAdapter(dict[str, ArrayRow])
_TEXTS = TypeAdapter(dict[str, str])
_MANIFESTS = TypeAdapter(Manifest)


def read_header(file: BinaryIO) -> Header:
    """Read a header and require that it and the arrays fill the file exactly.

    Raises
    ------
    ValueError
        The header is damaged, or could mean different things to different readers.
    """
    available = file.seek(0, os.SEEK_END) - _LENGTH_BYTES
    file.seek(0)
    length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
    if not 2 <= length <= min(available, _MAX_HEADER):
        raise ValueError("it has no safetensors header, or one that is far too long")
    text = file.read(length)
    # Of commas and colons, so that also the manifest is counted, which is a text within the text.
    if (parts := text.count(b",") + text.count(b":")) > _MAX_PARTS:
        raise ValueError(f"its safetensors header has {parts} parts, expected at most {_MAX_PARTS}")
    try:
        fields = read_strict_json(text)
        metadata = _TEXTS.validate_python(fields.pop("__metadata__", {}))
        rows = _ROWS.validate_python(fields)
        "".join(rows).encode()  # JSON may hold half of a surrogate pair, which is not a name
    except (ValueError, AttributeError, TypeError) as error:
        raise ValueError("its safetensors header cannot be read") from error
    spans = sorted(row.data_offsets for row in rows.values())
    ends = [0, *(end for _, end in spans)]
    gapless = all(start == end for (start, _), end in zip(spans, ends, strict=False))
    if not (gapless and ends[-1] == available - length):
        raise ValueError("it is cut off, or its arrays do not fill it")
    manifest = None
    if _MANIFEST in metadata:
        try:
            manifest = _MANIFESTS.validate_python(read_strict_json(metadata[_MANIFEST]))
        except ValueError as error:
            raise ValueError(f"its manifest is damaged, or not of {Manifest.format}") from error
        if sorted(manifest.order) != sorted(rows):
            raise ValueError("its manifest lists other arrays than it holds")
    return Header(rows, metadata, _LENGTH_BYTES + length, manifest)


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
        parts = _as_parts({n: _storable(n, array) for n, array in arrays.items()}, metadata)
    except (TypeError, ValueError) as error:
        raise WeightsError(f"the arrays cannot be stored as safetensors: {error}") from error
    with ThreadPoolExecutor(1) as pool:  # hashed while they are written
        digest = pool.submit(digest_of, *parts)
        with replacing(Path(path)) as file:
            for part in parts:
                file.write(part)
    return digest.result()


def _as_parts(
    arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]
) -> list[bytes | memoryview]:
    """Return what ``safetensors.numpy.save`` does, as a header and the arrays' own memory.

    That function returns a copy of the model and makes another. ``save_file`` makes none, but
    replaces the file by one of its own, which is neither locked nor known to be on disk.
    """
    codes = {name: _CODES[array.dtype] for name, array in arrays.items()}
    order = sorted(arrays, key=lambda name: (_ORDER.index(codes[name]), name.encode()))
    header: dict[str, object] = {"__metadata__": metadata}
    end = 0
    for name in order:
        array, start = arrays[name], end
        end += array.nbytes
        header[name] = {"dtype": codes[name], "shape": array.shape, "data_offsets": (start, end)}
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _LENGTH_BYTES)  # so that arrays are aligned
    flat = [arrays[name].reshape(-1).view(np.uint8).data for name in order]
    return [len(text).to_bytes(_LENGTH_BYTES, "little") + text, *flat]


def load_weights(path: Path) -> dict[str, np.ndarray]:
    """Return the arrays of a weights file in the model's own order, writable.

    All of them share one memory, so that a model is held once.

    Raises
    ------
    WeightsError
        The file is missing, damaged, or was not written by `save_weights`.
    """
    try:
        with Path(path).open("rb") as file:
            header = read_header(file)
            content = bytearray(file.seek(0, os.SEEK_END) - header.data_start)
            file.seek(header.data_start)
            if file.readinto(content) != len(content):
                raise ValueError("it was cut off while it was read")
        arrays = {
            name: np.ndarray(
                row.shape, np.dtype(row.dtype_name).newbyteorder("<"), content, row.data_offsets[0]
            )
            for name, row in header.rows.items()
        }
    except OSError as error:
        raise WeightsError(f"weights file {path} cannot be read: {error.strerror}") from error
    except (ValueError, LookupError, TypeError, MemoryError) as error:
        raise WeightsError(
            f"weights file {path} is damaged or not a safetensors file: {error}; "
            "restore it from where it was saved"
        ) from error
    if header.manifest is None:
        raise WeightsError(
            f"weights file {path} has no manifest, expected one of format '{Manifest.format}': "
            "save the arrays with fl_registry.files.weights.save_weights"
        )
    return {name: arrays[name] for name in header.manifest.order}


def read_description(path: Path) -> dict[str, Any]:
    """Return the description of the model that `save_weights` was given; empty if unknown.

    Raises
    ------
    WeightsError
        The file is missing or damaged.
    """
    try:
        with path.open("rb") as file:
            manifest = read_header(file).manifest
    except (OSError, ValueError) as error:
        raise WeightsError(f"weights file {path} cannot be read: {error}") from error
    return {} if manifest is None else manifest.model


def _storable(name: str, array: np.ndarray) -> np.ndarray:
    dtype = array.dtype.newbyteorder("<")
    if dtype not in _CODES or name == "__metadata__":
        raise ValueError(
            f"array '{name}' of dtype {array.dtype}: expected an array of numbers or booleans "
            f"({', '.join(map(str, _CODES))}) under another name than __metadata__"
        )
    # safetensors reads the memory as it lies. Not ascontiguousarray, which would turn a 0-d array
    # into a 1-d one.
    return np.asarray(array, dtype=dtype, order="C")
