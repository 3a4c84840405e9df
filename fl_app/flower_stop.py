# SPDX-License-Identifier: Apache-2.0
"""Noticing that Flower has stopped this run; Flower tells the ServerApp nothing itself."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

REFUSED = (401, 403)


@contextmanager
def when_stopped(then: Callable[[], None]) -> Iterator[None]:
    """Call ``then``, from another thread, once the SuperLink no longer lets this run speak.

    ``flwr stop`` takes the run's token away. Flower 1.41 interrupts its main thread when that is
    noticed, which ends a deployed ServerApp. In a simulation the ServerApp is another thread, which
    nothing reaches: one that waits would wait for ever. What can be seen from there is that
    Flower's heartbeat thread ends with an exception, within half a minute.
    """
    before = threading.excepthook

    def hook(ended: threading.ExceptHookArgs) -> None:
        answer = getattr(ended.exc_value, "response", None)  # httpx's, as Flower raises them
        if getattr(answer, "status_code", None) in REFUSED:
            then()
        else:
            before(ended)

    threading.excepthook = hook
    try:
        yield
    finally:
        threading.excepthook = before
