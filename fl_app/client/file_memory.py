# SPDX-License-Identifier: Apache-2.0
"""What was computed from files, on disk, so that a new process need not read unchanged files again.

A deployed node answers each message in a new process.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from fl_models.pictures import settled_state
from fl_registry.files.atomic import write_whole

logger = logging.getLogger(__name__)

T = TypeVar("T")


class FileMemory:
    """Values by file, valid while the file is unchanged; a context manager that saves new ones.

    A file is unchanged if number, size, and times of modification and change are the same. Values
    of a file that changed in the last two seconds are not kept: another change could have the same
    time. A store that is damaged or cannot be written is made anew by a later process.

    Parameters
    ----------
    store : Path
        The file with the values. Several processes may use it at once: the values that one of
        them loses are computed again.
    clock : Callable[[], float]
        Returns the time in seconds since the epoch.
    """

    def __init__(self, store: Path, *, clock: Callable[[], float] = time.time) -> None:
        self._store, self._clock = store, clock
        self._known = _load(store)
        self._new: dict[str, Any] = {}

    def of(self, file: Path, compute: Callable[[Path], T]) -> T:
        """Return the value of a file, computed only if it is not known; errors are not kept.

        Parameters
        ----------
        compute : Callable[[Path], object]
            Returns what JSON can hold, tuples as lists. The store has the values of one function.
        """
        state = settled_state(file, clock=self._clock)  # before the file is read
        if state is None:
            return compute(file)
        known = self._known.get(str(file))
        if known is None or known[0] != list(state):
            known = self._new[str(file)] = self._known[str(file)] = [list(state), compute(file)]
        value: T = known[1]
        return value

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if not self._new:
            return
        # Read again, for the values that others have saved by now; nothing stays of deleted files.
        latest = {**_load(self._store), **self._new}
        existing = {name: value for name, value in latest.items() if Path(name).exists()}
        body = json.dumps(existing).encode()
        try:
            self._store.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            write_whole(self._store, _checksum(body) + b"\n" + body, mode=0o600)
        except OSError as fault:
            logger.warning(
                "%s can't be written, so that the next message reads all files again: %s",
                self._store,
                fault,
            )


def _load(store: Path) -> dict[str, Any]:
    try:
        checksum, _, body = store.read_bytes().partition(b"\n")
    except OSError:
        return {}
    if checksum != _checksum(body):
        return {}
    values: dict[str, Any] = json.loads(body)
    return values


def _checksum(body: bytes) -> bytes:
    return hashlib.sha256(body).hexdigest().encode()


def memory_of(home: Path, kind: str, root: Path) -> Path:
    """Return the store of one kind of values, of one data set, below the app's folder."""
    key = hashlib.sha256(str(root).encode("utf-8", "surrogateescape")).hexdigest()[:16]
    return home / "files" / f"{kind}-{key}.json"
