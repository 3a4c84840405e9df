# SPDX-License-Identifier: Apache-2.0
"""Files and folders that appear whole or not at all, also when the disk is full or the power fails.

What is in them is for others to say. Whatever is unfinished has a name that tells so, by which a
clean-up finds what a killed process left.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import BinaryIO

_END = ".tmp"
_UNFINISHED = re.compile(r"\..+\.tmp|\.artifact\.uploading\..+")  # the second: MLflow's own


@contextmanager
def replacing(path: Path, *, mode: int = 0o644) -> Iterator[BinaryIO]:
    """Open a file that takes the place of `path` when the block ends and its bytes are on disk.

    Where anything fails before that, an older file there stays as it is, and no other is left.

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
    """Give an empty folder that is called `path` when the block ends and all in it is on disk.

    Of several processes that make the same folder one wins, and the others' is dropped. Where
    anything fails, nothing is left.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with scratch_folder(path.parent, name=path.name) as scratch:
        draft = scratch / path.name
        draft.mkdir()
        yield draft
        _sync_all()
        try:
            draft.rename(path)
        except OSError:
            if not path.is_dir():
                raise
    sync_folder(path.parent)


@contextmanager
def scratch_folder(parent: Path, *, name: str = "work") -> Iterator[Path]:
    """Give an empty folder below `parent` that goes when the block ends."""
    parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{name}.", suffix=_END, dir=parent) as folder:
        yield Path(folder)


def sync_folder(folder: Path) -> None:
    """Have it on disk which files a folder holds."""
    if os.name != "posix":
        return  # elsewhere a folder can't be opened, and a rename needs no sync
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def unfinished(folder: Path, *, before: datetime) -> list[Path]:
    """Return what was left unfinished below a folder and not touched since `before`, sorted.

    What a process that lives works on is younger, as long as it writes.
    """
    found = []
    for place, folders, files in os.walk(folder):
        left = [name for name in (*folders, *files) if _UNFINISHED.fullmatch(name)]
        folders[:] = [name for name in folders if name not in left]
        found += [path for name in left if _is_older(path := Path(place, name), before)]
    return sorted(found)


def remove_unfinished(folder: Path, *, older_than: timedelta, now: datetime) -> list[Path]:
    """Remove what `unfinished` finds, and return what is gone."""
    found = unfinished(folder, before=now - older_than)
    for path in found:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    return [path for path in found if not path.exists()]


def _is_older(path: Path, moment: datetime) -> bool:
    try:
        return path.lstat().st_mtime < moment.timestamp()
    except OSError:  # it was finished, or removed, meanwhile
        return False


def _sync_all() -> None:
    """Have all on disk: for many small files at once this is far quicker than one by one."""
    if hasattr(os, "sync"):
        os.sync()
