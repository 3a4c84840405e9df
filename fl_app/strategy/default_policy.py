# SPDX-License-Identifier: Apache-2.0
"""The gates before each stage where the user names none."""

from __future__ import annotations

from typing import Literal

from fl_registry import (
    AtLeast,
    AtMost,
    BeatsChampion,
    BestSoFar,
    Finite,
    Gate,
    NoRegression,
    Policy,
    Stage,
    Verdict,
)

NO_METRIC = Verdict(
    "NoMetric", False, "there is no metric to judge by: give LifecycleStrategy(metric=…)"
)


def default_policy(
    metric: str | None,
    mode: Literal["max", "min"] = "max",
    *,
    threshold: float | None = None,
    margin: float = 0.0,
    confidence: float | None = 0.95,
    class_margin: float | None = None,
) -> Policy:
    """Staging takes the best version so far, Production one that surely beats the present one.

    The best so far counts across sessions: Staging takes nothing that is worse than Production,
    unless a negative ``margin`` allows it.

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
    confidence : float | None
        How sure that must be where there are results per example; None asks for no certainty.
    class_margin : float | None
        How much worse than Production a version may be in any one class (metrics named
        ``<metric>/<class>``); None does not look at classes.
    """
    if metric is None:
        return {Stage.STAGING: [lambda evidence: NO_METRIC]}
    better = BeatsChampion(metric, margin=min(margin, 0.0), mode=mode, confidence=None)
    staging: list[Gate] = [Finite(), BestSoFar(metric, mode=mode), better]
    production: list[Gate] = [
        BeatsChampion(metric, margin=margin, mode=mode, confidence=confidence)
    ]
    if threshold is not None:
        staging.insert(1, (AtLeast if mode == "max" else AtMost)(metric, threshold))
    if class_margin is not None:
        production.insert(0, NoRegression(metric, margin=class_margin, mode=mode))
    return {Stage.STAGING: staging, Stage.PRODUCTION: production}
