# SPDX-License-Identifier: Apache-2.0
"""The retraining loop: run a session, take the next request, run its session."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import nullcontext
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

    The first session serves the request that is pending at the start, or whose session a crash
    interrupted, if there is one.

    Parameters
    ----------
    run_session : Callable[[int, RetrainRequest | None], T]
        Runs one training session, given its number, from 1, and the request that it serves, if any.
    manager : RetrainingManager
        Where requests are taken from.
    max_retrains : int
        Sessions after the first; a request that is pending then stays pending. Ignored with
        ``continuous``.
    continuous : bool
        Wait for the next request instead of ending when there is none.
    completed : Callable[[RetrainRequest], bool]
        Called for a request whose server crashed; returns whether its session finished all the
        same, so that it is not run twice.
    unfinished : Callable[[], bool]
        Returns whether a session without a request was interrupted. Then the first session resumes
        it, before any request is served.

    Returns
    -------
    list[T]
        What each session returned.
    """
    results = list[T]()
    resume, wait = unfinished(), 0.0
    while True:
        # Take the next request, unless the first session has to resume an interrupted one.
        request = None if resume and not results else manager.take(wait=wait)
        # A server may crash after its session finished, and before it marked the request as done.
        if request is not None and request.cut_short and completed(request):
            with manager.running(request):
                logger.info("request %s was served before the crash", request.id)
            continue
        if request is None and results:
            return results
        # Serve it.
        with manager.running(request) if request is not None else nullcontext():
            results.append(run_session(len(results) + 1, request))
        if not continuous and len(results) > max_retrains:
            return results
        wait = FOREVER if continuous else 0.0
