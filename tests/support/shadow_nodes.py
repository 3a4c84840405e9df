# SPDX-License-Identifier: Apache-2.0
"""Nodes that score two models, and a registry with a version in production, for shadow tests."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from flwr.app import Error, Message, RecordDict
from flwr.serverapp.strategy import FedAvg, Strategy

from fl_app import LifecycleStrategy
from fl_app.strategy import Finite, ShadowEvaluation
from fl_app.strategy.records import SessionReport
from fl_registry import InMemoryModelStore, InMemoryTracker, Stage, Verdict
from support.local_grid import LocalGrid, add_one, model, reply

NODES = tuple(range(101, 109))
PASS = {Stage.STAGING: [Finite()], Stage.PRODUCTION: []}
NOTHING = {Stage.STAGING: [lambda evidence: Verdict("Nothing", False, "nothing passes")]}

Score = Callable[[int, float], float]


def grows(node_id: int, weight: float) -> float:
    """The heavier model is better on each node, by no two the same."""
    return 0.3 + weight * (0.05 + node_id % 10 / 1000)


def falls(node_id: int, weight: float) -> float:
    return 1 - grows(node_id, weight)


def mixed(node_id: int, weight: float) -> float:
    """Better on every other node."""
    return 0.5 + weight * (0.05 if node_id % 2 else -0.05)


class Nodes(LocalGrid):
    """Nodes that learn, and score a model by its weight; in shadow rounds `faults` go before.

    What they are sent before round 1, to score what is in Production, is in no list.
    """

    def __init__(
        self,
        score: Score,
        node_ids: Sequence[int] = NODES,
        faults: Callable[[int, Message], RecordDict | Error | None] = lambda node, message: None,
    ) -> None:
        self.score, self.faults = score, faults
        self.evaluated: list[tuple[int, float]] = []
        self.answers: list[RecordDict | Error] = []
        super().__init__(self.reply_of, node_ids)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        sent = list(messages)
        if any(message.content["config"]["server-round"] == 0 for message in sent):
            before = LocalGrid(lambda n, m: reply(accuracy=self.score(n, weight_of(m))))
            return before.send_and_receive(sent)
        return super().send_and_receive(sent, timeout=timeout)

    def reply_of(self, node_id: int, message: Message) -> RecordDict | Error:
        if message.metadata.message_type == "train":
            return add_one(node_id, message)
        in_shadow = int(message.content["config"]["server-round"]) > 1
        fault = self.faults(node_id, message) if in_shadow else None
        good = reply(accuracy=self.score(node_id, weight_of(message)), digest=f"data-{node_id}")
        self.evaluated.append((node_id, weight_of(message)))
        self.answers.append(good if fault is None else fault)
        return self.answers[-1]


def weight_of(message: Message) -> float:
    return float(message.content["arrays"].to_numpy_ndarrays()[0].mean())


class World:
    """A store with version 1 of weight 1 in production, and sessions that bring weight 3."""

    def __init__(self) -> None:
        self.store, self.tracker = InMemoryModelStore(), InMemoryTracker()
        self.strategy("auto").start(Nodes(grows), model(0), num_rounds=1)
        assert self.store.get_latest_version(Stage.PRODUCTION) == "1"
        self.reports: list[SessionReport] = []

    def strategy(self, approval: Any = "manual", inner: Strategy | None = None, **more: Any) -> Any:
        settings: dict[str, Any] = {"metric": "accuracy", "policy": PASS, "approval": approval}
        parts = {"store": self.store, "tracker": self.tracker}
        return LifecycleStrategy(inner or FedAvg(), **{**settings, **parts, **more})

    def session(
        self, grid: LocalGrid, shadow: ShadowEvaluation | None, *, start: float = 2, **more: Any
    ) -> Any:
        """Run one round and the shadow rounds; return the result of `start`."""

        def keep(report: SessionReport, folder: Any) -> list[Any]:
            self.reports.append(report)
            return []

        strategy = self.strategy(**more, shadow=shadow, artifacts=[keep])
        return strategy.start(grid, model(start), num_rounds=1)

    def tags(self, version: str = "2") -> Any:
        return self.store.get_version(version).tags

    def stage(self, version: str = "2") -> Stage:
        return self.store.get_version(version).stage

    def result(self, version: str = "2") -> dict[str, Any]:
        return dict(json.loads(self.tags(version)["shadow"]))


class Turns(FedAvg):
    """Asks two nodes to evaluate, the next two in each round."""

    def configure_evaluate(self, server_round: int, *args: Any) -> Any:
        messages = sorted(
            super().configure_evaluate(server_round, *args), key=lambda m: m.metadata.dst_node_id
        )
        first = 2 * (server_round % 4)
        return messages[first : first + 2]


def counted(world: World, rounds: int) -> set[str]:
    told = json.loads(world.tags()["shadow_scores"])["rounds"][:rounds]
    return {node for pairs in told for _, _, nodes, _ in pairs for node in nodes}
