# SPDX-License-Identifier: Apache-2.0
"""Degradation rules: state and score in, next state and reason to retrain out. Pure."""

from __future__ import annotations

import math
import statistics
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Literal, Self

import numpy as np
from pydantic import Field

Mode = Literal["max", "min"]

LIMIT = 1e100
"""Greatest size of a score or threshold, so that no square and no sum of them overflows."""
WINDOW = 96
"""Scores in the reference, at most."""
CAP = 2.5
"""One round adds at most the height / 2.5, so that two outliers do not reach it."""
BOUND = 2.5
"""Standard errors between the level of the reference and its lower bound."""
MIN_SCORES = 4
"""Scores before the first request, at least."""
MIN_CLEARED = 48
"""Suspects after which half of them join the reference, if the sum from the lower bound is 0."""
SIZES = (3, 6, 12, 24, 48)
"""Numbers of last scores of the reference that may be the baseline."""
MIN_LASTING = 48
"""Scores of a reference whose lower bound is never lowered again, at least."""
ARL = 10_000.0
"""Mean number of rounds to a false alarm that the height is designed for."""
CLIP = 4.0
"""Standard deviations from the median at which outliers are clipped."""
MAX_AUTOCORRELATION = 0.9
"""With a higher one the height would exceed every fall while there are few scores."""
ERRORS = 2.0
"""Standard errors that are added to the autocorrelation."""
QUARTILE = 1.1503
"""Upper quartile of the size of a standard normal variable."""


def is_score(value: float) -> bool:
    """Return whether rules accept ``value``: finite, and at most ``LIMIT`` in size."""
    return math.isfinite(value) and abs(value) <= LIMIT


@dataclass(frozen=True)
class DegradationRule(ABC):
    """A degradation rule and its state, in one frozen record.

    Attributes
    ----------
    threshold : float
        The fall that matters, in the metric's unit.
    mode : "max" | "min"
        Whether more or less is better.
    best, current : float | None
        Best and last score since the baseline was set.

    Raises
    ------
    ValueError
        If the threshold is not positive, or beyond 1e100 in size.
    """

    threshold: float
    mode: Mode = "max"
    best: float | None = None
    current: float | None = None

    def __post_init__(self) -> None:
        if not 1 / LIMIT <= self.threshold <= LIMIT:
            raise ValueError(
                f"accuracy_threshold is {self.threshold}, expected a positive number, in the unit "
                "of the metric (0.05 for five points of accuracy)."
            )

    @property
    @abstractmethod
    def healthy(self) -> bool:
        """Whether the last score shows no fall."""

    @abstractmethod
    def update(self, score: float) -> tuple[Self, str]:
        """Return the next state after a score (`is_score`), and the reason to retrain, if any."""

    def rebase(self, score: float) -> Self:
        """Return the rule begun anew from the score of the served version."""
        return type(self)(self.threshold, self.mode, best=score, current=score)

    def _fall(self, baseline: float, score: float) -> float:
        return baseline - score if self.mode == "max" else score - baseline

    def _with_score(self, score: float) -> Self:
        better = self.best is None or self._fall(self.best, score) < 0
        return replace(self, best=score if better else self.best, current=score)


@dataclass(frozen=True)
class BestMinusThreshold(DegradationRule):
    """Requests retraining when a score is worse than the best by more than ``threshold``.

    Simple, with many false alarms: 93 in 1,000 rounds of noise with a standard deviation of 0.02,
    at a threshold of 0.05 (``python -m benchmarks.monitor``).
    """

    policy: Literal["best_minus_threshold"] = field(default="best_minus_threshold", kw_only=True)

    @property
    def healthy(self) -> bool:
        """Whether the last score is within the threshold."""
        return self.best is None or self._fall(self.best, self.current or 0.0) <= self.threshold

    def update(self, score: float) -> tuple[Self, str]:
        """Return the next state after a score (`is_score`), and the reason to retrain, if any."""
        after = self._with_score(score)
        best = score if after.best is None else after.best
        fell = self._fall(best, score)
        if fell <= self.threshold:
            return after, ""
        return after, (
            f"the score is {score:.4f}, worse than the best of {best:.4f} by {fell:.4f}, "
            f"more than {self.threshold:g}"
        )


