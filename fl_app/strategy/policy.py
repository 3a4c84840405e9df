# SPDX-License-Identifier: Apache-2.0
"""The gates before each stage where the user names none."""

from __future__ import annotations

from typing import Literal

from registry import AtLeast, AtMost, BeatsChampion, BestSoFar, Finite, Gate, Policy, Stage


def default_policy(
    metric: str | None,
    mode: Literal["max", "min"] = "max",
    *,
    threshold: float | None = None,
    margin: float = 0.0,
) -> Policy:
    """Staging takes the best version so far, Production one that beats the present Production.

    Parameters
    ----------
    metric : str | None
        The metric to compare; without one nothing can be judged, and nothing is staged.
    mode : "max" | "min"
        Whether more or less is better.
    threshold : float | None
        What a version must reach before it may go to Staging.
    margin : float
        By how much a version must beat Production.
    """
    if metric is None:
        return {}
    good_enough: list[Gate] = []
    if threshold is not None:
        good_enough = [(AtLeast if mode == "max" else AtMost)(metric, threshold)]
    return {
        Stage.STAGING: [Finite(), *good_enough, BestSoFar(metric, mode=mode)],
        Stage.PRODUCTION: [BeatsChampion(metric, margin=margin, mode=mode)],
    }
