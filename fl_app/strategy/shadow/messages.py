# SPDX-License-Identifier: Apache-2.0
"""How a session has nodes evaluate, and the messages in which they score two models."""

from __future__ import annotations

import logging
import random
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid

from fl_app.strategy.round.grids import NodeDeadline
from fl_app.strategy.round.inner_strategy import aggregate_evaluate
from fl_app.strategy.round.screening import ScreenedReplies, needs_of, screen_evaluate
from fl_app.strategy.setup import Setup

logger = logging.getLogger("flwr.fl_app")

Couple = tuple[Message, Message]
"""Two messages of which one brings the candidate, and the other one the champion."""


@dataclass
class NodeEvaluation:
    """How a session has nodes evaluate: by the inner strategy, on the session's grid.

    Attributes
    ----------
    setup : Setup
        The inner strategy, which samples the nodes, and what is required of a reply.
    grid : Grid
        Where its messages are sent.
    config : ConfigRecord
        The evaluate config of the session.
    timeout : float
        Seconds to wait for a round's replies.
    server_round : int
        The last round of the strategy; its next one has the next number.
    """

    setup: Setup
    grid: Grid
    config: ConfigRecord
    timeout: float
    server_round: int = -1

    def messages(self, arrays: ArrayRecord) -> list[Message]:
        """Return the strategy's messages of one more round."""
        self.server_round += 1
        strategy, seconds = self.setup.strategy, self.setup.rounds.node_wait_timeout
        waits = NodeDeadline(self.grid, strategy, phase="evaluate", seconds=seconds)
        return list(strategy.configure_evaluate(self.server_round, arrays, self.config, waits))

    def send(self, messages: Sequence[Message]) -> list[Message]:
        """Send messages and return the replies."""
        return list(self.grid.send_and_receive(messages, timeout=self.timeout)) if messages else []

    def aggregate(
        self, replies: Sequence[Message], *, what: str = "shadow evaluation"
    ) -> tuple[MetricRecord | None, ScreenedReplies]:
        """Return the strategy's average of the metrics, and the screened replies.

        ``what`` is evaluated, for the log.
        """
        strategy, rules = self.setup.strategy, self.setup.rounds.screening
        needs, metric = needs_of(strategy, evaluate=True), self.setup.metric
        screened = screen_evaluate(replies, rules, needs=needs, metric=metric)
        for node, why in screened.rejected.items():
            logger.warning("%s: the reply of node %s is rejected: %s", what, node, why)
        return aggregate_evaluate(strategy, self.server_round, screened), screened


def couples(
    messages: Iterable[Message],
    candidate: ArrayRecord,
    champion: ArrayRecord,
    skip: Collection[str],
    chance: random.Random | None,
) -> list[Couple]:
    """Return the messages in which nodes score both models.

    Parameters
    ----------
    messages : Iterable[Message]
        The inner strategy's, which bring the candidate.
    candidate, champion : ArrayRecord
        The arrays of both models.
    skip : Collection[str]
        Nodes that get no message.
    chance : random.Random | None
        Pairs nodes at random, of which each scores one model, and chooses who scores which; an odd
        node out gets no message. None has each node score both.
    """
    free = [message for message in messages if node_of(message) not in skip]
    pairs = list(zip(free, free, strict=True))
    if chance is not None:
        chance.shuffle(free)
        pairs = list(zip(free[::2], free[1::2], strict=False))
    return [(one, with_arrays(other, candidate, champion)) for one, other in pairs]


def node_of(message: Message) -> str:
    """Return the id of the node that a message is for."""
    return str(message.metadata.dst_node_id)


def with_arrays(message: Message, old: ArrayRecord, new: ArrayRecord) -> Message:
    """Return the message, or one like it with other arrays in place of the old ones."""
    if new is old:
        return message
    records, sent = message.content.items(), message.metadata
    content = RecordDict({key: new if record == old else record for key, record in records})
    return Message(
        content, sent.dst_node_id, sent.message_type, ttl=sent.ttl, group_id=sent.group_id
    )


def carries(message: Message, arrays: ArrayRecord) -> bool:
    """Whether a message brings these arrays as they are."""
    return any(record == arrays for record in message.content.array_records.values())


def size(messages: Iterable[Message]) -> int:
    """Bytes of the records in messages; Flower's own headers come on top."""
    return sum(r.count_bytes() for m in messages if m.has_content() for r in m.content.values())
