# SPDX-License-Identifier: Apache-2.0
"""Level and noise of a series of scores, and the height of an alarm that allows for the noise."""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Sequence

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


def robust_sigma(deviations: Sequence[float]) -> float:
    """Standard deviation from the upper quartile of the sizes; tolerates 24 % of outliers."""
    size = sorted(map(abs, deviations))
    return size[3 * len(size) // 4] / QUARTILE if size else 0.0


def second_differences(scores: Sequence[float]) -> list[float]:
    """Second differences, scaled to the standard deviation of a score; level and slope vanish."""
    scale = math.sqrt(6)  # 1 + 4 + 1 variances
    return [
        (a - 2 * b + c) / scale for a, b, c in zip(scores, scores[1:], scores[2:], strict=False)
    ]


def step_in(reference: Sequence[float], suspects: Sequence[float]) -> int:
    """Return how many suspects come before the greatest step.

    At the step, the means of the two sides leave the smallest sum of squares.
    """
    before, after = math.fsum(reference), math.fsum(suspects)
    number, best, most = len(reference), 0, -1.0
    for place, score in enumerate(suspects):
        left = len(suspects) - place
        step = before / number - after / left
        if number * left * step * step > most:
            best, most = place, number * left * step * step
        before, after, number = before + score, after - score, number + 1
    return best


def level_and_spread(
    before: Sequence[float], after: Sequence[float], size: int, least: float
) -> tuple[float, float]:
    """Return the level of the first ``size`` scores, and the long-run deviation of a score.

    The latter is sigma sqrt((1 + phi) / (1 - phi)), that of an AR(1) process with standard
    deviation sigma and lag-1 autocorrelation phi.

    Parameters
    ----------
    before, after : Sequence[float]
        Scores before and after a step, which is no noise; the latter may be empty.
    size : int
        How many scores of ``before``, from the first on, the level is of.
    least : float
        Lower limit of sigma, in the unit of the scores.
    """
    parts = [_centred(part) for part in (before, after) if part]
    sigma = max(robust_sigma([*itertools.chain(*parts)]), least)
    most = CLIP * sigma
    parts = [[v if -most <= v <= most else math.copysign(most, v) for v in part] for part in parts]
    level = _median(before) + math.fsum(parts[0][:size]) / size
    count, power, lagged = len(before) + len(after), 0.0, 0.0
    for part in parts:
        mean = math.fsum(part) / len(part)
        around = [value - mean for value in part]
        power += sum(map(operator.mul, around, around))
        lagged += sum(map(operator.mul, around, around[1:]))
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


def _centred(scores: Sequence[float]) -> list[float]:
    middle = _median(scores)
    return [score - middle for score in scores]


def _median(scores: Sequence[float]) -> float:
    ordered = sorted(scores)
    return ordered[(len(ordered) - 1) // 2] / 2 + ordered[len(ordered) // 2] / 2
