# SPDX-License-Identifier: Apache-2.0
"""What a file looks like from outside: tells cheaply, without reading it, that it did not change.

A file is never opened here: closing a SQLite file would drop the locks that this process has on it.
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
        """Return whether the file at `path` is as it was when this stamp was taken."""
        now = stamp(path)
        return now is not None and self.settled and now.marks == self.marks

    @property
    def marks(self) -> tuple[int, ...]:
        """All but the time at which it was taken."""
        return self.device, self.inode, self.size, self.modified, self.changed

    @property
    def settled(self) -> bool:
        """Whether any later change must have given the file another time."""
        return self.taken - max(self.modified, self.changed) > _TICK


def stamp(path: Path) -> Stamp | None:
    """Return the stamp of a file, or None where there is none. Take it before reading the file."""
    taken = time.time_ns()
    try:
        found = path.stat()
    except OSError:
        return None
    return Stamp(
        found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns, taken
    )


def stamps(*paths: Path) -> tuple[tuple[int, ...], ...] | None:
    """Return marks that change whenever one of the files does; None while one may be changing."""
    found = [stamp(path) for path in paths]
    if any(one is not None and not one.settled for one in found):
        return None
    return tuple(() if one is None else one.marks for one in found)
