# SPDX-License-Identifier: Apache-2.0
"""The retraining loop: run a session, look whether somebody asked for another, run it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from fl_app.retraining.manager import RetrainingManager
from fl_app.retraining.triggers import RetrainRequest

T = TypeVar("T")


def train_and_retrain(
    run_session: Callable[[int, RetrainRequest | None], T],
    manager: RetrainingManager,
    *,
    max_retrains: int,
) -> list[T]:
    """Run a session, and one more for each request that waits at its end.

    Parameters
    ----------
    run_session : Callable[[int, RetrainRequest | None], T]
        Runs one training session: its number, from 1, and the request that caused it, None for the
        first.
    manager : RetrainingManager
        The mailbox that requests are taken from.
    max_retrains : int
        Sessions after the first; a request that still waits then is left waiting.

    Returns
    -------
    list[T]
        What each session returned.
    """
    results = [run_session(1, None)]
    while len(results) <= max_retrains:
        request = manager.take()
        if request is None:
            break
        with manager.running(request):
            results.append(run_session(len(results) + 1, request))
    return results
