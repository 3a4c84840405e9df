# SPDX-License-Identifier: Apache-2.0
"""The messages of a shadow round: which node scores which model, and how replies are paired."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from fl_app.strategy.round.aggregate import aggregate_evaluate
from fl_app.strategy.round.grids import NODE_WAIT_SECONDS, NodeDeadline
from fl_app.strategy.round.screening import (
    DEFAULT_SCREENING,
    ScreenedReplies,
    Screening,
    needs_of,
    screen_evaluate,
)
from fl_app.strategy.round.state import NodeScore, node_scores
from fl_app.strategy.shadow.scores import Paired
from fl_registry.redaction import one_line

logger = logging.getLogger("flwr.fl_app")

Arm = Literal["candidate", "champion"]
ARMS: tuple[Arm, Arm] = ("candidate", "champion")


@dataclass
class NodeEvaluation:
    """How a session has nodes evaluate: by the inner strategy, on the session's grid.

    Attributes
    ----------
    strategy : Strategy
        Samples the nodes and writes their messages.
    grid : Grid
        Where these are sent.
    server_round : int
        The last round of the strategy; its next one has the next number.
    config : ConfigRecord | None
        The evaluate config of the session.
    timeout : float
        Seconds to wait for a round's replies.
    screening : Screening | None
        What is required of a reply.
    node_wait : float
        Seconds to wait for as many nodes as the strategy needs.
    metric : str | None
        The metric that is compared; the limit on the number of metrics does not count it.
    """

    strategy: Strategy
    grid: Grid
    server_round: int
    config: ConfigRecord | None
    timeout: float
    screening: Screening | None = DEFAULT_SCREENING
    node_wait: float = NODE_WAIT_SECONDS
    metric: str | None = None

    def messages(self, arrays: ArrayRecord) -> list[Message]:
        """Return the strategy's messages of one more round."""
        self.server_round += 1
        config = self.config if self.config is not None else ConfigRecord()
        waits = NodeDeadline(self.grid, self.strategy, phase="evaluate", seconds=self.node_wait)
        return list(self.strategy.configure_evaluate(self.server_round, arrays, config, waits))

    def send(self, messages: Sequence[Message]) -> list[Message]:
        """Send messages and return the replies."""
        if not messages:
            return []
        return list(self.grid.send_and_receive(messages, timeout=self.timeout))

    def aggregate(
        self, replies: Sequence[Message], *, what: str = "shadow evaluation"
    ) -> tuple[MetricRecord | None, ScreenedReplies]:
        """Return the strategy's average of the metrics, and the screened replies.

        ``what`` is evaluated, for the log.
        """
        needs = needs_of(self.strategy, evaluate=True)
        screened = screen_evaluate(replies, self.screening, needs=needs, metric=self.metric)
        for node, why in screened.rejected.items():
            logger.warning("%s: the reply of node %s is rejected: %s", what, node, why)
        return aggregate_evaluate(self.strategy, self.server_round, screened), screened

    def nodes(self) -> set[str]:
        """Return the ids of all connected nodes."""
        return {str(node_id) for node_id in self.grid.get_node_ids()}


@dataclass(frozen=True)
class Request:
    """A message of a shadow round: its pair of scores, the model that it brings, and the node."""

    pair: int
    arm: Arm
    node: str
    message: Message


def request_both(
    messages: Iterable[Message], models: Mapping[Arm, ArrayRecord], skip: Iterable[str]
) -> list[Request]:
    """Have each node score both models: the inner strategy's message, and one like it."""
    skipped = set(skip)
    return [
        request
        for number, message in enumerate(messages)
        if _node(message) not in skipped
        for request in (_request(number, arm, message, models) for arm in ARMS)
    ]


def request_one_each(
    messages: Iterable[Message],
    models: Mapping[Arm, ArrayRecord],
    skip: Iterable[str],
    chance: random.Random,
) -> list[Request]:
    """Have each node score one model: nodes are paired at random, and so is who scores which."""
    skipped = set(skip)
    free = [message for message in messages if _node(message) not in skipped]
    chance.shuffle(free)
    couples = zip(free[::2], free[1::2], strict=False)  # an odd node out gets no message
    return [
        _request(number, arm, message, models)
        for number, couple in enumerate(couples)
        for arm, message in zip(ARMS, couple, strict=True)
    ]


def _request(number: int, arm: Arm, message: Message, models: Mapping[Arm, ArrayRecord]) -> Request:
    wanted = with_arrays(message, models["candidate"], models[arm])
    return Request(number, arm, _node(message), wanted)


def _node(message: Message) -> str:
    return str(message.metadata.dst_node_id)


def with_arrays(message: Message, old: ArrayRecord, new: ArrayRecord) -> Message:
    """Return the message, or one like it with other arrays in place of the old ones."""
    if new is old:
        return message
    content = RecordDict(
        {key: new if record == old else record for key, record in message.content.items()}
    )
    sent = message.metadata
    return Message(
        content, sent.dst_node_id, sent.message_type, ttl=sent.ttl, group_id=sent.group_id
    )


def carries(message: Message, arrays: ArrayRecord) -> bool:
    """Whether a message brings these arrays as they are."""
    return any(record == arrays for record in message.content.array_records.values())


def size(messages: Iterable[Message]) -> int:
    """Bytes of the records in messages; Flower's own headers come on top."""
    return sum(
        record.count_bytes()
        for message in messages
        if message.has_content()
        for record in message.content.values()
    )


@dataclass(frozen=True)
class Replies:
    """The replies of a shadow round beside its requests.

    A reply is matched by the id of the message that it answers, which errors have too. The message
    itself does not say which of the two models it brings.
    """

    requests: Sequence[Request]
    replies: Sequence[Message]
    metric: str

    def of(self, arm: Arm) -> list[Message]:
        """Return the replies on one model."""
        ids = {r.message.metadata.message_id for r in self.requests if r.arm == arm}
        return [m for m in self.replies if m.metadata.reply_to_message_id in ids]

    def pairs(self) -> Iterator[Paired | str]:
        """Return each pair of scores, or why there is none."""
        for candidate, champion in zip(self.requests[::2], self.requests[1::2], strict=True):
            yield self._pair(candidate, champion)

    def _pair(self, *couple: Request) -> Paired | str:
        by_id = {m.metadata.reply_to_message_id: m for m in self.replies}
        scores = []
        for request in couple:
            reply = by_id.get(request.message.metadata.message_id)
            score = _score(reply, self.metric)
            if isinstance(score, str):
                return f"node {request.node}, on the {request.arm}: {score}"
            scores.append(score)
        nodes = tuple(dict.fromkeys(request.node for request in couple))
        keys = tuple(score.key for score in scores)
        if len(nodes) == 1 and keys[0] != keys[1]:
            return f"node {nodes[0]}: its data changed between its two answers"
        return Paired(scores[0].score, scores[1].score, nodes, keys[: len(nodes)])


def _score(reply: Message | None, metric: str) -> NodeScore | str:
    """Return the score in a reply, or what is wrong with it."""
    if reply is None:
        return "no answer in time"
    if reply.has_error():
        return one_line(" ".join((reply.error.reason or f"error {reply.error.code}").split()))
    scores = node_scores([reply], metric)
    if scores:
        return scores[0]
    seen = next(iter(reply.content.metric_records.values()), MetricRecord())
    return one_line(f"no {metric!r} in the answer, but {sorted(seen)}")
