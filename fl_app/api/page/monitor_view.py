# SPDX-License-Identifier: Apache-2.0
"""The monitor on the page: the requests, and the drift of each feature."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fl_app.retraining.drift.state import DriftCheck
from fl_app.retraining.manager import RetrainingManager
from fl_app.retraining.requests import Outcome

MOST_REQUESTS = 30
MOST_FEATURES = 40


@dataclass(frozen=True)
class Requests:
    """The mailbox.

    Attributes
    ----------
    running, pending : Mapping[str, Any] | None
        The request that is being served, and the one that waits.
    newest : tuple[Mapping[str, Any], ...]
        The last requests, newest first.
    total : int
        How many there are.
    """

    running: Mapping[str, Any] | None
    pending: Mapping[str, Any] | None
    newest: tuple[Mapping[str, Any], ...]
    total: int


@dataclass(frozen=True)
class FeatureRow:
    """A feature's drift; ``share`` of the way to the alarm, 0 to 1, by logarithm."""

    name: str
    evidence: float
    share: float
    effect: float
    direction: str
    nodes_moved: int
    drifted: bool


@dataclass(frozen=True)
class Drift:
    """The last check of the data.

    Attributes
    ----------
    features : tuple[FeatureRow, ...]
        The strongest evidence first.
    mean, height, share : float
        Mean evidence, where it rings the alarm, and its way there.
    nodes, rows, total : int
        Nodes that told, rows that were new, features that there are.
    reason : str
        What the alarm says; empty without one.
    """

    features: tuple[FeatureRow, ...]
    mean: float
    height: float
    share: float
    nodes: int
    rows: int
    total: int
    reason: str


def requests(manager: RetrainingManager) -> Requests:
    """Read the mailbox."""
    memory = manager.store.requests
    found = [memory.find(outcome) for outcome in (Outcome.RUNNING, Outcome.PENDING)]
    running, pending = (None if r is None else memory.get(r.id) for r in found)
    newest = tuple(reversed(memory.history(MOST_REQUESTS)))
    return Requests(running, pending, newest, sum(memory.counts().values()))


def drift(check: DriftCheck | None) -> Drift | None:
    """Sort what a check found; None where there was none."""
    if check is None or not check.features:
        return None
    drifted = {found.feature for found in check.drifted}
    strongest = sorted(check.features, key=lambda found: -found.evidence)
    mean = sum(found.evidence for found in check.features) / len(check.features)
    return Drift(
        features=tuple(
            FeatureRow(
                name=str(found.feature),
                evidence=found.evidence,
                share=_share(found.evidence, check.height),
                effect=found.effect,
                direction=found.direction,
                nodes_moved=found.nodes_moved,
                drifted=found.feature in drifted,
            )
            for found in strongest[:MOST_FEATURES]
        ),
        mean=mean,
        height=check.height,
        share=_share(mean, check.height),
        nodes=check.nodes,
        rows=check.rows,
        total=len(check.features),
        reason=check.reason if check.is_alarm else "",
    )


def _share(evidence: float, height: float) -> float:
    return min(1.0, math.log1p(max(evidence, 0.0)) / math.log1p(height))
