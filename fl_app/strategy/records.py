# SPDX-License-Identifier: Apache-2.0
"""Records of a session (origin, data, report), and the protocols of its monitors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from flwr.app import MetricRecord

from fl_app.events import RoundReport
from fl_registry import Evidence, Results
from fl_registry.gates.paired import SequentialResult


@dataclass(frozen=True)
class Origin:
    """Why a session runs and which weights it starts with.

    Attributes
    ----------
    session : int
        Number of the session within its Flower run, from 1.
    parent_version : str | None
        Registered version whose weights are the first global arrays.
    trigger : str
        Reason of the retraining request; empty for a session that a person started.
    request_id : str
        Identifier of that request.
    """

    session: int = 1
    parent_version: str | None = None
    trigger: str = ""
    request_id: str = ""


@dataclass(frozen=True)
class DataUsed:
    """Data that models are scored on.

    Attributes
    ----------
    name : str
        Their name.
    digest : str
        Digest of their content; equal digests make scores comparable.
    source : str
        Where they are.
    """

    name: str
    digest: str
    source: str = ""


@dataclass(frozen=True)
class Scored:
    """How good a model is.

    Attributes
    ----------
    metrics : Mapping[str, float]
        Its metrics on the holdout; empty without one.
    results : Results | None
        Its results on each example, if they are reported.
    nodes : Mapping[str, float]
        The metric on each node that evaluated it, by `NodeScore.key`.
    record : MetricRecord | None
        What ``evaluate_fn`` returned.
    note : str
        Where the metrics come from, or why there are none, if the model was not evaluated now.
    """

    metrics: Mapping[str, float]
    results: Results | None = None
    nodes: Mapping[str, float] = field(default_factory=dict)
    record: MetricRecord | None = None
    note: str = ""


CLIENTS, TRAINING, HOLDOUT = "clients", "training", "holdout"
"""Sources of scores: the nodes' evaluation, their training, and ``evaluate_fn``."""

DECIDED = "decided"
"""Why no shadow round follows if the test has decided."""


@dataclass(frozen=True)
class ShadowReport:
    """A candidate beside the champion on the nodes' own data, after a shadow round.

    Attributes
    ----------
    candidate, champion : str
        The version that waits for approval and the one in Production.
    metric : str
        The metric that the nodes report.
    test : SequentialResult
        Result of the test over all rounds.
    server_round : int
        Number of the round for the inner strategy and MLflow; training rounds come before.
    budget : int
        Most rounds there may be.
    ab_test : bool
        Whether each node scored one of the two only.
    scores : Mapping[str, float]
        Mean of the metric over the nodes that this round counted, for ``candidate`` and
        ``champion``; empty if it counted none.
    extra_bytes, total_bytes : int
        Bytes of the records that were sent and received, in this round and in all of the session.
    why : str
        Why no round follows; empty if one does.
    """

    candidate: str
    champion: str
    metric: str
    test: SequentialResult
    server_round: int
    budget: int
    ab_test: bool = False
    scores: Mapping[str, float] = field(default_factory=dict)
    extra_bytes: int = 0
    total_bytes: int = 0
    why: str = ""


@dataclass(frozen=True)
class SessionReport:
    """A whole session, from which plots and files are made.

    Attributes
    ----------
    rounds : tuple[RoundReport, ...]
        One for each round.
    run_id : str
        MLflow run of the session.
    history : Mapping[str, tuple[tuple[int, float], ...]]
        For each metric its values as ``(step, value)``; step 0 is before the first round.
    version : str | None
        The best version, or the last one if none was staged; None without any.
    weights : Path | None
        Its weights file.
    shadow : ShadowReport | None
        The last report of the shadow rounds; None if there were none.
    """

    rounds: tuple[RoundReport, ...]
    run_id: str
    history: Mapping[str, tuple[tuple[int, float], ...]]
    version: str | None
    weights: Path | None
    shadow: ShadowReport | None = None


Artifacts = Callable[[SessionReport, Path], Iterable[Path]]
"""Called at the end of a session with an empty folder; the files it returns go to MLflow."""


class Monitor(Protocol):
    """Receives the score of each round, and the nodes' summaries of their data."""

    def start_from(self, version: str, score: float) -> None:
        """Receive the registered version that a session starts from, and its score."""

    def update_metrics(self, accuracy: float, round_num: int) -> None:
        """Receive the score of a round."""

    def update_data(self, summaries: Mapping[str, Mapping[str, object]], round_num: int) -> None:
        """Receive the nodes' data summaries of a round, by node id; they may be malformed."""

    def data_orders(self) -> Mapping[str, str | bool]:
        """Return the config entries of the next train message on the reference data of nodes."""


class ProductionWatch(Protocol):
    """Watches versions after their promotion, for instance a ``Probation``."""

    def review(self) -> None:
        """Do what is due; called after each round."""

    def to_compare(self) -> tuple[str, str | None] | None:
        """Return the version on probation and the one to roll back to, if there is any."""

    def update_production(
        self, version: str, evidence: Evidence, *, rival: str | None = None
    ) -> None:
        """Receive the scores of both on the same data, the rival as ``champion``."""
