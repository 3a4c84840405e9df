# SPDX-License-Identifier: Apache-2.0
"""When to ask for retraining: requests, and pure rules that make them from scores."""

from __future__ import annotations

import math
import uuid
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from enum import StrEnum
from typing import Literal

Mode = Literal["max", "min"]


class TriggerKind(StrEnum):
    """What a request came from."""

    DEGRADATION = "degradation"
    MANUAL = "manual"


@dataclass(frozen=True)
class RetrainRequest:
    """Somebody's or some rule's wish for a training session.

    Attributes
    ----------
    kind : TriggerKind
        What it came from.
    reason : str
        One sentence for people.
    id : str
        32 hexadecimal digits.
    created : datetime
        UTC.
    """

    kind: TriggerKind
    reason: str
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    created: datetime = field(default_factory=lambda: datetime.now(UTC))


@dataclass(frozen=True)
class BestMinusThreshold:
    """Asks when a score is worse than the best one by more than ``threshold``.

    State goes in and comes out: ``update`` returns the next state and, if the score fell, why.

    Attributes
    ----------
    threshold : float
        Distance from the best score, in the metric's unit, more than which is too much.
    mode : "max" | "min"
        Whether more or less is better.
    best, current : float | None
        Best and last score so far.
    """

    threshold: float
    mode: Mode = "max"
    best: float | None = None
    current: float | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.threshold) and self.threshold > 0):
            raise ValueError(
                f"accuracy_threshold is {self.threshold}, expected a positive number, "
                "in the unit of the metric (0.05 for five points of accuracy)."
            )

    def update(self, score: float) -> tuple[BestMinusThreshold, str]:
        """Take a finite score; return the next state and the reason to retrain, if any."""
        sign = 1.0 if self.mode == "max" else -1.0
        better = self.best is None or sign * score > sign * self.best
        best = score if better or self.best is None else self.best
        after = replace(self, best=best, current=score)
        fell = sign * (best - score)
        if fell <= self.threshold:
            return after, ""
        return after, (
            f"the score is {score:.4f}, worse than the best of {best:.4f} by {fell:.4f}, "
            f"more than {self.threshold:g}"
        )
