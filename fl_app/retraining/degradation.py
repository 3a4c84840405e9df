# SPDX-License-Identifier: Apache-2.0
"""Rules that tell a fallen score from noise: state and score in, next state and reason out."""

from __future__ import annotations

import itertools
import math
import statistics
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, Self

Mode = Literal["max", "min"]

SIGMAS = 8.0
"""Height of the alarm in standard deviations of a round's score."""
CAP = 2.5
"""One round adds at most a 2.5th of the height, so that no single outlier can ring it."""
MAX_AUTOCORRELATION = 0.8
PRIOR_CAP, PRIOR_HEIGHT = 1.6, 4.7
"""While the noise is not known yet: three rounds, each worse by 2.6 thresholds, ring it."""


@dataclass(frozen=True)
class DegradationRule(ABC):
    """What the monitor asks of a rule; a rule is one frozen record, so that it can be kept whole.

    Attributes
    ----------
    threshold : float
        The fall that matters, in the metric's unit.
    mode : "max" | "min"
        Whether more or less is better.
    best, current : float | None
        Best and last score since the baseline was set.
    """

    threshold: float
    mode: Mode = "max"
    best: float | None = None
    current: float | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.threshold) and self.threshold > 0):
            raise ValueError(
                f"accuracy_threshold is {self.threshold}, expected a positive number, in the unit "
                "of the metric (0.05 for five points of accuracy)."
            )

    @property
    @abstractmethod
    def healthy(self) -> bool:
        """Whether the last score is all right."""

    @abstractmethod
    def update(self, score: float) -> tuple[Self, str]:
        """Take a finite score; return the next state and the reason to retrain, if any."""

    @abstractmethod
    def rebase(self, score: float | None) -> Self:
        """Start anew from the score of the version that is served now, if it is known."""

    @property
    def settings(self) -> list[object]:
        """What a kept state must have in common with this rule to be its own."""
        return [type(self).__name__, self.threshold, self.mode]

    def state(self) -> dict[str, Any]:
        """The whole record, as JSON can hold it."""
        return asdict(self)

    def restored(self, state: Mapping[str, Any]) -> Self:
        """This rule with a state that was kept."""
        lists = {name: tuple(v) for name, v in state.items() if isinstance(v, list)}
        return replace(self, **{**state, **lists})

    def _fall(self, baseline: float, score: float) -> float:
        return baseline - score if self.mode == "max" else score - baseline

    def _seen(self, score: float) -> Self:
        better = self.best is None or self._fall(self.best, score) < 0
        return replace(self, best=score if better else self.best, current=score)


@dataclass(frozen=True)
class BestMinusThreshold(DegradationRule):
    """Asks when a score is worse than the best one by more than ``threshold``.

    Simple, and with noise it cries wolf: in 67 of 1,000 rounds where the standard deviation is 0.02
    and the threshold 0.05.
    """

    @property
    def healthy(self) -> bool:
        """Whether the last score is within the threshold."""
        return self.best is None or self._fall(self.best, self.current or 0.0) <= self.threshold

    def update(self, score: float) -> tuple[Self, str]:
        """Take a finite score; return the next state and the reason to retrain, if any."""
        after = self._seen(score)
        best = score if after.best is None else after.best
        fell = self._fall(best, score)
        if fell <= self.threshold:
            return after, ""
        return after, (
            f"the score is {score:.4f}, worse than the best of {best:.4f} by {fell:.4f}, "
            f"more than {self.threshold:g}"
        )

    def rebase(self, score: float | None) -> Self:
        """Start anew from ``score``."""
        return replace(self, best=score, current=score)


@dataclass(frozen=True)
class CappedCusum(DegradationRule):
    """Asks when scores stay below their baseline: a one-sided CUSUM with capped increments.

    The baseline is the median of the first ``warmup`` scores after a promotion, their noise the
    scaled median absolute deviation. Then S <- max(0, S + min(baseline - score - k, h / 2.5)) with
    k = threshold / 2 and h = 8 sigma sqrt((1 + phi) / (1 - phi)), at least ``threshold``, where phi
    is the lag-1 autocorrelation of the first scores; S > h asks. (Page 1954 for the CUSUM; the cap
    and the correction for autocorrelation were chosen by simulation.)

    Until the baseline is known, scores are measured against that of the promoted version: three in
    a row that are worse by far are enough, noise is not.

    Attributes
    ----------
    warmup : int
        Scores that make the baseline.
    prior : float | None
        Score of the promoted version.
    scores : tuple[float, ...]
        The first scores, until there are ``warmup``.
    baseline, height : float | None
        Median of these, and h.
    total : float
        S.
    """

    warmup: int = 40
    prior: float | None = None
    scores: tuple[float, ...] = ()
    baseline: float | None = None
    height: float | None = None
    total: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.warmup < 3:
            raise ValueError(f"warmup is {self.warmup}, expected at least 3 rounds.")

    @property
    def healthy(self) -> bool:
        """Whether nothing has added up since the last score that was all right."""
        return self.total == 0.0

    def update(self, score: float) -> tuple[Self, str]:
        """Take a finite score; return the next state and the reason to retrain, if any."""
        after = self._seen(score)
        if self.baseline is None or self.height is None:
            return after._warming(score)
        fall = self._fall(self.baseline, score)
        total = max(0.0, self.total + min(fall - self.threshold / 2, self.height / CAP))
        if total <= self.height:
            return replace(after, total=total), ""
        return replace(after, total=0.0), self._reason(score, self.baseline)

    def rebase(self, score: float | None) -> Self:
        """Start anew from the promoted version's score."""
        return type(self)(self.threshold, self.mode, score, None, self.warmup, prior=score)

    def _warming(self, score: float) -> tuple[Self, str]:
        """Collect the baseline, with the promoted version's score in its place meanwhile."""
        scores, total, reason = (*self.scores, score), self.total, ""
        if self.prior is not None:
            fall = self._fall(self.prior, score)
            step = min(fall - self.threshold, PRIOR_CAP * self.threshold)
            total = max(0.0, total + step)
            if total > PRIOR_HEIGHT * self.threshold:
                total, reason = 0.0, self._reason(score, self.prior)
        if len(scores) < self.warmup:
            return replace(self, scores=scores, total=total), reason
        baseline, height = _baseline(scores, self.threshold)
        return replace(self, scores=(), baseline=baseline, height=height, total=0.0), reason

    def _reason(self, score: float, baseline: float) -> str:
        fall = self._fall(baseline, score)
        return (
            f"the score stays below its baseline of {baseline:.4f}: it is {score:.4f} now, "
            f"worse by {fall:.4f}, and noise does not explain it"
        )


def _baseline(scores: Sequence[float], threshold: float) -> tuple[float, float]:
    """Median of the scores and the height of the alarm above it."""
    middle = statistics.median(scores)
    deviation = statistics.median(abs(score - middle) for score in scores)
    sigma = max(1.4826 * deviation, statistics.pstdev(scores) / 2, 1e-3)
    mean = statistics.fmean(scores)
    around = [score - mean for score in scores]
    power = sum(value * value for value in around) or 1.0
    lag = sum(a * b for a, b in itertools.pairwise(around)) / power
    phi = min(max(lag + 1.5 / len(scores), 0.0), MAX_AUTOCORRELATION)
    return middle, max(SIGMAS * sigma * math.sqrt((1 + phi) / (1 - phi)), threshold)


RULES: Mapping[str, type[DegradationRule]] = {
    "capped_cusum": CappedCusum,
    "best_minus_threshold": BestMinusThreshold,
}
"""The rules by the names that settings use."""