@dataclass(frozen=True)
class CappedCusum(DegradationRule):
    """Requests retraining when scores stay below their baseline: a CUSUM with capped increments.

    With k = threshold / 2, S <- max(0, S + min(baseline - score - k, h / 2.5)), and S > h is a
    request [1]_, from the fourth score on. h is at least ``threshold`` and solves
    ARL = (exp(y) - 1 - y) / (2 d^2) with y = 2 d h / s and d = k / s, Siegmund's mean number of
    rounds to a false alarm [2]_ without the correction for overshoot, for ARL = 10,000.
    s = sigma sqrt((1 + phi) / (1 - phi)) is the long-run standard deviation of a score. sigma and
    the lag-1 autocorrelation phi are estimated from the scores, without the step between reference
    and suspects; two standard errors are added to phi, which is at most 0.9.

    The reference is the last 96 scores that showed no fall. The baseline is the highest lower
    bound, level - 2.5 s / sqrt(n), of the whole reference and its last n scores, down to a quarter
    of it, so that it follows a model that improves; and at least the highest bound that 48 scores
    or more ever had, so that it follows no decline. Scores below the level by k are suspects until
    S from the level is 0 again, and join the reference then; what led to a request never does. Of
    48 suspects that the lower bound explains, the older half joins as well.

    False alarms per 1,000 rounds, measured over 200,000 each with a threshold of 0.05 by what
    ``python -m benchmarks.monitor`` does: 0 with normal noise of 0.01, 0.02 and 0.03, at 0.02 also
    without the score of a version; 0.005 with Student's t with 3 degrees; 0.04 with skewed noise;
    0.035 and 0.27 with an autocorrelation of 0.7 and 0.9; 0.05 with 2 % outliers.
    The median delay of a fall of 0.05 after 80 rounds with normal noise of 0.02 is 9 rounds.
    This assumes that level and spread of the noise are constant and that its autocorrelation is
    that of an AR(1) process of at most 0.9. Slow waves, bad rounds in a row and seasons, lower than
    the level by more than half the threshold, are falls to this rule.

    Attributes
    ----------
    reference : tuple[float, ...]
        Scores that showed no fall, oldest first; the first may be that of the promoted version.
    suspects : tuple[float, ...]
        Scores that may belong to a fall, oldest first.
    bound : float | None
        Highest lower bound of 48 scores or more.

    References
    ----------
    .. [1] E. S. Page, "Continuous inspection schemes", Biometrika 41, 1954.
    .. [2] D. Siegmund, "Sequential Analysis", Springer, 1985, section II.6.
    """

    reference: tuple[float, ...] = ()
    suspects: tuple[float, ...] = ()
    bound: float | None = None
    policy: Literal["capped_cusum"] = field(default="capped_cusum", kw_only=True)

    @property
    def healthy(self) -> bool:
        """Whether no score is a suspect."""
        return not self.suspects

    def update(self, score: float) -> tuple[Self, str]:
        """Return the next state after a score (`is_score`), and the reason to retrain, if any."""
        after = self._with_score(score)
        if not self.reference:
            return replace(after, reference=(score,)), ""
        sign = 1 if self.mode == "max" else -1  # from here on more is better
        reference = sign * np.array(self.reference)
        suspects = sign * np.array((*self.suspects, score)[-WINDOW:])
        lasting = None if self.bound is None else sign * self.bound
        baseline = _baseline(reference, suspects, lasting, self.threshold)
        height = max(alarm_height(baseline.spread, self.threshold / 2), self.threshold)
        total = doubt = 0.0
        cleared = 0
        for number, value in enumerate(suspects.tolist(), 1):
            # The cap keeps two outliers from reaching the height.
            fall = baseline.bound - value - self.threshold / 2
            total = max(0.0, total + min(fall, height / CAP))
            doubt = max(0.0, doubt + min(fall + baseline.level - baseline.bound, height / CAP))
            if doubt == 0:
                cleared = number
        if total > height and len(reference) + len(suspects) >= MIN_SCORES:
            level = sign * baseline.level
            return replace(after, suspects=()), (
                f"the score stays below its baseline of {level:.4f}: it is {score:.4f} now, worse "
                f"by {self._fall(level, score):.4f}, and noise does not explain it"
            )
        if total == 0 and len(suspects) >= MIN_CLEARED:
            cleared = max(cleared, len(suspects) // 2)
        return replace(
            after,
            reference=(*self.reference, *(sign * suspects[:cleared]).tolist())[-WINDOW:],
            suspects=tuple((sign * suspects[cleared:]).tolist()),
            bound=sign * baseline.bound if cleared and baseline.lasting else self.bound,
        ), ""

    def rebase(self, score: float) -> Self:
        """Return the rule begun anew from the score of the served version."""
        return replace(super().rebase(score), reference=(score,))


@dataclass(frozen=True)
class _Baseline:
    """The level that falls are measured from; more is better.

    Attributes
    ----------
    bound, level : float
        Lower bound, for requests, and highest level, for suspects.
    spread : float
        Long-run standard deviation of a score.
    lasting : bool
        Whether the bound is of enough scores to be never lowered again.
    """

    bound: float
    level: float
    spread: float
    lasting: bool


def _baseline(
    reference: np.ndarray, suspects: np.ndarray, lasting: float | None, threshold: float
) -> _Baseline:
    """Return the highest of these bounds: whole reference, its last ``SIZES``, lasting one."""
    # In second differences level and slope vanish; 1 + 4 + 1 variances are in each.
    jagged = np.concatenate([np.diff(reference, 2), np.diff(suspects, 2)]) / math.sqrt(6)
    least = max(robust_sigma(jagged), threshold / 50)
    step, whole = step_in(reference, suspects), len(reference)
    sizes = [size for size in SIZES if whole / 4 <= size < whole]
    # A lower bound of the scores before, and not the mean of the first 40: those may contain the
    # fall. The last scores may be higher than the whole reference: a model improves in training.
    baselines = []
    for size in (whole, *sizes):
        before = np.concatenate([reference[-size:], suspects[:step]])
        level, spread = level_and_spread(before, suspects[step:], size, least)
        bound = level - BOUND * spread / math.sqrt(size)
        baselines.append(_Baseline(bound, level, spread, size >= MIN_LASTING))
    highest = max(baseline.level for baseline in baselines)
    best = max(baselines, key=lambda baseline: baseline.bound)
    if lasting is not None and lasting >= best.bound:
        return _Baseline(lasting, max(highest, lasting), baselines[0].spread, lasting=False)
    return replace(best, level=max(highest, best.bound))


def robust_sigma(deviations: np.ndarray) -> float:
    """Standard deviation from the upper quartile of the sizes; tolerates 24 % of outliers."""
    size = np.sort(np.abs(deviations))
    return float(size[3 * len(size) // 4]) / QUARTILE if len(size) else 0.0


def step_in(reference: np.ndarray, suspects: np.ndarray) -> int:
    """Return how many suspects come before the greatest step.

    At the step, the means of the two sides leave the smallest sum of squares.
    """
    sums = np.cumsum(np.concatenate([reference, suspects]))
    before = np.arange(len(reference), len(sums))
    after, sum_before = len(sums) - before, sums[before - 1]
    step = sum_before / before - (sums[-1] - sum_before) / after
    return int(np.argmax(before * after * step**2))


def level_and_spread(
    before: np.ndarray, after: np.ndarray, size: int, least: float
) -> tuple[float, float]:
    """Return the level of the first ``size`` scores, and the long-run deviation of a score.

    The latter is sigma sqrt((1 + phi) / (1 - phi)), that of an AR(1) process with standard
    deviation sigma and lag-1 autocorrelation phi.

    Parameters
    ----------
    before, after : np.ndarray
        Scores before and after a step, which is no noise; the latter may be empty.
    size : int
        How many scores of ``before``, from the first on, the level is of.
    least : float
        Lower limit of sigma, in the unit of the scores.
    """
    sides = [side for side in (before, after) if len(side)]
    middles = [statistics.median(side.tolist()) for side in sides]
    parts = [side - middle for side, middle in zip(sides, middles, strict=True)]
    sigma = max(robust_sigma(np.concatenate(parts)), least)
    parts = [np.maximum(np.minimum(part, CLIP * sigma), -CLIP * sigma) for part in parts]
    level = middles[0] + float(parts[0][:size].sum()) / size
    around = [part - part.sum() / len(part) for part in parts]
    count, power = len(before) + len(after), sum(float((a * a).sum()) for a in around)
    lagged = sum(float((a[:-1] * a[1:]).sum()) for a in around)
    rho = min(max(lagged / power, 0.0), 1.0) if power > 0 else 0.0
    # An autocorrelation of n scores is too low by (1 + 4 rho) / n (Marriott and Pope 1954).
    error = (1 + 4 * rho) / count + ERRORS * math.sqrt((1 - rho * rho) / count)
    phi = min(rho + error, MAX_AUTOCORRELATION)
    sigma = max(sigma, math.sqrt(power / max(count - len(parts), 1)))
    return level, sigma * math.sqrt((1 + phi) / (1 - phi))


def alarm_height(spread: float, k: float) -> float:
    """Height of a one-sided CUSUM with reference value ``k`` for a mean run length of ``ARL``.

    Solves ARL = (exp(y) - 1 - y) / (2 d^2) with d = k / spread and y = 2 d height / spread
    (Siegmund 1985, without the correction for overshoot, which makes it higher than needed).
    """
    drift = k / spread
    y = 1.0
    for _ in range(8):
        y = math.log1p(2 * drift * drift * ARL + y)
    return spread * min(y / (2 * drift), math.sqrt(ARL))


Rule = Annotated[CappedCusum | BestMinusThreshold, Field(discriminator="policy")]
"""The rules as pydantic reads them."""
RULES: Mapping[str, type[CappedCusum | BestMinusThreshold]] = {
    "capped_cusum": CappedCusum,
    "best_minus_threshold": BestMinusThreshold,
}
"""The rules by their names in the settings."""
