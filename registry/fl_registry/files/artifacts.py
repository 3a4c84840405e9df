# SPDX-License-Identifier: Apache-2.0
"""The files of a version: checked and described when they are saved, read, halved and removed.

Where they are stored is the concern of a `fl_registry.backend.VersionFiles`.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field, TypeAdapter
from pydantic_core import to_json
from safetensors import SafetensorError, safe_open

from fl_registry.errors import ArtifactError, foreign_errors
from fl_registry.files.atomic import scratch_folder, write_whole
from fl_registry.files.digests import file_digest
from fl_registry.files.weights import ArrayRow, Header, read_header

WEIGHTS_FILE = "weights.safetensors"
SPEC_FILE = "spec.json"
HALF_FILE = "weights_fp16.safetensors"
SCORES_FILE = "per_example.json"
DIGEST = re.compile(r"\A[0-9a-f]{64}\Z")
_CHECKPOINTS = (".pt", ".pth")
# For each dtype the unsigned integer as which its numbers are read, and the bits that are all set
# only in NaN and infinity (IEEE 754; OCP 8-bit floating point). Complex numbers are two floats.
_NOT_FINITE = {
    "F64": ("<u8", 0x7FF0_0000_0000_0000),
    "F32": ("<u4", 0x7F80_0000),
    "C64": ("<u4", 0x7F80_0000),
    "F16": ("<u2", 0x7C00),
    "BF16": ("<u2", 0x7F80),
    "F8_E5M2": ("<u1", 0x7C),
    "F8_E4M3": ("<u1", 0x7F),
}
_PART = 1 << 16  # numbers that are checked together: they stay in the processor's cache
_WIDE = {"F32": "<f4", "F64": "<f8"}  # what becomes 16 bit floats in a half-precision copy
_LARGEST = 64 << 20  # bytes; descriptions and results per example are far smaller


@dataclass(frozen=True)
class Artifact:
    """A folder that holds exactly the files of a version.

    Attributes
    ----------
    folder : Path
        Holds the weights, their description and, if there are any, the results per example.
    sha256 : str
        Digest of the weights file.
    size : int
        Bytes of the weights file.
    scores_sha256 : str
        Digest of the results per example; empty if there are none.
    """

    folder: Path
    sha256: str
    size: int
    scores_sha256: str = ""


@dataclass(frozen=True)
class Removal:
    """The result of removing one version's files: bytes freed, and why any were left."""

    freed: int = 0
    left: str = ""


@contextmanager
def prepared(
    model_path: str | Path, scratch: Path, *, per_example: Mapping[str, float] | None = None
) -> Iterator[Artifact]:
    """Check a model file and store it, with its description, in a new folder below `scratch`.

    Raises
    ------
    ArtifactError
        The file is missing, empty, damaged, unsafe to read, or not a model file.
    StoreUnavailable
        The disk is full, or `scratch` cannot be written.
    """
    source = _checked_path(model_path)
    with ExitStack() as stack:
        with foreign_errors(f"prepare {source.name} in {scratch}"):
            folder = stack.enter_context(scratch_folder(scratch, name="save"))
            artifact = _laid_out(source, folder, per_example)
        yield artifact


def _laid_out(source: Path, folder: Path, per_example: Mapping[str, float] | None) -> Artifact:
    weights = folder / WEIGHTS_FILE
    if source.suffix.lower() in _CHECKPOINTS:
        from fl_registry.files.pt_import import import_checkpoint

        import_checkpoint(source, weights)
    else:
        try:
            os.link(source, weights)
        except OSError:  # another file system, or one without hard links
            shutil.copyfile(source, weights)
    header = checked_header(weights, shown=source)
    _require_finite(weights, header, source)
    digest = file_digest(weights)
    arrays = [
        {"name": name, "dtype": header.rows[name].dtype_name, "shape": header.rows[name].shape}
        for name in header.order
    ]
    model = header.manifest.model if header.manifest is not None else {}
    spec = {"format": "fl-app-spec/1", "sha256": digest, "arrays": arrays, "model": model}
    (folder / SPEC_FILE).write_text(json.dumps(spec), encoding="utf-8")
    of_scores = ""
    if per_example:
        text = json.dumps(per_example, sort_keys=True, separators=(",", ":"))
        (folder / SCORES_FILE).write_text(text, encoding="utf-8")
        of_scores = file_digest(folder / SCORES_FILE)
    return Artifact(folder, digest, weights.stat().st_size, of_scores)


