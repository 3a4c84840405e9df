# SPDX-License-Identifier: Apache-2.0
"""The header of a safetensors file: its rows, fully checked, and the manifest that fl-app adds."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Annotated, Any, BinaryIO, Literal

from pydantic import Field, TypeAdapter

from fl_registry.files.strict_json import read_json

_METADATA, _MANIFEST = "__metadata__", "fl-app"
_LENGTH_BYTES = 8  # a safetensors file starts with the length of its JSON header
_MAX_HEADER = 16 << 20  # bytes; enough for 100,000 arrays, and parsed it takes ten times as much
_BITS = {"F64": 64, "F32": 32, "F16": 16, "BF16": 16, "BOOL": 8, "C64": 64} | {
    f"{sign}{bits}": bits for sign in "IU" for bits in (8, 16, 32, 64)
}
_KINDS = {"F": "float", "I": "int", "U": "uint", "BF": "bfloat", "C": "complex"}

_Size = Annotated[int, Field(strict=True, ge=0, lt=1 << 63)]


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
        kind = self.dtype.rstrip("0123456789")
        bits = self.dtype.lstrip("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
        known = kind in _KINDS and bits.isdigit()
        return f"{_KINDS[kind]}{bits}" if known else self.dtype.lower()


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
        return {_MANIFEST: json.dumps(asdict(self), sort_keys=True, allow_nan=False)}


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
    """

    rows: Mapping[str, ArrayRow]
    metadata: Mapping[str, str]
    data_start: int

    def manifest(self) -> Manifest | None:
        """Return what fl-app wrote about the arrays; None if another program wrote the file.

        Raises
        ------
        ValueError
            The manifest is damaged, or lists other arrays than the file holds.
        """
        text = self.metadata.get(_MANIFEST)
        if text is None:
            return None
        try:
            manifest = _MANIFESTS.validate_python(read_json(text, strict=True))
        except ValueError as error:
            raise ValueError(f"its manifest is damaged, or not of {Manifest.format}") from error
        if sorted(manifest.order) != sorted(self.rows):
            raise ValueError("its manifest lists other arrays than it holds")
        return manifest


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
    try:
        fields = read_json(file.read(length), strict=True)
        metadata = _TEXTS.validate_python(fields.pop(_METADATA, {}))
        rows = _ROWS.validate_python(fields)
        "".join(rows).encode()  # JSON may hold half of a surrogate pair, which is not a name
    except (ValueError, AttributeError, TypeError) as error:
        raise ValueError("its safetensors header cannot be read") from error
    spans = sorted(row.data_offsets for row in rows.values())
    ends = [0, *(end for _, end in spans)]
    gapless = all(start == end for (start, _), end in zip(spans, ends, strict=False))
    if not (gapless and ends[-1] == available - length):
        raise ValueError("it is cut off, or its arrays do not fill it")
    return Header(rows, metadata, _LENGTH_BYTES + length)
