# SPDX-License-Identifier: Apache-2.0
"""The records of a session and of its rounds that are on disk."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Literal

import numpy as np
from flwr.app import ConfigRecord

from fl_app.events import RoundReport
from fl_app.strategy.records import DataUsed, Origin
from fl_app.strategy.round.state import ClosedRound

State = Literal["training", "left", "ending"]
Phase = Literal["aggregated", "closed", "done"]
PHASES: tuple[Phase, ...] = ("aggregated", "closed", "done")


@dataclass(frozen=True)
class InnerState:
    """The state of the inner strategy and of those that it wraps.

    Attributes
    ----------
    values : Mapping[str, Any]
        Encoded values by the place of an attribute (``strategy/m_t``).
    arrays : Mapping[str, np.ndarray]
        The arrays that the values refer to.
    missing : tuple[str, ...]
        Places whose values changed and cannot be written to disk.
    """

    values: Mapping[str, Any] = field(default_factory=dict)
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)
    missing: tuple[str, ...] = ()


@dataclass(frozen=True)
class Checkpoint:
    """A round of a session, as far as it is.

    Attributes
    ----------
    closed : ClosedRound
        The round.
    phase : "aggregated" | "closed" | "done"
        How far it is.
    inner : InnerState
        State of the inner strategy after it.
    configs : Mapping[str, ConfigRecord]
        The configs for ``train`` and ``evaluate`` messages, which strategies may change.
    report : RoundReport | None
        The report of the round, once it is done.
    files : Mapping[str, tuple[str, str]]
        Name and SHA-256 of the files with its ``arrays`` and, if there are any, the ``inner`` ones.
    """

    closed: ClosedRound
    phase: Phase
    inner: InnerState = field(default_factory=InnerState)
    configs: Mapping[str, ConfigRecord] = field(default_factory=dict)
    report: RoundReport | None = None
    files: Mapping[str, tuple[str, str]] = field(default_factory=dict)

    def without_arrays(self) -> Checkpoint:
        """Return the same without arrays, as it is written to disk beside their files."""
        closed, inner = replace(self.closed, arrays=None), replace(self.inner, arrays={})
        return replace(self, closed=closed, inner=inner)


@dataclass(frozen=True)
class Baseline:
    """The score of a registered version before round 1.

    Attributes
    ----------
    metrics : Mapping[str, float]
        Its metrics.
    nodes : Mapping[str, float]
        The metric on each node that evaluated it, by `NodeScore.key`.
    note : str
        Where the metrics come from if the version was not evaluated then.
    """

    metrics: Mapping[str, float]
    nodes: Mapping[str, float] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True)
class SessionRecord:
    """A session.

    Attributes
    ----------
    model : str
        Name of the registered model.
    origin : Origin
        Why it runs.
    num_rounds : int
        Rounds that it has.
    chain : tuple[str, ...]
        Classes of the inner strategy and of those that it wraps.
    arrays : tuple[tuple[str, str, tuple[int, ...] | None], ...]
        Name, dtype and shape of the model's arrays; no shape if it may change.
    settings : Mapping[str, Any]
        Params, the inner strategy's numbers and texts, and the messages' configs at the start.
    tags, params : Mapping[str, str]
        Tags and params of its MLflow run.
    holdout : DataUsed | None
        The data that it is scored on, for that run.
    run_name, run_id : str
        That run; the id is empty before the run is started.
    started : datetime
        When it started, in UTC.
    first_metrics : Mapping[str, float] | None
        Metrics of the weights that it starts with; None until they are evaluated.
    baselines : Mapping[str, Baseline]
        Scores before round 1 of the versions that must be beaten, by version.
    staging : str | None
        The version in Staging then.
    source : str
        Source of the metrics with plain names: ``clients``, or that of ``evaluate_fn``.
    described : bool
        Whether its MLflow run has its params, its data and the first metrics.
    state : "training" | "left" | "ending"
        ``left``: its process has ended with rounds in the queue. ``ending``: only the end of its
        MLflow run is missing.
    status : str
        Status with which that run ends.
    """

    model: str
    origin: Origin
    num_rounds: int
    chain: tuple[str, ...] = ()
    arrays: tuple[tuple[str, str, tuple[int, ...] | None], ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    params: Mapping[str, str] = field(default_factory=dict)
    holdout: DataUsed | None = None
    run_name: str = ""
    run_id: str = ""
    started: datetime = field(default_factory=lambda: datetime.now(UTC))
    first_metrics: Mapping[str, float] | None = None
    baselines: Mapping[str, Baseline] = field(default_factory=dict)
    staging: str | None = None
    source: str = "clients"
    described: bool = False
    state: State = "training"
    status: str = ""

    def differences(self, now: SessionRecord) -> list[str]:
        """Return what prevents this session from being resumed as ``now``."""
        why = []
        if self.num_rounds != now.num_rounds:
            why.append(f"it has {self.num_rounds} rounds, and {now.num_rounds} are requested")
        if self.chain != now.chain:
            old, new = "(".join(self.chain), "(".join(now.chain)
            why.append(f"its strategy is {old}, not {new}")
        if self.arrays != now.arrays:
            why.append("its model has other arrays")
        if self.source != now.source:
            why.append(f"its scores are of {self.source}, not of {now.source}")
        for name in sorted({*self.settings, *now.settings}):
            was, is_now = self.settings.get(name), now.settings.get(name)
            if was != is_now:
                why.append(f"{name} was {was!r:.60} and is {is_now!r:.60}")
        return why
