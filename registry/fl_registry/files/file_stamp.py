# SPDX-License-Identifier: Apache-2.0
"""Detects changes of a file by its identity, size and times, without reading it.

No file is opened here: closing a SQLite file would drop the locks that this process has on it.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

_TICK = 50_000_000  # ns; two changes within a tick of the system's clock may look like one


@dataclass(frozen=True)
class Stamp:
    """Identity, size and times of a file; times in nanoseconds."""

    device: int
    inode: int
    size: int
    modified: int
    changed: int
    taken: int

    def still(self, path: Path) -> bool:
        """Return whether the file at `path` is unchanged since this stamp was taken."""
        now = stamp(path)
        return now is not None and self.settled and now.marks == self.marks

    @property
    def marks(self) -> tuple[int, ...]:
        """Identity, size and times of the file, for comparison."""
        return self.device, self.inode, self.size, self.modified, self.changed

    @property
    def settled(self) -> bool:
        """Whether a later change must have given the file another time."""
        return self.taken - max(self.modified, self.changed) > _TICK


def stamp(path: Path) -> Stamp | None:
    """Return the stamp of a file, None if it does not exist. Take it before reading the file."""
    taken = time.time_ns()
    try:
        stat = path.stat()
    except OSError:
        return None
    return Stamp(stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, taken)


def stamps(*paths: Path) -> tuple[tuple[int, ...], ...] | None:
    """Return marks that change with any of the files; None while one of them may be changing."""
    taken = [stamp(path) for path in paths]
    if any(one is not None and not one.settled for one in taken):
        return None
    return tuple(() if one is None else one.marks for one in taken)
