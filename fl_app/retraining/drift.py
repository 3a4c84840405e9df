# SPDX-License-Identifier: Apache-2.0
"""Whether the nodes' data have moved: state and summaries in, next state and a finding out. Pure.

Each node compares its new rows with its own past, so that neither differences between nodes nor who
took part look like drift. e-values accumulate the evidence, so that the rate of false alarms holds
for ever and not for each check; a gate on the size of the effect leaves out what is too small to
matter, and what comes back each season.
"""

from __future__ import annotations

import itertools
import logging
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from fl_app.retraining.drift_state import HISTORY, RECENT, SLOTS, DriftState, Window
from fl_app.summaries import PARTS, DataSummary, Feature, FeatureKind

logger = logging.getLogger("flwr.fl_app")

Policy = Literal["evidence", "per_check"]
DAY = 86_400.0
GROSS_EFFECT = 0.2
"""Effect in the last checks that counts whatever the season; half a standard deviation."""
LEAST_WAIT = 20.0
"""Checks without a false alarm that are asked for at least, however rare checks are."""
KNOWN_INTERVAL = 12
"""Checks after which the time between them is taken from them."""
E_CAP, LEAST_P = 1e15, 1e-300
CRITICAL = 1.3581
"""95 % quantile of Kolmogorov's distribution; its square's mean and variance are below."""
SQUARE_MEAN = math.pi**2 / 12
SQUARE_VARIANCE = 7 * math.pi**4 / 720 - SQUARE_MEAN**2
MOST_NODES = 1_000
"""Nodes without memory whose references are kept."""


@dataclass(frozen=True)
class DriftSettings:
    """When evidence becomes an alarm.

    Attributes
    ----------
    false_alarm_days : float
        Days that pass on average, at least, before a false alarm.
    min_effect : float
        Smallest shift that matters, as the greatest difference of two distribution functions: 0.05
        is an eighth of a standard deviation of a normal feature.
    season : float | None
        Seconds after which data repeat themselves; the effect is taken over all of them. None
        takes it over the last 12 checks.
    policy : "evidence" | "per_check"
        ``per_check`` is the rule of any p < 0.05 in any check.
    check_interval : float
        Seconds between checks, until they tell by themselves.
    """

    false_alarm_days: float = 365.0
    min_effect: float = 0.05
    season: float | None = DAY
    policy: Policy = "evidence"
    check_interval: float = 300.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.false_alarm_days) and self.false_alarm_days > 0):
            raise ValueError(
                f"drift_false_alarm_days is {self.false_alarm_days}, expected more than 0."
            )
        if not 0 <= self.min_effect < 1:
            raise ValueError(f"min_effect is {self.min_effect}, expected 0 or more, less than 1.")
        if self.season is not None and not 0 < self.season < math.inf:
            raise ValueError(f"season is {self.season} s, expected more than 0, or None.")
        if self.policy not in ("evidence", "per_check"):
            raise ValueError(
                f"drift_policy is {self.policy!r}, expected 'evidence' or 'per_check'."
            )


@dataclass(frozen=True)
class FeatureDrift:
    """What a check found in one feature.

    Attributes
    ----------
    feature : Feature
        Which.
    p : float
        Of this check alone: chance of such a difference without drift.
    evidence : float
        Shiryaev-Roberts sum of the e-values so far.
    effect : float
        Greatest difference of the distribution functions, over the rows that decided.
    direction : str
        Where it went, in a word or two.
    nodes_moved : int
        Nodes that show it by themselves in this check (p < 0.01).
    """

    feature: Feature
    p: float
    evidence: float
    effect: float
    direction: str
    nodes_moved: int


@dataclass(frozen=True)
class DriftCheck:
    """What one check of the data found.

    Attributes
    ----------
    rings : bool
        Whether to retrain.
    drifted : tuple[FeatureDrift, ...]
        The features that the alarm is about, the most moved first.
    features : tuple[FeatureDrift, ...]
        All features.
    nodes, rows : int
        Nodes that told of new rows, and how many rows.
    height : float
        Mean evidence at which the alarm rings.
    """

    rings: bool
    drifted: tuple[FeatureDrift, ...]
    features: tuple[FeatureDrift, ...]
    nodes: int
    rows: int
    height: float

    @property
    def reason(self) -> str:
        """One sentence for people: which features, where to, on how many nodes."""
        names = ", ".join(
            f"{found.feature} {found.direction} (effect {found.effect:.2f})"
            for found in self.drifted[:3]
        )
        more = f" and {len(self.drifted) - 3} more" if len(self.drifted) > 3 else ""
        moved = max((found.nodes_moved for found in self.drifted), default=0)
        return f"the data moved: {names}{more}; {moved} of {self.nodes} nodes show it by themselves"


def check(
    state: DriftState, summaries: Sequence[DataSummary], time: float, settings: DriftSettings
) -> tuple[DriftState, DriftCheck | None]:
    """Take the summaries of one round, each of another node; None if they tell nothing new.

    ``time`` is in seconds since 1970.
    """
    state, told = _remember_nodes(state, [s for s in summaries if s.reference == state.reference])
    features, told = _shared(told)
    if not told:
        return state, None
    bins = told[0].counts.shape[2]
    state = state.about(features, bins)
    merged = merge(told, state.features, time)
    p = np.where(merged.window.rows > 0, kolmogorov_p(merged.shift, merged.variance), 1.0)
    state = _counted(state, merged.window, time, settings)
    height = alarm_height(state, time, settings)
    seen = merged.window.rows > 0
    evidence = np.where(seen, (state.evidence + 1) * e_value(p), state.evidence)
    evidence = np.minimum(evidence, 100 * height * len(evidence))
    hold = bool(evidence.mean() >= height)
    labels = map(str, state.features)
    heard = (time, dict(zip(labels, np.round(evidence, 3).tolist(), strict=True)))
    state = replace(
        state, evidence=evidence, hold=hold, history=(*state.history, heard)[-HISTORY:]
    )
    if settings.policy == "per_check":
        effect, drifted = merged.shift, p < 0.05
    else:
        effect, matters = _effects(state, settings, merged, time)
        drifted = matters & (evidence >= height) & hold
    state = _grown_nodes(state, summaries)
    found = [
        FeatureDrift(
            feature,
            float(p[i]),
            float(evidence[i]),
            float(effect[i]),
            direction(feature, merged.window.now[i] - merged.window.expected[i]),
            int(merged.moved[i]),
        )
        for i, feature in enumerate(state.features)
    ]
    worst = sorted((f for f, d in zip(found, drifted, strict=True) if d), key=lambda f: -f.effect)
    rows = int(merged.window.rows.max())
    return state, DriftCheck(bool(worst), tuple(worst), tuple(found), len(told), rows, height)
