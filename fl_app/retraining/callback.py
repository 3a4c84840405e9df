# SPDX-License-Identifier: Apache-2.0
"""The user's callback for requests: one call at a time, in a thread of its own."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager

from fl_app.retraining.requests import RetrainRequest
from fl_registry.redaction import trace

logger = logging.getLogger("flwr.fl_app")

Callback = Callable[[RetrainRequest], object]


class CallbackThread:
    """Runs the callback and measures how long it takes.

    Parameters
    ----------
    running : Callable[[RetrainRequest], AbstractContextManager[None]]
        Context manager in which a request is being served.
    """

    def __init__(self, running: Callable[[RetrainRequest], AbstractContextManager[None]]) -> None:
        self._running = running
        self._current: tuple[RetrainRequest, float] | None = None

    def start(self, callback: Callback, request: RetrainRequest) -> None:
        """Call back in a new thread; an exception is logged and marks the request as failed."""
        threading.Thread(target=self._serve, args=(callback, request), daemon=True).start()

    def log_duration(self) -> None:
        """Log how long the current call has been running, if there is one."""
        if self._current is not None:
            request, began = self._current
            seconds = time.monotonic() - began
            logger.info("the retrain callback has had request %s for %.1f s", request.id, seconds)

    def _serve(self, callback: Callback, request: RetrainRequest) -> None:
        began = time.monotonic()
        self._current = (request, began)
        try:
            with self._running(request):
                try:
                    callback(request)
                finally:
                    self._current = None
        except Exception as error:  # noqa: BLE001 - the user's code; the monitor continues
            failure = trace(error)
            logger.warning("the retrain callback failed on request %s: %s", request.id, failure)
        logger.info("request %s took %.1f s", request.id, time.monotonic() - began)
