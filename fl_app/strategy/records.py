# SPDX-License-Identifier: Apache-2.0
"""What a session is told and tells: its origin, its data, its report, and its monitor."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from fl_app.events import RoundReport
from fl_registry import Evidence
from fl_registry.gates.sequential import SequentialResult


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
    """Data that scores are taken on.

    Attributes
    ----------
    name : str
        What people call them.
    digest : str
        Digest of their content; equal digests make scores comparable.
    source : str
        Where they are.
    """

    name: str
    digest: str
    source: str = ""


DECIDED = "decided"
"""Why no shadow round follows, if all went well."""


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
        What all rounds together say.
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
    """A whole session, for those who make pictures or files of it.

    Attributes
    ----------
    rounds : tuple[RoundReport, ...]
        One for each round.
    run_id : str
        MLflow run of the session.
    history : Mapping[str, tuple[tuple[int, float], ...]]
        For each metric its values as ``(step, value)``; step 0 is before the first round.
    weights : Path | None
        Weights file of the best version, or of the last one where none was staged.
    shadow : ShadowReport | None
        The end of the shadow evaluation; None if there was none.
    """

    rounds: tuple[RoundReport, ...]
    run_id: str
    history: Mapping[str, tuple[tuple[int, float], ...]]
    weights: Path | None
    shadow: ShadowReport | None = None


Artifacts = Callable[[SessionReport, Path], Iterable[Path]]
"""Called at the end of a session with an empty folder; the files it returns go to MLflow."""


class Monitor(Protocol):
    """Who is told how good each round's model is, and what the nodes tell of their data."""

    def start_from(self, version: str, score: float) -> None:
        """Hear which registered version a session starts from, and its score."""

    def update_metrics(self, accuracy: float, round_num: int) -> None:
        """Take the score of a round."""

    def update_data(self, summaries: Mapping[str, Mapping[str, object]], round_num: int) -> None:
        """Take what nodes tell of their data in a round, by node id; it may be malformed."""

    def data_orders(self) -> Mapping[str, str | bool]:
        """Say what the next train message tells the nodes of the data that they compare with."""


class ProductionWatch(Protocol):
    """Who looks after a version once it was promoted, for instance a ``Probation``."""

    def review(self) -> None:
        """Do what is due; called after each round."""

    def to_compare(self) -> tuple[str, str | None] | None:
        """Name the version on probation and the one it would go back to, if there is any."""

    def update_production(
        self, version: str, evidence: Evidence, *, rival: str | None = None
    ) -> None:
        """Hear how both score on the same data, the rival as ``champion``."""
