# SPDX-License-Identifier: Apache-2.0
"""A half-precision copy of a weights file; what it costs in quality is measured by the caller."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fl_registry.errors import ArtifactError
from fl_registry.files.artifacts import DIGEST, read_header
from fl_registry.files.atomic import write_whole
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
        By how much each metric of the copy exceeds that of the full weights; empty where they
        were not measured.
    """

    version: str
    sha256: str
    size: int
    changes: Mapping[str, float]

    def encode(self) -> str:
        """Return the text of the tag ``half``."""
        fields = asdict(self)
        del fields["version"]
        return json.dumps(fields, sort_keys=True)


def read_half(version: str, tag: str | None) -> HalfCopy:
    """Return what the tag ``half`` says.

    Raises
    ------
    ArtifactError
        The version has no half-precision copy.
    """
    try:
        copy = HalfCopy(version=version, **read_json(tag or "{}"))
        if not DIGEST.fullmatch(copy.sha256):
            raise ValueError("its digest is none")
        return copy
    except (ValueError, TypeError) as error:
        raise ArtifactError(
            f"Version {version} has no half-precision copy; make one with compress_version."
        ) from error


def write_half(source: Path, target: Path) -> None:
    """Write a weights file with its 32 and 64 bit floats as 16 bit ones; the rest stays.

    Raises
    ------
    ArtifactError
        A number is too large for 16 bits; nothing is left at `target`.
    """
    header = read_header(source, shown=source)
    metadata = header.pop("__metadata__", None)
    content, parts, rows, end = source.read_bytes(), [], {}, 0
    start = 8 + int.from_bytes(content[:8], "little")
    for name, row in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        first, last = row["data_offsets"]
        code, data = _halved(name, row["dtype"], content[start + first : start + last])
        parts.append(data)
        rows[name] = {**row, "dtype": code, "data_offsets": [end, end + len(data)]}
        end += len(data)
    fields: dict[str, Any] = ({"__metadata__": metadata} if metadata else {}) | rows
    text = json.dumps(fields, separators=(",", ":"), ensure_ascii=False).encode()
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
            f"The array {name} holds numbers above 65,504, which half precision cannot; keep the "
            "full weights only."
        )
    return "F16", half.tobytes()
