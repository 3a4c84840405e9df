# SPDX-License-Identifier: Apache-2.0
"""A half-precision copy of a weights file; what it costs in quality is measured by the caller."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field, TypeAdapter
from pydantic_core import to_json

from fl_registry.errors import ArtifactError
from fl_registry.files.artifacts import DIGEST, checked_header
from fl_registry.files.atomic import write_whole
from fl_registry.files.safetensors_header import ArrayRow
from fl_registry.files.strict_json import read_json

_WIDE = {"F32": "<f4", "F64": "<f8"}


@dataclass(frozen=True)
class HalfCopy:
    """The half-precision copy of a version's weights.

    Attributes
    ----------
    version : str
        The version.
    sha256 : str
        Digest of the copy's file.
    size : int
        Bytes of the copy's file.
    changes : Mapping[str, float]
        By how much each metric of the copy exceeds that of the full weights; empty if it was not
        measured.
    """

    version: str
    sha256: Annotated[str, Field(pattern=DIGEST)]
    size: int
    changes: Mapping[str, float]

    def encode(self) -> str:
        """Return the text of the tag ``half``."""
        fields = asdict(self)
        del fields["version"]
        return json.dumps(fields, sort_keys=True)


_COPIES = TypeAdapter(HalfCopy)


def read_half(version: str, tag: str | None) -> HalfCopy:
    """Return the copy that the tag ``half`` describes.

    Raises
    ------
    ArtifactError
        The version has no half-precision copy.
    """
    try:
        return _COPIES.validate_python({**read_json(tag or "{}"), "version": version})
    except (ValueError, TypeError) as error:
        raise ArtifactError(
            f"Version {version} has no half-precision copy; make one with compress_version."
        ) from error


def write_half(source: Path, target: Path) -> None:
    """Write a weights file with its 32 and 64 bit floats as 16 bit ones; the rest is unchanged.

    Raises
    ------
    ArtifactError
        A number is too large for 16 bits; nothing is left at `target`.
    """
    # Not by safetensors' own reader and writer: with NumPy they handle neither bfloat16 nor
    # 8-bit floats, which are copied here byte for byte.
    header = checked_header(source, shown=source)
    content = source.read_bytes()[header.data_start :]
    fields: dict[str, Any] = {"__metadata__": header.metadata} if header.metadata else {}
    parts, end = [], 0
    for name, row in header.rows.items():
        code, data = _halved(name, row.dtype, content[slice(*row.data_offsets)])
        parts.append(data)
        fields[name] = ArrayRow(code, row.shape, (end, end + len(data)))
        end += len(data)
    text = to_json(fields)
    text += b" " * (-len(text) % 8)
    write_whole(target, b"".join((len(text).to_bytes(8, "little"), text, *parts)))


def _halved(name: str, code: str, data: bytes) -> tuple[str, bytes]:
    if code not in _WIDE:
        return code, data
    wide = np.frombuffer(data, _WIDE[code])
    with np.errstate(over="ignore"):
        half = wide.astype("<f2")
    if np.isinf(half).sum() != np.isinf(wide).sum():
        raise ArtifactError(
            f"The array {name} holds numbers above 65,504, which half precision cannot hold; "
            "keep the full weights only."
        )
    return "F16", half.tobytes()