def _checked_path(model_path: str | Path) -> Path:
    try:
        source = Path(model_path).expanduser().resolve(strict=True)
        size = source.stat().st_size
    except (OSError, RuntimeError, ValueError) as error:  # the last two: it cannot be a path
        raise ArtifactError(
            f"There is no model file at {str(model_path)[:300]}; check the path."
        ) from error
    if not source.is_file():
        what = "a folder" if source.is_dir() else "not a file"
        raise ArtifactError(f"{source} is {what}; give the path of a .safetensors or .pt file.")
    if size == 0:
        raise ArtifactError(f"The model file {source} is empty; save the model again.")
    return source


def checked_header(path: Path, *, shown: Path) -> Header:
    """Return the header of a model file that holds at least one array.

    Raises
    ------
    ArtifactError
        The file is damaged, or could mean different things to different readers.
    """
    try:
        with path.open("rb") as file:
            header = read_header(file)
        with safe_open(path, framework="numpy") as loadable:  # as it will be by safetensors
            loadable.keys()
    except (ValueError, SafetensorError) as error:
        raise ArtifactError(
            f"{shown} is not a usable model file: {error}; expected .safetensors, or a .pt file "
            "that holds a plain state dict."
        ) from error
    if not header.rows:
        raise ArtifactError(f"The model file {shown} holds no arrays; save the model again.")
    return header


def _require_finite(path: Path, header: Header, shown: Path) -> None:
    """Refuse NaN and infinity, from which no later round recovers; the file is read in parts."""
    content = np.memmap(path, np.uint8, mode="r")[header.data_start :].view(np.ndarray)
    placed = sorted(header.rows.items(), key=lambda item: item[1].data_offsets)
    for code, neighbours in groupby(placed, key=lambda item: item[1].dtype):
        if code not in _NOT_FINITE:
            continue
        # Arrays of one dtype that follow each other are read as one: a call costs more than most.
        (dtype, bits), rows = _NOT_FINITE[code], [*neighbours]
        start, end = rows[0][1].data_offsets[0], rows[-1][1].data_offsets[1]
        values = content[start:end].view(dtype)
        for part in range(0, values.size, _PART):
            wrong = values[part : part + _PART] & bits == bits
            if wrong.any():
                place = start + (part + int(wrong.argmax())) * values.itemsize
                name = next(name for name, row in rows if row.data_offsets[1] > place)
                raise ArtifactError(
                    f"The array {name!r:.60} of {shown} holds NaN or infinity; save finite "
                    "weights, such as those of an earlier round."
                )


def read_small(path: Path) -> bytes | None:
    """Return the content of a file; None for one that is larger than any of ours."""
    with path.open("rb") as file:
        content = file.read(_LARGEST + 1)
    return content if len(content) <= _LARGEST else None


def remove_folder(folder: Path) -> Removal:
    """Remove a folder and return the bytes that are really free."""
    before = own_bytes(folder)
    shutil.rmtree(folder, ignore_errors=True)
    after = own_bytes(folder)
    return Removal(before - after, f"{folder} could not be removed" if folder.exists() else "")


def own_bytes(folder: Path) -> int:
    """Return the bytes that go with the folder: a file with another name elsewhere stays."""
    found = [path.lstat() for path in folder.rglob("*") if path.is_symlink() or path.is_file()]
    return sum(file.st_size for file in found if file.st_nlink == 1)


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
        return json.dumps(_COPIES.dump_python(self, exclude={"version"}))


_COPIES = TypeAdapter(HalfCopy)


def read_half(version: str, tag: str | None) -> HalfCopy:
    """Return the copy that the tag ``half`` describes.

    Raises
    ------
    ArtifactError
        The version has no half-precision copy.
    """
    try:
        return _COPIES.validate_python({**json.loads(tag or "{}"), "version": version})
    except (ValueError, TypeError, RecursionError) as error:
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
