# SPDX-License-Identifier: Apache-2.0
"""The largest weight of a node in a sum over nodes; without Flower."""

from __future__ import annotations

import math
from collections.abc import Sequence


def largest_weight(weights: Sequence[float], shares: float) -> float:
    """Return the weight that none may exceed, so that each has at most ``shares / n`` of them all.

    The weights above it are lowered to it; the others stay. Infinity if there is nothing to lower,
    or too few weights for such a limit.

    Parameters
    ----------
    weights : Sequence[float]
        The positive weights of n replies.
    shares : float
        Largest share of a reply in multiples of an equal one, more than 1.
    """
    share, rest = shares / max(1, len(weights)), math.fsum(weights)
    for lowered, weight in enumerate(sorted(weights, reverse=True)):
        if share * lowered >= 1:
            break
        limit = share * rest / (1 - share * lowered)
        if weight <= limit:
            return limit if lowered else math.inf
        rest -= weight
    # So few others remain that equal weights are what is left.
    return min(weights) if shares < len(weights) else math.inf
