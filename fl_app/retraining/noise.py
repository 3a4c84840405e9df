# SPDX-License-Identifier: Apache-2.0
"""The noise of a series of scores: its level, its long-run spread, and alarms that allow for it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

ARL = 20_000.0
"""Mean number of rounds to a false alarm that the height is designed for."""
CLIP = 4.0
"""Standard deviations beyond which a score is taken as an outlier and drawn in."""
MAX_AUTOCORRELATION = 0.9
ERRORS = 1.5
"""Standard errors that are added to the autocorrelation."""
QUARTILE = 1.1503
"""Upper quartile of |z|, z standard normal."""


def robust_sigma(deviations: Sequence[float]) -> float:
    """Standard deviation by the upper quartile of ``|deviations|``, which 24 % outliers leave."""
    size = sorted(map(abs, deviations))
    return size[3 * len(size) // 4] / QUARTILE if size else 0.0


def bent(scores: Sequence[float]) -> list[float]:
    """Second differences, in a score's standard deviation; level and slope are not in them."""
    return [
        (a - 2 * b + c) / math.sqrt(6)
        for a, b, c in zip(scores, scores[1:], scores[2:], strict=False)
    ]


def split(reference: Sequence[float], suspects: Sequence[float]) -> int:
    n=len(reference); tot1=math.fsum(reference); m=len(suspects); tot2=math.fsum(suspects)
    best=(-1.0,0)
    for t,v in enumerate(suspects):
        d=tot1/(n+t)-tot2/(m-t)
        best=max(best,((n+t)*(m-t)*d*d,-t))
        tot1+=v; tot2-=v
    return -best[1]


def level_and_spread(
    reference: Sequence[float], late: Sequence[float], suspects: Sequence[float], floor: float
) -> tuple[float, float]:
    """Level of the reference, and long-run standard deviation of a score.

    The latter is sigma sqrt((1 + phi) / (1 - phi)), as of an AR(1) process. The noise is that
    around the level of each of the two parts, so that a step between them does not count.

    Parameters
    ----------
    reference, suspects : Sequence[float]
        Scores before a step and after it; the latter may be none.
    floor : float
        The least sigma.
    """
    middle = _median(reference)
    parts = [[score - middle for score in (*reference, *late)]]
    if suspects:
        after = _median(suspects)
        parts.append([score - after for score in suspects])
    sigma = max(robust_sigma(list(itertools.chain(*parts))), floor)
    means = []
    for number, part in enumerate(parts):
        near = [min(max(value, -CLIP * sigma), CLIP * sigma) for value in part]
        means.append(math.fsum(near) / len(near))
        if number==0: lev=math.fsum(near[:len(reference)])/len(reference)
        parts[number] = [value - means[number] for value in near]
    count, power, lagged = len(reference) + len(late) + len(suspects), 0.0, 0.0
    for part in parts:
        power += sum(value * value for value in part)
        lagged += sum(a * b for a, b in itertools.pairwise(part))
    rho = min(max(lagged / power, 0.0), 1.0) if power > 0 else 0.0
    # The estimate is too low by (1 + 4 rho) / n (Kendall 1954, Marriott and Pope 1954).
    error = (1 + 4 * rho) / count + ERRORS * math.sqrt((1 - rho * rho) / count)
    phi = min(rho + error, MAX_AUTOCORRELATION)
    sigma = max(sigma, math.sqrt(power / max(count - len(parts), 1)))
    return middle + lev, sigma * math.sqrt((1 + phi) / (1 - phi))


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


def _median(scores: Sequence[float]) -> float:
    ordered = sorted(scores)
    return ordered[(len(ordered) - 1) // 2] / 2 + ordered[len(ordered) // 2] / 2
