# SPDX-License-Identifier: Apache-2.0
"""A process whose disk fails, once at each place where it can: run as `disk_faults.py EVERY CASE…`.

It tries every EVERY-th fault of each case and prints as JSON what was not as it must be: files that
were there have their digest, nothing half done is left, the error is one that callers know, and
the next try, with room, works.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import resource
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CHANGES = ("os.rename", "os.link", "os.mkdir", "os.chmod", "os.truncate")
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


@dataclass
class Case:
    """Something that writes, and what may come of it where the disk fails.

    Attributes
    ----------
    write : Callable[[], object]
        Writes; the same each time.
    errors : tuple[type[BaseException], ...]
        What it may raise then; nothing where it must go on.
    ignored : tuple[str, ...]
        Endings of files that databases and locks change by themselves.
    check : Callable[[], object]
        Raises if what can be read is not what was written before.
    """

    write: Callable[[], object]
    errors: tuple[type[BaseException], ...] = ()
    ignored: tuple[str, ...] = ()
    check: Callable[[], object] = lambda: None


class Faults:
    """Counts changes of the disk below a folder and fails the one that it is told to."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.count, self.fail_at, self.error = str(folder), 0, 0, Exception()
        self.active = False
        sys.addaudithook(self._heard)
        self._fsync, os.fsync = os.fsync, self._synced  # type: ignore[assignment]

    @contextlib.contextmanager
    def at(self, number: int, error: BaseException) -> Iterator[None]:
        self.count, self.fail_at, self.error, self.active = 0, number, error, True
        try:
            yield
        finally:
            self.active = False

    def _heard(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.active:
            return
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITING
        if (writes or event in CHANGES) and self._is_here(arguments[0]):
            self._step()

    def _synced(self, handle: int) -> None:
        # A folder that cannot be synced comes after the rename; test_atomic.py has that.
        if self.active and not stat.S_ISDIR(os.fstat(handle).st_mode):
            self._step()
        self._fsync(handle)

    def _is_here(self, path: object) -> bool:
        if not isinstance(path, str | bytes | os.PathLike):
            return False
        return str(Path(os.fsdecode(path)).absolute()).startswith(self.folder)

    def _step(self) -> None:
        self.count += 1
        if self.count == self.fail_at:
            raise self.error


@dataclass
class Outcome:
    """What a case came to."""

    faults: int = 0
    survived: int = 0
    problems: list[str] = field(default_factory=list)


def snapshot(folder: Path, ignored: tuple[str, ...]) -> dict[str, str]:
    """Return the digest of each file below a folder, and the names of its folders."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_file() and not name.endswith(ignored):
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def attempt(case: Case, folder: Path, what: str, outcome: Outcome) -> None:
    """Write while the disk fails, and note what is not as it must be."""
    before, error = snapshot(folder, case.ignored), None
    try:
        with what_fails(what, folder):
            case.write()
    except Exception as caught:  # noqa: BLE001 - whatever it is, it is told
        error = caught
    outcome.faults += 1
    if error is None:
        outcome.survived += 1
        left = [p for p in snapshot(folder, case.ignored) if ".tmp" in p or "uploading" in p]
    else:
        after = snapshot(folder, case.ignored)
        left = [p for p in {*before, *after} if before.get(p) != after.get(p)]
        told = isinstance(error, case.errors) or "injected" in repr(error)
        if not told or not str(error).strip():
            outcome.problems.append(f"{what}: raised {error!r}")
    outcome.problems += [f"{what}: {name} was changed or left" for name in left]
    try:
        case.check()
    except Exception as caught:  # noqa: BLE001
        outcome.problems.append(f"{what}: what is there cannot be read: {caught!r}")


def what_fails(what: str, folder: Path) -> contextlib.AbstractContextManager[None]:
    kind, number = what.split()
    if kind == "limit":
        return limited(int(number))
    full = OSError(errno.ENOSPC, "No space left on device")
    return FAULTS.at(int(number), full if kind == "full" else RuntimeError("injected"))


@contextlib.contextmanager
def limited(size: int) -> Iterator[None]:
    """Let no file grow beyond a size."""
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))


def tried(case: Case, folder: Path, every: int) -> Outcome:
    case.write()  # the first time, with room: what is there before
    with FAULTS.at(0, Exception()):
        case.write()
    outcome = Outcome()
    largest = max((p.stat().st_size for p in folder.rglob("*") if p.is_file()), default=0)
    sizes = sorted({0, 1, 100, 4096, largest // 2, max(largest - 1, 0)})
    points = [f"limit {size}" for size in sizes]
    points += [f"{kind} {n}" for n in range(1, FAULTS.count + 1) for kind in ("full", "error")]
    for what in points[:: min(every, max(1, len(points) // 4))]:
        attempt(case, folder, what, outcome)
    case.write()
    case.check()
    return outcome


def main(every: int, names: list[str]) -> None:
    from support.disk_writers import CASES

    found = {}
    for name in names:
        folder = Path(os.environ["FL_APP_HOME"]) / name
        folder.mkdir(parents=True)
        tempfile.tempdir = str(folder)  # what is left in the temporary folder is seen too
        outcome = tried(CASES[name](folder), folder, every)
        found[name] = vars(outcome)
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    FAULTS = Faults(Path(os.environ["FL_APP_HOME"]))
    main(int(sys.argv[1]), sys.argv[2:])
