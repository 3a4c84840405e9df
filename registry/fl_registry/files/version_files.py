# SPDX-License-Identifier: Apache-2.0
"""Reading, measuring and removing the files of a version in a folder."""

from __future__ import annotations

import shutil
from pathlib import Path

from fl_registry.retention import Removal

_LARGEST = 64 << 20  # bytes; descriptions and results per example are far smaller


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
