# SPDX-License-Identifier: Apache-2.0
"""A closed round as a record: all that is needed to finish it, and what nodes reported in it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord

from fl_app.events import RejectedReply
from fl_app.wire.data_summary import SUMMARY_RECORD

NODE_RECORD = "node"
"""Key of the ConfigRecord in which a ClientApp may send the digest of the data it trained on."""
_MAX_DIGEST = 128


@dataclass(frozen=True)
class Contribution:
    """A node's part in a round, and the summary of its data if it sends one."""

    node_id: str
    num_examples: float
    data_digest: str
    summary: Mapping[str, object] | None = None


@dataclass(frozen=True)
class NodeScore:
    """The score of a node's evaluation; ``key`` stays the same as long as its data do."""

    node_id: str
    key: str
    score: float


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
        Why the global model did not change; empty if there is a new one.
    nodes : tuple[Contribution, ...]
        Nodes that took part in the new model.
    train, clients : MetricRecord | None
        The nodes' metrics of training and of evaluation, averaged.
    central : MetricRecord | None
        What ``evaluate_fn`` returned; None before it was called, or if it returned nothing.
    node_scores : tuple[NodeScore, ...]
        The metric on each node that evaluated it.
    unscored : str
        Why the round has no value of the metric although nodes reported one; empty if it has, or
        no node reported it.
    seconds : float
        Wall time from its first message to the end of the nodes' evaluation.
    rejected : tuple[RejectedReply, ...]
        Replies that were rejected.
    tags : Mapping[str, str]
        Tags of the session, for the version that the round becomes.
    time : datetime
        When its model was made, in UTC.
    arrays : ArrayRecord | None
        The global model after it; None if they are on disk only.
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


def contributions(replies: Iterable[Message], weighted_by: str | None) -> tuple[Contribution, ...]:
    """Return the nodes that replied, with their numbers of examples and data digests."""
    nodes = []
    for message in replies:
        if message.has_error():
            continue
        metrics = next(iter(message.content.metric_records.values()), MetricRecord())
        examples = metrics.get(weighted_by or "num-examples", 0)
        nodes.append(
            Contribution(
                node_id=str(message.metadata.src_node_id),
                num_examples=float(examples) if isinstance(examples, int | float) else 0.0,
                data_digest=_digest(message),
                summary=message.content.config_records.get(SUMMARY_RECORD),
            )
        )
    return tuple(nodes)


def node_scores(replies: Iterable[Message], metric: str | None) -> tuple[NodeScore, ...]:
    """Return how each node scored the model that it evaluated; nodes without a score are left out.

    A node that sends no digest of its data is assumed to have the same data as long as its id.
    """
    scores = []
    for message in replies:
        if message.has_error():
            continue
        metrics = next(iter(message.content.metric_records.values()), MetricRecord())
        score, node_id = metrics.get(metric or ""), str(message.metadata.src_node_id)
        if isinstance(score, int | float):
            key = _digest(message)[:16] or f"node {node_id}"
            scores.append(NodeScore(node_id, key, float(score)))
    return tuple(scores)


def _digest(message: Message) -> str:
    """Return the digest of a node's data; empty if it sends none that is short and printable."""
    node = message.content.config_records.get(NODE_RECORD, ConfigRecord())
    digest = node.get("data-digest")
    fits = isinstance(digest, str) and len(digest) <= _MAX_DIGEST and digest.isprintable()
    return str(digest) if fits else ""
