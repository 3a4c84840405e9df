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
    """A file's marks, taken without reading it.

    Attributes
    ----------
    marks : tuple[int, ...]
        Identity, size and times (in nanoseconds) of the file.
    settled : bool
        Whether a later change must give the file another time.
    """

    marks: tuple[int, ...]
    settled: bool


def stamp(path: Path) -> Stamp | None:
    """Return the stamp of a file, None if it does not exist. Take it before reading the file."""
    # The file is not opened: closing a SQLite file drops the locks that this process has on it.
    taken = time.time_ns()
    try:
        stat = path.stat()
    except OSError:
        return None
    times = stat.st_mtime_ns, stat.st_ctime_ns
    return Stamp((stat.st_dev, stat.st_ino, stat.st_size, *times), taken - max(times) > _TICK)


def stamps(*paths: Path) -> tuple[tuple[int, ...], ...] | None:
    """Return marks that change with any of the files; None while one of them may be changing."""
    taken = [stamp(path) for path in paths]
    settled = all(one is None or one.settled for one in taken)
    return tuple(() if one is None else one.marks for one in taken) if settled else None


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file, as hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_of(*parts: bytes | memoryview) -> str:
    """Return the SHA-256 of bytes, as hex."""
    whole = hashlib.sha256()
    for part in parts:
        whole.update(part)
    return whole.hexdigest()


@dataclass(frozen=True)
class Weights:
    """A version's weights file and its recorded digest."""

    path: Path
    sha256: str
    version: str


class WholeFiles:
    """Checks digests of files; a file that is unchanged since its last check is not read again."""

    def __init__(self) -> None:
        self._seen: dict[Path, tuple[str, Stamp]] = {}

    def has(self, path: Path, sha256: str) -> bool:
        """Return whether the file exists and has this digest."""
        now = stamp(path)
        if now is None or not path.is_file():
            return False
        if now.settled and self._seen.get(path) == (sha256, now):
            return True
        if file_digest(path) != sha256:
            return False
        self._seen[path] = (sha256, now)
        return True

    def forget(self, path: Path) -> None:
        """Forget a file that was removed."""
        self._seen.pop(path, None)

    def verify(self, weights: Weights) -> Path:
        """Return the path of weights whose content has the digest that was recorded for them.

        Raises
        ------
        ArtifactError
            The file is missing or has changed since it was saved.
        """
        if not self.has(weights.path, weights.sha256):
            raise _unusable(weights)
        return weights.path

    def read(self, weights: Weights) -> bytes:
        """Return the content of weights, read once; raises as `verify` does."""
        now = stamp(weights.path)
        content = b"" if now is None else weights.path.read_bytes()
        if now is None or digest_of(content) != weights.sha256:
            raise _unusable(weights)
        self._seen[weights.path] = (weights.sha256, now)
        return content


def _unusable(weights: Weights) -> ArtifactError:
    changed = "have changed since they were saved" if weights.path.is_file() else "are missing"
    return ArtifactError(
        f"The weights of version {weights.version} {changed} ({weights.path}); restore the file "
        "from a backup, or use another version."
    )
