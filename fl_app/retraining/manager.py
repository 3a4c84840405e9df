# SPDX-License-Identifier: Apache-2.0
"""RetrainingManager: a mailbox for the wish to train again. It never trains by itself."""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import Any

from fl_app.retraining.policy import RetrainPolicy, Suppressed, decide
from fl_app.retraining.triggers import BestMinusThreshold, Mode, RetrainRequest, TriggerKind

logger = logging.getLogger("flwr.fl_app")

MAX_ERRORS_IN_A_ROW = 4
"""Missing or non-finite scores in a row after which the monitor warns that it is blind."""


class RetrainingManager:
    """Takes scores and people's wishes, and keeps at most one request waiting.

    ``train_and_retrain`` takes requests out and starts sessions. Safe to use from many threads.

    Parameters
    ----------
    accuracy_threshold : float
        Fall below the best score, in the metric's unit, that asks for retraining.
    min_rounds_between_retrain : int
        Rounds after a retraining before a rule may ask again; people always may.
    mode : "max" | "min"
        Whether more or less of the score is better.

    Raises
    ------
    ValueError
        If a threshold or interval makes no sense.
    """

    def __init__(
        self,
        accuracy_threshold: float = 0.05,
        min_rounds_between_retrain: int = 10,
        *,
        mode: Mode = "max",
    ) -> None:
        self.accuracy_threshold = accuracy_threshold
        self._rule = BestMinusThreshold(accuracy_threshold, mode)
        self._policy = RetrainPolicy(min_rounds_between_retrain)
        self._lock = threading.Lock()
        self._pending: RetrainRequest | None = None
        self._running: RetrainRequest | None = None
        self._rounds_since_retrain: int | None = None
        self._errors_in_a_row = 0
        self._history: list[dict[str, Any]] = []

    @property
    def best_accuracy(self) -> float | None:
        """Best score so far; None before the first."""
        return self._rule.best

    @property
    def current_accuracy(self) -> float | None:
        """Last score; None before the first."""
        return self._rule.current

    @property
    def trigger_history(self) -> list[dict[str, Any]]:
        """Every request, oldest first, with its outcome: pending, running, done or suppressed."""
        with self._lock:
            return [dict(entry) for entry in self._history]

    def update_metrics(self, accuracy: float, round_num: int) -> None:
        """Take the score of a round; a fall becomes a request.

        A score that is not finite is an error, never a value: it changes neither best nor current.
        """
        with self._lock:
            if self._rounds_since_retrain is not None:
                self._rounds_since_retrain += 1
            if not math.isfinite(accuracy):
                self._errors_in_a_row += 1
                if self._errors_in_a_row == MAX_ERRORS_IN_A_ROW:
                    logger.warning(
                        "the score was not finite %d times in a row; degradation goes unseen",
                        MAX_ERRORS_IN_A_ROW,
                    )
                return
            self._errors_in_a_row = 0
            self._rule, fall = self._rule.update(accuracy)
            if fall:
                reason = f"in round {round_num} {fall}"
                self._put(RetrainRequest(TriggerKind.DEGRADATION, reason))

    def manual_trigger(self, reason: str = "") -> str:
        """Ask for retraining; returns the id of the request, or of the one that waits already."""
        with self._lock:
            return self._put(RetrainRequest(TriggerKind.MANUAL, reason or "a person asked"))

    def take(self) -> RetrainRequest | None:
        """The request that waits, if any; it is in flight from now on, until ``running`` ends."""
        with self._lock:
            self._running, self._pending = self._pending, None
            if self._running is not None:
                self._rounds_since_retrain = 0
                # A session for a fallen score is measured against its own start.
                self._rule = replace(self._rule, best=None, current=None)
                self._mark(self._running, "running")
            return self._running

    @contextmanager
    def running(self, request: RetrainRequest) -> Iterator[None]:
        """The time in which ``request`` is being served."""
        outcome = "failed"
        try:
            yield
            outcome = "done"
        finally:
            with self._lock:
                self._running = None
                self._mark(request, outcome)

    def _put(self, request: RetrainRequest) -> str:
        decided = decide(
            self._policy,
            request,
            pending=self._pending,
            rounds_since_retrain=self._rounds_since_retrain,
        )
        if isinstance(decided, Suppressed):
            self._remember(request, "suppressed", decided.why)
            logger.info("retraining is not asked for: %s (%s)", decided.why, request.reason)
            return self._pending.id if self._pending is not None else request.id
        self._pending = decided
        self._remember(decided, "pending", "")
        logger.info("retraining is asked for: %s", decided.reason)
        return decided.id

    def _remember(self, request: RetrainRequest, outcome: str, why: str) -> None:
        self._history.append({**asdict(request), "outcome": outcome, "why": why})

    def _mark(self, request: RetrainRequest, outcome: str) -> None:
        for entry in self._history:
            if entry["id"] == request.id:
                entry["outcome"] = outcome
