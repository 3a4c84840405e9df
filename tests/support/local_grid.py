# SPDX-License-Identifier: Apache-2.0
"""A Grid whose nodes answer in this process, in order: Flower's loop without Flower's engine."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.run import Run

Answer = Callable[[int, Message], RecordDict | Error]


class LocalGrid(Grid):
    """Hands each message to ``answer(node_id, message)`` and brings the reply."""

    def __init__(self, answer: Answer, node_ids: Sequence[int] = (11, 12, 13)) -> None:
        self.answer = answer
        self.node_ids = list(node_ids)
        self.sent: list[Message] = []
        self._run = Run.create_empty(7)

    @property
    def run(self) -> Run:
        return self._run

    def set_run(self, run: Run) -> None:
        self._run = run

    def create_message(self, *args: object, **kwargs: object) -> Message:
        raise NotImplementedError("Flower builds messages by their constructor since 1.19")

    def get_node_ids(self) -> Iterable[int]:
        return list(self.node_ids)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        raise NotImplementedError("Strategy.start() uses send_and_receive only")

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        raise NotImplementedError("Strategy.start() uses send_and_receive only")

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        replies = []
        for message in messages:
            message.metadata.__dict__["_message_id"] = str(len(self.sent))
            self.sent.append(message)
            node_id = message.metadata.dst_node_id
            reply = Message(self.answer(node_id, message), reply_to=message)
            reply.metadata.__dict__["_src_node_id"] = node_id
            replies.append(reply)
        return replies


def reply(
    arrays: ArrayRecord | None = None,
    *,
    examples: float = 10,
    digest: str = "",
    **metrics: float,
) -> RecordDict:
    """What a well-behaved ClientApp sends back."""
    records = RecordDict({"metrics": MetricRecord({"num-examples": examples, **metrics})})
    if arrays is not None:
        records["arrays"] = arrays
    if digest:
        records["node"] = ConfigRecord({"data-digest": digest})
    return records


def model(value: float = 0.0) -> ArrayRecord:
    """A small global model: a float matrix and an integer counter, as BatchNorm has one."""
    return ArrayRecord(
        [np.full((2, 3), value, dtype=np.float32), np.asarray(int(value), dtype=np.int64)]
    )


def add_one(node_id: int, message: Message) -> RecordDict:
    """Train: every weight plus one. Evaluate: an accuracy that grows with the weights."""
    received = message.content["arrays"].to_numpy_ndarrays()
    if message.metadata.message_type == "train":
        grown = [np.asarray(a + 1, dtype=a.dtype) for a in received]
        return reply(ArrayRecord(grown), loss=1.0, digest=f"data-of-{node_id}")
    return reply(accuracy=float(received[0].mean()) / 10)
