# SPDX-License-Identifier: Apache-2.0
"""Files and folders that are written whole or not at all, even on a full disk or a power failure.

Unfinished files have names of their own, by which a clean-up recognises those of a killed process,
and by their age. A lock for each would be exact, and one more file to leave behind.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import BinaryIO

_END = ".tmp"
_UNFINISHED = re.compile(r"\..+\.tmp|\.artifact\.uploading\..+")  # the second: MLflow's own


@contextmanager
def replacing(path: Path, *, mode: int = 0o644) -> Iterator[BinaryIO]:
    """Open a file that replaces `path` when the block ends and its bytes are on disk.

    If anything fails before that, an older file at `path` is unchanged and no other file remains.

    Parameters
    ----------
    path : Path
        Where the file goes; its folder exists.
    mode : int
        Permissions of the new file.

    Raises
    ------
    OSError
        It cannot be written.
    """
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=_END, dir=path.parent)
    draft = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        draft.chmod(mode)
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_whole(path: Path, content: bytes, *, mode: int = 0o644) -> None:
    """Write a file, whole or not at all; raises as `replacing` does."""
    with replacing(path, mode=mode) as file:
        file.write(content)


def copy_whole(source: Path, target: Path) -> None:
    """Copy a file, whole or not at all; raises as `replacing` does."""
    with source.open("rb") as content, replacing(target) as file:
        shutil.copyfileobj(content, file)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder that becomes `path` when the block ends and its files are on disk.

    If several processes make the same folder, the first one's is used and the others' are removed.
    If anything fails, nothing remains.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with scratch_folder(path.parent, name=path.name) as scratch:
        draft = scratch / path.name
        draft.mkdir()
        yield draft
        if hasattr(os, "sync"):
            os.sync()  # for many small files far quicker than one by one
        try:
            draft.rename(path)
        except OSError:
            if not path.is_dir():
                raise
    sync_folder(path.parent)


@contextmanager
def scratch_folder(parent: Path, *, name: str = "work") -> Iterator[Path]:
    """Yield an empty folder below `parent` that is removed when the block ends."""
    parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{name}.", suffix=_END, dir=parent) as folder:
        yield Path(folder)


def sync_folder(folder: Path) -> None:
    """Write a folder's list of files to disk."""
    if os.name != "posix":
        return  # on Windows a folder cannot be opened, and a rename needs no sync
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def unfinished(folder: Path, *, before: datetime) -> list[Path]:
    """Return unfinished files and folders that were not written to since `before`, sorted.

    A running process writes to its own, so they are newer.
    """
    paths = []
    for place, folders, files in os.walk(folder):
        names = [name for name in (*folders, *files) if _UNFINISHED.fullmatch(name)]
        folders[:] = [name for name in folders if name not in names]
        for path in (Path(place, name) for name in names):
            with suppress(OSError):  # it was renamed or removed meanwhile
                if path.lstat().st_mtime < before.timestamp():
                    paths.append(path)
    return sorted(paths)


def remove_unfinished(folder: Path, *, older_than: timedelta, now: datetime) -> list[Path]:
    """Remove what `unfinished` lists, and return what was removed."""
    paths = unfinished(folder, before=now - older_than)
    for path in paths:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    return [path for path in paths if not path.exists()]
