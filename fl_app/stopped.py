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

    ``flwr stop`` takes the run's token away. Flower 1.41's own threads in this process, which send
    heartbeats and the log, end with an exception then, and nothing else does: a ServerApp that
    waits would wait for ever. It is known within half a minute.
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
