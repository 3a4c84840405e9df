# SPDX-License-Identifier: Apache-2.0
"""Every strategy that Flower exports makes the same of the same replies inside the wrapper."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.app.message import arrayrecord
from flwr.serverapp import strategy as flower
from flwr.serverapp.strategy import Result, Strategy
from support.local_grid import LocalGrid
from support.shipped_strategies import NO_STRATEGIES, NODES, OF_ARRAYS, OF_TREES

from fl_app import LifecycleStrategy
from fl_registry import InMemoryModelStore, InMemoryTracker

ROUNDS = 3
MADE_FLOAT64 = {"FedAdam", "QFedAvg"}
"""By themselves these make a float32 model float64; the wrapper gives it its dtype back."""

Train = Callable[[np.random.Generator, ArrayRecord], ArrayRecord]


@dataclass
class Nodes:
    """Nodes that train from what they are sent, and note what that was; alike in each session."""

    train: Train
    asked: list[tuple[object, ...]] = field(default_factory=list)

    def answer(self, node: int, message: Message) -> RecordDict:
        arrays, config = message.content["arrays"], dict(message.content["config"])
        kind = message.metadata.message_type
        self.asked.append((node, kind, config, bits(arrays)))
        chance = np.random.default_rng([node, int(config["server-round"])])
        metrics = {
            "num-examples": int(chance.integers(10, 100)),
            "train_loss": float(chance.uniform(0.1, 1)),
            "norm_bit": int(chance.integers(0, 2)),
        }
        content = RecordDict({"metrics": MetricRecord(dict(metrics))})
        if kind == "train":
            content["arrays"] = self.train(chance, arrays)
        return content


@dataclass
class Session:
    """A session of a strategy with nodes of its own.

    Attributes
    ----------
    models : dict[int, Any]
        By round the bits of the global model that Flower's loop has evaluated.
    """

    result: Result
    nodes: Nodes
    models: dict[int, Any]


def session(strategy: Strategy, train: Train, first: ArrayRecord) -> Session:
    nodes, models = Nodes(train), {}

    def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        models[server_round] = bits(arrays)
        return MetricRecord({"rounds": server_round})

    np.random.seed(1)
    random.seed(1)
    grid = LocalGrid(nodes.answer, NODES)
    result = strategy.start(grid, first, num_rounds=ROUNDS, evaluate_fn=evaluate)
    return Session(result, nodes, models)


def wrapped(strategy: Strategy, home: Path) -> Strategy:
    return LifecycleStrategy(
        strategy, store=InMemoryModelStore(), tracker=InMemoryTracker(), home=home
    )


def bits(arrays: ArrayRecord) -> list[tuple[object, ...]]:
    return [(name, a.dtype, a.shape, a.data) for name, a in arrays.items()]


def assert_alike(ours: Session, theirs: Session) -> None:
    assert sorted(ours.models) == [*range(ROUNDS + 1)]
    assert ours.models == theirs.models
    assert bits(ours.result.arrays) == bits(theirs.result.arrays)
    assert ours.nodes.asked == theirs.nodes.asked
    for phase in ("train_metrics_clientapp", "evaluate_metrics_clientapp"):
        told, expected = getattr(ours.result, phase), getattr(theirs.result, phase)
        assert {r: dict(m) for r, m in told.items()} == {r: dict(m) for r, m in expected.items()}
    assert len({str(model) for model in ours.models.values()}) == ROUNDS + 1  # each round moved it


def a_step(chance: np.random.Generator, arrays: ArrayRecord) -> ArrayRecord:
    """Each float a bit further on, in its own dtype."""
    return ArrayRecord(
        {
            name: Array(np.asarray(a.numpy() + chance.normal(1, 0.3, a.shape), a.numpy().dtype))
            for name, a in arrays.items()
        }
    )


def floats(dtype: type[np.floating[Any]]) -> ArrayRecord:
    shapes = {"layer.weight": (4, 3), "layer.bias": (3,), "scale": ()}
    return ArrayRecord({name: Array(np.full(s, 0.5, dtype)) for name, s in shapes.items()})


def in_float32(strategy: Strategy) -> Strategy:
    """The bare strategy, but that what it aggregates is cast to float32."""
    aggregate = strategy.aggregate_train

    def cast(server_round: int, replies: Iterable[Message]) -> Any:
        arrays, metrics = aggregate(server_round, replies)
        assert arrays is not None
        narrow = {name: Array(np.asarray(a.numpy(), np.float32)) for name, a in arrays.items()}
        return ArrayRecord(narrow), metrics

    strategy.aggregate_train = cast  # type: ignore[method-assign]
    return strategy


@pytest.fixture(autouse=True)
def no_garbage_is_collected(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flower collects garbage for each array that QFedAvg and Bulyan read: seconds a test."""
    monkeypatch.setattr(arrayrecord, "gc", SimpleNamespace(collect=lambda: 0))


def test_every_strategy_that_flower_exports_is_tried() -> None:
    assert {*OF_ARRAYS, *OF_TREES, *NO_STRATEGIES} == set(flower.__all__)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [(name, np.float32) for name in OF_ARRAYS] + [(n, np.float64) for n in sorted(MADE_FLOAT64)],
)
def test_arrays_are_bit_for_bit_those_of_the_bare_strategy(
    name: str, dtype: type[np.floating[Any]], home: Path
) -> None:
    alone = OF_ARRAYS[name]()
    if dtype is np.float32 and name in MADE_FLOAT64:
        alone = in_float32(alone)
    bare = session(alone, a_step, floats(dtype))
    ours = session(wrapped(OF_ARRAYS[name](), home), a_step, floats(dtype))
    assert_alike(ours, bare)


def a_tree(chance: np.random.Generator, arrays: ArrayRecord) -> ArrayRecord:
    """One tree of the node's own, as far as Flower reads it, of another length each time."""
    model = {
        "gbtree_model_param": {"num_trees": "1", "num_parallel_tree": "1"},
        "trees": [{"id": 0, "base_weights": chance.normal(size=chance.integers(1, 9)).tolist()}],
        "tree_info": [0],
        "iteration_indptr": [0, 1],
    }
    return document(json.dumps({"learner": {"gradient_booster": {"model": model}}}).encode())


def document(content: bytes) -> ArrayRecord:
    return ArrayRecord([np.frombuffer(content, np.uint8)])


@pytest.mark.parametrize("name", OF_TREES)
def test_trees_are_byte_for_byte_those_of_the_bare_strategy(name: str, home: Path) -> None:
    bare = session(OF_TREES[name](), a_tree, document(b""))
    ours = session(wrapped(OF_TREES[name](), home), a_tree, document(b""))
    assert_alike(ours, bare)
