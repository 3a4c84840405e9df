# SPDX-License-Identifier: Apache-2.0
"""Files and folders that are written whole or not at all, even on a full disk or a power failure.

Unfinished files and folders have names of their own, and are locked by the process that writes
them. The lock ends with the process, so a clean-up recognises what a killed one has left.
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

try:
    import fcntl
except ImportError:  # Windows, where age must tell
    fcntl = None  # type: ignore[assignment]

ABANDONED_AFTER = timedelta(hours=1)
"""Age from which an unfinished file belongs to no process, where locks do not tell."""
_SETTLED = timedelta(seconds=1)  # a new file is locked by then
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
        with _in_use(draft):
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
    """Yield an empty folder that is removed when the block ends; `parent` is made if need be.

    Both are for their owner alone.
    """
    parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    made = tempfile.TemporaryDirectory(prefix=f".{name}.", suffix=_END, dir=parent)
    with made as folder, _in_use(Path(folder)):
        yield Path(folder)


@contextmanager
def _in_use(path: Path) -> Iterator[None]:
    """Lock a file or a folder until the block ends, or the process does."""
    if fcntl is None:
        yield
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _is_locked(path: Path) -> bool | None:
    """Return whether a process writes to an unfinished file or folder; None if that is unknown."""
    if fcntl is None or not path.name.endswith(_END) or path.is_symlink():
        return None
    try:
        handle = os.open(path, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        finally:
            os.close(handle)
    except BlockingIOError:
        return True
    except OSError:
        return None
    return False


def sync_folder(folder: Path) -> None:
    """Write a folder's list of files to disk."""
    if os.name != "posix":
        return  # on Windows a folder cannot be opened, and a rename needs no sync
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def abandoned(folder: Path, *, now: datetime) -> list[Path]:
    """Return unfinished files and folders below a folder that no process writes to, sorted."""
    paths = []
    for place, folders, files in os.walk(folder):
        names = [name for name in (*folders, *files) if _UNFINISHED.fullmatch(name)]
        folders[:] = [name for name in folders if name not in names]
        for path in (Path(place, name) for name in names):
            with suppress(OSError):  # it was renamed or removed meanwhile
                age = now.timestamp() - path.lstat().st_mtime
                locked = _is_locked(path)
                least = ABANDONED_AFTER if locked is None else _SETTLED
                if not locked and age > least.total_seconds():
                    paths.append(path)
    return sorted(paths)


def remove_abandoned(folder: Path, *, now: datetime) -> list[Path]:
    """Remove what `abandoned` lists, and return what was removed."""
    paths = abandoned(folder, now=now)
    for path in paths:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    return [path for path in paths if not path.exists()]
