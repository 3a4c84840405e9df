# SPDX-License-Identifier: Apache-2.0
"""What is wrong with the registry, looked at beside the requests, which must not wait for it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from fl_registry import ModelStore, RegistryError

LOOK_AGAIN = 10.0
"""Seconds for which a result is good enough."""
PATIENCE, FIRST_PATIENCE = 0.5, 3.0
"""Seconds that a caller waits for a new result, and for the first one."""
UNKNOWN = "It has not answered since this server was started."


class StoreWatch:
    """Looks in a thread whether a registry answers, and whether people deleted what is in use.

    Parameters
    ----------
    store : ModelStore
        The registry.
    clock : Callable[[], float]
        Seconds that only grow.
    """

    def __init__(self, store: ModelStore, clock: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._clock = clock
        self._lock = threading.Lock()
        self._problems: tuple[str, ...] = (UNKNOWN,)
        self._looked = float("-inf")
        self._thread: threading.Thread | None = None

    def problems(self) -> tuple[str, ...]:
        """Return what was wrong at the last look, in sentences; none is usual."""
        with self._lock:
            idle = self._thread is None or not self._thread.is_alive()
            if idle and self._clock() - self._looked >= LOOK_AGAIN:
                self._thread = threading.Thread(target=self._look, name="fl-app-look", daemon=True)
                self._thread.start()
            thread = self._thread
        if thread is not None:
            thread.join(FIRST_PATIENCE if self._problems == (UNKNOWN,) else PATIENCE)
        return self._problems

    def _look(self) -> None:
        try:
            self._store.ping()
            self._problems = self._store.losses()
        except RegistryError as error:
            self._problems = (str(error),)
        self._looked = self._clock()
