# SPDX-License-Identifier: Apache-2.0
"""Results read from pictures and labels, kept while a process lives and the files stay the same.

A change is noticed by the file's number, size and times; what is read is not decided here.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterable, Sequence
from functools import lru_cache, wraps
from pathlib import Path
from typing import TypeVar

from fl_models.pictures import label_file

_Kept = TypeVar("_Kept")
_KEPT = 4  # nodes that one process of a simulation may serve in turn
_GRAIN = 2.0  # seconds; the coarsest time stamps of a file system

FileStates = tuple[tuple[int, ...] | None, ...]


def file_states(paths: Iterable[Path]) -> FileStates | None:
    """Return number, size, modification and change time (ns) of each picture and its label file.

    None if one of them has changed within the last seconds: another change right after it could
    bear the same time. A missing file is told apart from any other.
    """
    states = tuple(_state(file) for path in paths for file in (path, label_file(path)))
    newest = max((max(state[2:]) for state in states if state), default=0)
    return None if newest > (time.time() - _GRAIN) * 1e9 else states


def kept_while_unchanged(read: Callable[..., _Kept]) -> Callable[..., _Kept]:
    """Wrap a reader of pictures so that it reads anew only where a file or an argument differs.

    Else its result is one and the same object, which nobody may change. Errors are not kept.

    Parameters
    ----------
    read : Callable[..., object]
        Takes a sequence of pictures, and any hashable arguments by position.
    """

    @lru_cache(maxsize=_KEPT)
    def kept(states: FileStates, paths: tuple[Path, ...], *more: Hashable) -> _Kept:
        return read(paths, *more)

    @wraps(read)
    def reader(paths: Sequence[Path], *more: Hashable) -> _Kept:
        states = file_states(paths)
        return read(paths, *more) if states is None else kept(states, tuple(paths), *more)

    return reader


def _state(file: Path) -> tuple[int, ...] | None:
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
