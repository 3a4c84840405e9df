# SPDX-License-Identifier: Apache-2.0
"""Whether a file is what it was: by its digest, or by its identity, size and times."""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass
from pathlib import Path

from fl_registry.errors import ArtifactError

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
    # The file is not opened: closing a SQLite file drops the locks that this process has on it.
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


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file, as hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_of(content: bytes) -> str:
    """Return the SHA-256 of bytes, as hex."""
    return hashlib.sha256(content).hexdigest()


class WholeFiles:
    """Checks digests of files; a file that is unchanged since its last check is not read again."""

    def __init__(self) -> None:
        self._seen: dict[Path, tuple[str, Stamp]] = {}

    def has(self, path: Path, sha256: str) -> bool:
        """Return whether the file exists and has this digest."""
        digest, seen = self._seen.get(path, ("", None))
        if digest == sha256 and seen is not None and seen.still(path):
            return True
        seen = stamp(path)
        if seen is None or file_digest(path) != sha256:
            return False
        self._seen[path] = (sha256, seen)
        return True

    def verify(self, path: Path, sha256: str, *, version: str) -> Path:
        """Return `path` if its content has the digest that was recorded for `version`.

        Raises
        ------
        ArtifactError
            The file is missing or has changed since it was saved.
        """
        if not path.is_file():
            raise _missing(path, version)
        if not self.has(path, sha256):
            raise _changed(path, version)
        return path

    def read(self, path: Path, sha256: str, *, version: str) -> bytes:
        """Return the content of `path`, read once; raises as `verify` does."""
        seen = stamp(path)
        if seen is None:
            raise _missing(path, version)
        content = path.read_bytes()
        if digest_of(content) != sha256:
            raise _changed(path, version)
        self._seen[path] = (sha256, seen)
        return content


def _missing(path: Path, version: str) -> ArtifactError:
    return ArtifactError(
        f"The weights of version {version} are missing ({path}); restore the file from a "
        "backup, or use another version."
    )


def _changed(path: Path, version: str) -> ArtifactError:
    return ArtifactError(
        f"The weights of version {version} have changed since they were saved ({path}); "
        "restore the file from a backup, or use another version."
    )
