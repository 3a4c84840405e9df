# SPDX-License-Identifier: Apache-2.0
"""A session's rounds as records: the closed ones, the one under way, and the nodes rejected."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from fl_app.events import RejectedReply
from fl_app.strategy.errors import RunFailedError
from fl_app.strategy.round.screening import NODE_RECORD, Phase, ScreenedReplies
from fl_app.wire.arrays import Schema
from fl_app.wire.data_summary import SUMMARY_RECORD

logger = logging.getLogger("flwr.fl_app")

MAX_FAILED_ROUNDS = 3
"""Rounds without a new model, in a row, after which the run fails."""
_MAX_DIGEST = 128
TOO_OFTEN = 3
"""Rejected replies in a row after which the log warns of a node."""


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
    time: datetime = field(default_factory=lambda: datetime.now(UTC))
    arrays: ArrayRecord | None = field(default=None, compare=False, repr=False)


def contributions(replies: Iterable[Message], weighted_by: str | None) -> tuple[Contribution, ...]:
    """Return the nodes that replied, with their numbers of examples and data digests."""
    return tuple(
        Contribution(node, count or 0.0, digest, content.config_records.get(SUMMARY_RECORD))
        for node, digest, count, content in _reported(replies, weighted_by or "num-examples")
    )


def node_scores(replies: Iterable[Message], metric: str | None) -> tuple[NodeScore, ...]:
    """Return how each node scored the model that it evaluated; nodes without a score are left out.

    A node that sends no digest of its data is assumed to have the same data as long as its id.
    """
    return tuple(
        NodeScore(node, digest[:16] or f"node {node}", score)
        for node, digest, score, _ in _reported(replies, metric or "")
        if score is not None
    )


def _reported(
    replies: Iterable[Message], metric: str
) -> Iterator[tuple[str, str, float | None, RecordDict]]:
    """Return node id, digest of its data, number under a name, and content of each reply.

    The digest is empty if the node sends none that is short and printable.
    """
    for message in replies:
        if message.has_content():
            content = message.content
            metrics = next(iter(content.metric_records.values()), MetricRecord())
            digest = content.config_records.get(NODE_RECORD, ConfigRecord()).get("data-digest")
            fits = isinstance(digest, str) and len(digest) <= _MAX_DIGEST and digest.isprintable()
            value = metrics.get(metric)
            yield (
                str(message.metadata.src_node_id),
                str(digest) if fits else "",
                float(value) if isinstance(value, int | float) else None,
                content,
            )


@dataclass
class RoundInHand:
    """The round that is under way, and what its session remembers of those before it.

    Only Flower's thread reads and changes it.

    Attributes
    ----------
    num_rounds : int
        Rounds of the session, those of earlier processes included.
    tags : Mapping[str, str]
        Tags of the session, which its versions get.
    schema : Schema
        Arrays that every global model must have; empty until a server without a model has one.
    sent : ArrayRecord
        The global model that the nodes were sent in this round.
    offset : int
        Rounds that an earlier process has closed. Flower's loop counts from there.
    restored : ClosedRound | None
        A round whose model an earlier process has made, but which it did not close.
    current : ClosedRound
        The result of the last aggregation.
    requested : tuple[str, ...]
        Ids of the nodes that the last messages were sent to.
    stopped : str
        Why the remaining rounds are left out; empty if they are not.
    rejected : tuple[RejectedReply, ...]
        The replies rejected since the round began.
    rejected_in_a_row : dict[tuple[str, str], int]
        How often in a row, by phase and node id; without nodes whose last reply was accepted.
    noted : dict[tuple[str, str], str]
        The last note on accepted replies, by phase and node id.
    opened : float
        When the round began, by the monotonic clock.
    failed_in_a_row : int
        Rounds without a new model since the last one with a model.
    made_model : bool
        Whether a round made a model, those of earlier processes included.
    """

    num_rounds: int
    tags: Mapping[str, str]
    schema: Schema
    sent: ArrayRecord
    offset: int = 0
    restored: ClosedRound | None = None
    current: ClosedRound = field(default_factory=lambda: ClosedRound(0, "no round"))
    requested: tuple[str, ...] = ()
    stopped: str = ""
    rejected: tuple[RejectedReply, ...] = ()
    rejected_in_a_row: dict[tuple[Phase, str], int] = field(default_factory=dict)
    noted: dict[tuple[Phase, str], str] = field(default_factory=dict)
    opened: float = field(default_factory=time.monotonic)
    failed_in_a_row: int = 0
    made_model: bool = False

    def send(self, messages: Iterable[Message]) -> list[Message]:
        """Return the messages; replies are expected from the nodes that they go to."""
        sent = list(messages)
        self.requested = tuple(str(message.metadata.dst_node_id) for message in sent)
        return sent

    def take_restored(self) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Return the model and metrics that an earlier process has made in this round."""
        restored, self.restored = self.restored, None
        if restored is not None:
            self.current = replace(restored, tags=self.tags)
            self.rejected = self.current.rejected
        return self.current.arrays, self.current.train

    def note_rejected(
        self, phase: Phase, number: int, screened: ScreenedReplies, harmful: Mapping[str, str]
    ) -> None:
        """Count and log the rejected replies of a phase; training begins a round."""
        if phase == "train":
            self.rejected = ()
        for node, note in {**screened.out_of_scale(), **screened.notes}.items():
            if self.noted.get((phase, node)) != note:  # mostly the same in each round
                logger.info("round %d: of node %s: %s", number, node, note)
                self.noted[phase, node] = note
        bad, counts = {**screened.rejected, **harmful}, self.rejected_in_a_row
        for node in screened.nodes:
            if node not in bad:
                counts.pop((phase, node), None)
                continue
            count = counts[phase, node] = counts.get((phase, node), 0) + 1
            reply = RejectedReply(node, phase, bad[node], count)
            self.rejected += (reply,)
            logger.warning("round %d: node %s is rejected: %s", number, node, reply.as_line())
            if count == TOO_OFTEN:
                logger.warning("node %s keeps failing: look at it, or leave it out", node)

    def resume(self, closed: ClosedRound, *, aggregated_only: bool) -> None:
        """Take a round into account that an earlier process has run."""
        self.made_model |= not closed.problem
        if not aggregated_only:
            self.current = closed
            self.failed_in_a_row = self.failed_in_a_row + 1 if closed.problem else 0

    def count_failure(self) -> None:
        """Count the round if it has no new model; too many in a row raise RunFailedError."""
        problem = self.current.problem
        self.failed_in_a_row = self.failed_in_a_row + 1 if problem else 0
        if self.failed_in_a_row >= MAX_FAILED_ROUNDS:
            raise RunFailedError(
                f"{MAX_FAILED_ROUNDS} rounds in a row gave no model, the last one because "
                f"{problem}; look at the clients' log and run again."
            )

    def require_model(self) -> None:
        """Raise RunFailedError if there were rounds, and none of them made a model."""
        if self.num_rounds > 0 and not self.made_model and not self.stopped:
            raise RunFailedError(
                f"No round of {self.num_rounds} made a model, the last one because "
                f"{self.current.problem}; look at the clients' log and run again."
            )
