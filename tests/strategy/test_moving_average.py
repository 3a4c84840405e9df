# SPDX-License-Identifier: Apache-2.0
"""A global model that is a moving average over rounds, while nodes go on from the latest one."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Context, Message, RecordDict
from support.local_grid import LocalGrid, reply

from fl_app import LifecycleStrategy
from fl_app.client.mods.compression import compress_updates
from fl_app.strategy import EmaFedAvg
from fl_registry import InMemoryModelStore, InMemoryTracker

DECAY, ROUNDS, START = 0.6, 6, 100.0


class StoppedError(BaseException):
    """The process ends."""


class Nodes:
    """Two nodes that add one to what they are sent, and note what they train on and score."""

    def __init__(self, *, stop: int = 0, encoding: str = "") -> None:
        self.stop, self.encoding = stop, encoding
        self.trained: list[float] = []
        self.scored: list[float] = []

    def __call__(self, node_id: int, message: Message) -> RecordDict:
        arrays = message.content.array_records["arrays"]
        value, count = float(arrays["w"].numpy()[0]), int(arrays["n"].numpy()[0])
        if message.metadata.message_type == "evaluate":
            self.scored.append(value)
            return reply(accuracy=value)
        if message.content["config"]["server-round"] == self.stop:
            raise StoppedError
        self.trained.append(value)
        answer = Message(reply(model(value + 1, count + 1), loss=1.0), reply_to=message)
        if not self.encoding:
            return answer.content
        context = Context(7, node_id, {}, RecordDict(), {})
        return compress_updates(self.encoding)(message, context, lambda *_: answer).content


def model(value: float = START, count: int = 0) -> ArrayRecord:
    return ArrayRecord(
        {"w": Array(np.full(300, value, np.float32)), "n": Array(np.full(1, count, np.int64))}
    )


def expected() -> list[float]:
    """The global models: the moving average of START + 1, START + 2 and so on."""
    found: list[float] = []
    for number in range(1, ROUNDS + 1):
        average, kept = START + number, min(DECAY, (number - 1) / number)
        found.append(kept * found[-1] + (1 - kept) * average if found else average)
    return found


@dataclass
class World:
    """What the processes of a server share."""

    home: Path
    store: InMemoryModelStore = field(default_factory=InMemoryModelStore)
    tracker: InMemoryTracker = field(default_factory=InMemoryTracker)

    def session(self, nodes: Nodes) -> ArrayRecord:
        """Run a session, or what is left of the last one."""
        self.tracker.run = None
        strategy = LifecycleStrategy(EmaFedAvg(DECAY), **vars(self))
        grid = LocalGrid(nodes, node_ids=(1, 2))
        return strategy.start(grid, model(), num_rounds=ROUNDS).arrays


@pytest.fixture
def world(home: Path) -> World:
    return World(home)


@pytest.mark.parametrize("encoding", ["", "float16"])
def test_the_global_model_is_the_average_and_nodes_train_the_latest(
    world: World, encoding: str
) -> None:
    nodes = Nodes(encoding=encoding)
    made = world.session(nodes)
    assert made["w"].numpy()[0] == pytest.approx(expected()[-1], rel=1e-5)
    assert (made["n"].dtype, int(made["n"].numpy()[0])) == ("int64", ROUNDS)
    assert nodes.trained[::2] == [START + number for number in range(ROUNDS)]
    assert nodes.scored[-2:] == pytest.approx(2 * [expected()[-1]], rel=1e-5)


def test_a_session_that_was_cut_short_goes_on_with_both(world: World) -> None:
    with pytest.raises(StoppedError):
        world.session(Nodes(stop=4))
    nodes = Nodes()
    made = world.session(nodes)
    assert nodes.trained[::2] == [START + number for number in range(3, ROUNDS)]
    assert made["w"].numpy()[0] == pytest.approx(expected()[-1], rel=1e-5)
