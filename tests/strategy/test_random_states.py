# SPDX-License-Identifier: Apache-2.0
"""Python's, NumPy's and torch's global generators are the user's: equal seeds, equal nodes."""

from __future__ import annotations

import pickle
import random
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.app.message import arrayrecord
from flwr.serverapp.strategy import FedAvg, Strategy
from support.local_grid import LocalGrid, add_one, model, reply
from support.shipped_strategies import OF_ARRAYS, OF_TREES

from fl_app import LifecycleStrategy
from fl_app.strategy import RoundSettings
from fl_registry import ModelManager

NODES = range(101, 111)
ROUNDS = 2
A_TREE = b"""{"learner": {"gradient_booster": {"model": {
"gbtree_model_param": {"num_trees": "1", "num_parallel_tree": "1"},
"trees": [{"id": 0}], "tree_info": [0], "iteration_indptr": [0, 1]}}}}"""


@pytest.fixture(autouse=True)
def no_garbage_is_collected(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flower collects garbage for each array that QFedAvg and Bulyan read: seconds a test."""
    monkeypatch.setattr(arrayrecord, "gc", SimpleNamespace(collect=lambda: 0))


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One home, with one MLflow database, for the sessions of all strategies."""
    return tmp_path_factory.mktemp("home")


def seed() -> None:
    random.seed(5)
    np.random.seed(5)
    torch.manual_seed(5)


def states() -> bytes:
    """The states of the three global generators, as they are now."""
    return pickle.dumps(
        (random.getstate(), np.random.get_state(), torch.get_rng_state().numpy().tobytes())
    )


def train(node_id: int, message: Message) -> RecordDict:
    """Train by steps that differ from node to node, so that the arrays show who took part."""
    arrays = message.content["arrays"]
    if message.metadata.message_type != "train":
        return reply(accuracy=0.5, eval_loss=0.5)
    values = [np.asarray(a + node_id / 7, dtype=a.dtype) for a in arrays.to_numpy_ndarrays()]
    return reply(ArrayRecord(values), train_loss=float(node_id), norm_bit=node_id % 2)


def grow(node_id: int, message: Message) -> RecordDict:
    if message.metadata.message_type != "train":
        return reply(accuracy=0.5)
    return reply(ArrayRecord([np.frombuffer(A_TREE, np.uint8)]))


def session(strategy: Strategy, answer: Any, first: ArrayRecord) -> tuple[Any, ...]:
    """The nodes that got each message, the final arrays, and the generators' states at the end."""
    seed()
    grid = LocalGrid(answer, NODES)
    result = strategy.start(grid, first, num_rounds=ROUNDS)
    nodes = [(m.metadata.message_type, m.metadata.dst_node_id) for m in grid.sent]
    return nodes, [array.data for array in result.arrays.values()], states()


def floats() -> ArrayRecord:
    return ArrayRecord([np.full((4, 3), 0.5, np.float32), np.full(3, 0.5, np.float32)])


@pytest.mark.parametrize("name", [*OF_ARRAYS, *OF_TREES])
def test_equal_seeds_sample_equal_nodes_with_and_without_the_wrapper(
    name: str, shared: Path
) -> None:
    def make() -> Strategy:
        if name == "FedXgbCyclic":  # it takes no fractions, and sends to one node a round
            return OF_TREES[name]()
        return {**OF_ARRAYS, **OF_TREES}[name](fraction_train=0.5, fraction_evaluate=0.3)

    def wrapped(*, pipeline: bool) -> Strategy:
        called = f"{name}-{pipeline}"
        store = ModelManager(registered_model_name=called, home=shared)
        return LifecycleStrategy(
            make(), store=store, home=shared, rounds=RoundSettings(pipeline=pipeline)
        )

    answer = grow if name in OF_TREES else train
    first = ArrayRecord([np.zeros(0, np.uint8)]) if name in OF_TREES else floats()
    bare = session(in_dtypes_of(first, make()), answer, first)
    assert len({node for kind, node in bare[0] if kind == "train"}) > 1
    assert session(wrapped(pipeline=True), answer, first) == bare
    assert session(wrapped(pipeline=False), answer, first) == bare


def in_dtypes_of(first: ArrayRecord, strategy: Strategy) -> Strategy:
    """The bare strategy; FedAdam and QFedAvg, which return float64, cast to the model's dtypes."""
    aggregate, dtypes = strategy.aggregate_train, [a.dtype for a in first.values()]

    def cast(server_round: int, replies: Iterable[Message]) -> Any:
        arrays, metrics = aggregate(server_round, replies)
        assert arrays is not None
        pairs = zip(arrays.to_numpy_ndarrays(), dtypes, strict=True)
        return ArrayRecord([np.asarray(a, dtype) for a, dtype in pairs]), metrics

    strategy.aggregate_train = cast  # type: ignore[method-assign]
    return strategy


class EveryNode(FedAvg):
    """FedAvg that samples nothing, so that it draws nothing."""

    def configure_train(self, *arguments: Any) -> Iterable[Message]:
        state = random.getstate()
        messages = list(super().configure_train(*arguments))
        random.setstate(state)
        return messages


def test_a_session_over_mlflow_leaves_the_global_generators_untouched(home: Path) -> None:
    strategy = LifecycleStrategy(
        EveryNode(fraction_evaluate=0.0),
        metric="accuracy",
        approval="auto",
        rounds=RoundSettings(pipeline=False),
    )

    def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        return MetricRecord({"accuracy": float(arrays.to_numpy_ndarrays()[0].mean()) / 10})

    seed()
    before = states()
    strategy.start(LocalGrid(add_one), model(), num_rounds=3, evaluate_fn=evaluate)
    assert strategy.setup.store.get_latest_version("Production")
    assert states() == before
