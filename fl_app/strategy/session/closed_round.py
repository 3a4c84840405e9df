# SPDX-License-Identifier: Apache-2.0
"""A closed round as a record, as JSON and back: all that is needed to finish it, but its arrays."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import UTC, datetime
from typing import Any

from flwr.app import ArrayRecord, MetricRecord

from fl_app.events import RejectedReply, RoundReport
from fl_app.strategy.finish.provenance import Contribution, NodeScore
from fl_app.strategy.round.rejected_nodes import rejected_tag
from fl_app.strategy.session.plain_json import decode, encode
from fl_registry import Stage


def _now() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True)
class ClosedRound:
    """A round that is over for the nodes, with or without a new global model.

    Attributes
    ----------
    round : int
        Its number in the session, from 1.
    problem : str
        Why it left the global model as it was; empty if it made a new one.
    nodes : tuple[Contribution, ...]
        Who took part in the new model.
    train, clients : MetricRecord | None
        The nodes' metrics of training and of evaluation, averaged.
    central : MetricRecord | None
        What ``evaluate_fn`` returned; None before it was called, or where it returned nothing.
    node_scores : tuple[NodeScore, ...]
        The metric on each node that evaluated it.
    unscored : str
        Why the round has no value of the metric although nodes reported one; empty if it has, or
        nobody did.
    seconds : float
        Wall time from its first message to the end of the nodes' evaluation.
    rejected : tuple[RejectedReply, ...]
        Replies that did not count.
    tags : Mapping[str, str]
        Where the session comes from, for the version that the round becomes.
    time : datetime
        When its model was made, in UTC.
    arrays : ArrayRecord | None
        The global model after it; None where they are on disk only.
    """

    round: int
    problem: str = ""
    nodes: tuple[Contribution, ...] = ()
    train: MetricRecord | None = None
    clients: MetricRecord | None = None
    central: MetricRecord | None = None
    node_scores: tuple[NodeScore, ...] = ()
    unscored: str = ""
    seconds: float = 0.0
    rejected: tuple[RejectedReply, ...] = ()
    tags: Mapping[str, str] = field(default_factory=dict)
    time: datetime = field(default_factory=_now)
    arrays: ArrayRecord | None = field(default=None, compare=False, repr=False)

    def failed_tags(self) -> dict[str, str]:
        """The tags of the session's run that tell of a round without a new model."""
        told = {"failed_round": self.problem, **rejected_tag(self.rejected)}
        return {f"{name}.{self.round}": value for name, value in told.items()}

    def to_json(self) -> dict[str, Any]:
        """All but the arrays, as JSON knows it."""
        plain = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "arrays"}
        rows = {
            "nodes": [_plain_node(node) for node in self.nodes],
            "node_scores": [asdict(score) for score in self.node_scores],
            "rejected": [asdict(node) for node in self.rejected],
            "tags": dict(self.tags),
            "central": None if self.central is None else MetricRecord(dict(self.central)),
            "time": self.time.isoformat(),
        }
        return {name: encode(value) for name, value in (plain | rows).items()}

    @classmethod
    def from_json(cls, text: Mapping[str, Any]) -> ClosedRound:
        """The round that `to_json` wrote down; raises NotPlainError, KeyError or TypeError."""
        plain = {name: decode(value) for name, value in text.items()}
        return cls(
            **plain
            | {
                "nodes": tuple(Contribution(**row) for row in plain["nodes"]),
                "node_scores": tuple(NodeScore(**row) for row in plain["node_scores"]),
                "rejected": tuple(RejectedReply(**row) for row in plain["rejected"]),
                "time": datetime.fromisoformat(plain["time"]),
            }
        )


def _plain_node(node: Contribution) -> dict[str, object]:
    return {f.name: getattr(node, f.name) for f in fields(node)}


def report_to_json(report: RoundReport) -> dict[str, Any]:
    """A report as JSON knows it."""
    rows = {
        "metrics": dict(report.metrics),
        "stage": str(report.stage),
        "rejected": [asdict(node) for node in report.rejected],
        "time": report.time.isoformat(),
    }
    plain = {f.name: getattr(report, f.name) for f in fields(report)}
    return {name: encode(value) for name, value in (plain | rows).items()}


def report_from_json(text: Mapping[str, Any]) -> RoundReport:
    """The report that `report_to_json` wrote down; raises as ``ClosedRound.from_json`` does."""
    plain = {name: decode(value) for name, value in text.items()}
    report = RoundReport(**plain)
    return replace(
        report,
        stage=Stage(report.stage),
        rejected=tuple(RejectedReply(**row) for row in plain["rejected"]),
        time=datetime.fromisoformat(plain["time"]),
    )
