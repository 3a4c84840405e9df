# SPDX-License-Identifier: Apache-2.0
"""The retraining loop: run a session, look whether somebody asked for another, run it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

from fl_app.retraining.manager import RetrainingManager
from fl_app.retraining.requests import RetrainRequest

logger = logging.getLogger("flwr.fl_app")

T = TypeVar("T")

FOREVER = 3600.0 * 24 * 365


def train_and_retrain(
    run_session: Callable[[int, RetrainRequest | None], T],
    manager: RetrainingManager,
    *,
    max_retrains: int,
    continuous: bool = False,
    completed: Callable[[RetrainRequest], bool] = lambda request: False,
    unfinished: Callable[[], bool] = lambda: False,
) -> list[T]:
    """Run a session, and one more for each request.

    A request that was waiting before, or whose session a crash cut short, is served by the first
    session.

    Parameters
    ----------
    run_session : Callable[[int, RetrainRequest | None], T]
        Runs one training session: its number, from 1, and the request that it serves, if any.
    manager : RetrainingManager
        The mailbox that requests are taken from.
    max_retrains : int
        Sessions after the first; a request that still waits then is left waiting. With
        ``continuous`` there is no such limit.
    continuous : bool
        Wait for the next request instead of ending when there is none.
    completed : Callable[[RetrainRequest], bool]
        Asked for a request whose server crashed: whether its session came to its end all the same,
        so that it is not run twice.
    unfinished : Callable[[], bool]
        Whether a session that served no request was cut short: then the first session goes on with
        it, before any request is served.

    Returns
    -------
    list[T]
        What each session returned.
    """

    def next_request(wait: float) -> RetrainRequest | None:
        request = manager.take(wait=wait)
        while request is not None and request.cut_short and completed(request):
            with manager.running(request):
                logger.info("request %s had been served before the crash", request.id)
            request = manager.take(wait=wait)
        return request

    request, results = None if unfinished() else next_request(0.0), list[T]()
    while True:
        if request is None:
            results.append(run_session(len(results) + 1, None))
        else:
            with manager.running(request):
                results.append(run_session(len(results) + 1, request))
        if not continuous and len(results) > max_retrains:
            return results
        request = next_request(FOREVER if continuous else 0.0)
        if request is None:
            return results
