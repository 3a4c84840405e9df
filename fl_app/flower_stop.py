# SPDX-License-Identifier: Apache-2.0
"""Detects that Flower has stopped this run, which Flower does not report to the ServerApp."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

REFUSED = (401, 403)


@contextmanager
def when_stopped(then: Callable[[], None]) -> Iterator[None]:
    """Call ``then``, from another thread, once the SuperLink rejects this run's requests.

    ``flwr stop`` revokes the run's token. Flower 1.41 then interrupts its main thread, which ends a
    deployed ServerApp. In a simulation the ServerApp runs in another thread, which is not
    interrupted and could wait for ever. There the only sign is that Flower's heartbeat thread ends
    with an exception, within half a minute.
    """
    before = threading.excepthook

    def hook(ended: threading.ExceptHookArgs) -> None:
        # The only public sign of a stop is that the SuperLink rejects a heartbeat.
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
