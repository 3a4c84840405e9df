# SPDX-License-Identifier: Apache-2.0
"""The user's function that requests are handed to: one call at a time, in a thread of its own."""

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
    """Calls back, and knows how long that has taken.

    Parameters
    ----------
    running : Callable[[RetrainRequest], AbstractContextManager[None]]
        The time in which a request is being served.
    """

    def __init__(self, running: Callable[[RetrainRequest], AbstractContextManager[None]]) -> None:
        self._running = running
        self._called: tuple[RetrainRequest, float] | None = None

    def start(self, callback: Callback, request: RetrainRequest) -> None:
        """Hand the request over; what the callback raises is logged and marks it as failed."""
        threading.Thread(target=self._serve, args=(callback, request), daemon=True).start()

    def tell(self) -> None:
        """Log for how long the present call has been going on, if there is one."""
        if self._called is not None:
            request, began = self._called
            seconds = time.monotonic() - began
            logger.info("the retrain callback has had request %s for %.1f s", request.id, seconds)

    def _serve(self, callback: Callback, request: RetrainRequest) -> None:
        began = time.monotonic()
        self._called = (request, began)
        try:
            with self._running(request):
                try:
                    callback(request)
                finally:
                    self._called = None
        except Exception as error:  # noqa: BLE001 - somebody else's code: the monitor goes on
            said = trace(error)
            logger.warning("the retrain callback failed on request %s: %s", request.id, said)
        logger.info("request %s took %.1f s", request.id, time.monotonic() - began)
