# SPDX-License-Identifier: Apache-2.0
"""Model files before they are registered: checks, digest and description. Does not use MLflow."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fl_registry.errors import ArtifactError, foreign_errors
from fl_registry.files.atomic import scratch_folder
from fl_registry.files.digests import file_digest
from fl_registry.files.safetensors_header import Header, Manifest, read_header

WEIGHTS_FILE = "weights.safetensors"
SPEC_FILE = "spec.json"
HALF_FILE = "weights_fp16.safetensors"
SCORES_FILE = "per_example.json"
DIGEST = re.compile(r"[0-9a-f]{64}")
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
    weights, scores = folder / WEIGHTS_FILE, folder / SCORES_FILE
    if source.suffix.lower() in _CHECKPOINTS:
        from fl_registry.files.pt_import import import_checkpoint

        import_checkpoint(source, weights)
    else:
        _link_or_copy(source, weights)
    header = checked_header(weights, shown=source)
    _require_readable(weights, source)
    _require_finite(weights, header, source)
    digest = file_digest(weights)
    spec = {"format": "fl-app-spec/1", "sha256": digest, **describe(header, shown=source)}
    (folder / SPEC_FILE).write_text(json.dumps(spec), encoding="utf-8")
    if per_example:
        text = json.dumps(per_example, sort_keys=True, separators=(",", ":"))
        scores.write_text(text, encoding="utf-8")
    of_scores = file_digest(scores) if per_example else ""
    return Artifact(folder, digest, weights.stat().st_size, of_scores)


def describe(header: Header, *, shown: Path) -> dict[str, Any]:
    """Return the arrays (name, dtype, shape, in the model's order) and the model.

    Raises
    ------
    ArtifactError
        The manifest in the header is damaged.
    """
    try:
        manifest = header.manifest() or Manifest(list(header.rows), {})
    except ValueError as error:
        raise _damaged(shown, str(error)) from error
    rows = ((name, header.rows[name]) for name in manifest.order)
    arrays = [{"name": name, "dtype": r.dtype_name, "shape": r.shape} for name, r in rows]
    return {"arrays": arrays, "model": manifest.model}


def _checked_path(model_path: str | Path) -> Path:
    try:
        source = Path(model_path).expanduser()
    except RuntimeError:  # ~name of a user that does not exist
        source = Path(model_path)
    try:
        is_folder, is_file = source.is_dir(), source.is_file()
    except OSError:  # the name is too long, or a folder may not be read
        is_folder = is_file = False
    if is_folder:
        raise ArtifactError(f"{source} is a folder; give the path of a .safetensors or .pt file.")
    if not is_file:
        raise ArtifactError(f"There is no model file at {str(source)[:300]}; check the path.")
    if source.stat().st_size == 0:
        raise ArtifactError(f"The model file {source} is empty; save the model again.")
    return source.resolve()


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without hard links
        shutil.copyfile(source, target)


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
    except ValueError as error:
        raise _damaged(shown, str(error)) from error
    if not header.rows:
        raise ArtifactError(f"The model file {shown} holds no arrays; save the model again.")
    return header


def _require_readable(path: Path, shown: Path) -> None:
    """Refuse a file that safetensors would refuse later, when the version is loaded."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            file.keys()
    except SafetensorError as error:
        raise _damaged(shown, "safetensors cannot read it") from error


def _require_finite(path: Path, header: Header, shown: Path) -> None:
    """Refuse NaN and infinity, from which no later round recovers; the file is read in parts."""
    content = np.memmap(path, np.uint8, mode="r")[header.data_start :]
    for name, row in header.rows.items():
        if row.dtype not in _NOT_FINITE:
            continue
        dtype, bits = _NOT_FINITE[row.dtype]
        values = content[slice(*row.data_offsets)].view(dtype)
        for part in range(0, values.size, _PART):
            if np.any(values[part : part + _PART] & bits == bits):
                raise ArtifactError(
                    f"The array {name!r:.60} of {shown} holds NaN or infinity; save finite "
                    "weights, such as those of an earlier round."
                )


def _damaged(path: Path, reason: str) -> ArtifactError:
    return ArtifactError(
        f"{path} is not a usable model file: {reason}; expected .safetensors, or a .pt file that "
        "holds a plain state dict."
    )
