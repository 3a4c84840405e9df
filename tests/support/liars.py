# SPDX-License-Identifier: Apache-2.0
"""Sessions of ten nodes of which one lies, by what it says and the strategy that aggregates."""

from __future__ import annotations

import logging
import math
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, Error, Message, RecordDict
from flwr.serverapp import strategy as flower
from flwr.serverapp.strategy import FedAvg, Strategy

from fl_app.flower_internals import ErrorCode
from fl_app.strategy import LifecycleStrategy, RoundSettings, StreamingFedAvg
from fl_registry import InMemoryModelStore, InMemoryTracker
from support.local_grid import LocalGrid, reply

NODES = [*range(1, 11)]
ROUNDS = 4


def honest(chance: np.random.Generator, message: Message, node: int) -> RecordDict:
    """Move a tenth of the way to 1, with some noise; the count and the metric differ by node."""
    if message.metadata.message_type != "train":
        number = int(message.content.config_records["config"]["server-round"])  # type: ignore[arg-type]
        return reply(examples=100 + node, accuracy=0.5 + number / 20 + node / 100)
    arrays = message.content.array_records["arrays"]
    moved = {
        name: Array(np.asarray(a.numpy() * 0.9 + 0.1 + chance.normal(0, 0.001, a.shape), "f4"))
        for name, a in arrays.items()
    }
    return reply(ArrayRecord(moved), examples=100 + node, train_loss=1.0 + node / 10)


Lie = Callable[[RecordDict, Message], RecordDict | Error]


def said(name: str, value: float, *phases: str) -> Lie:
    def lie(content: RecordDict, message: Message) -> RecordDict:
        metrics = content.metric_records["metrics"]
        if message.metadata.message_type in phases and name in metrics:
            metrics[name] = value
        return content

    return lie


def update(value: float) -> Lie:
    def lie(content: RecordDict, message: Message) -> RecordDict:
        if message.metadata.message_type == "train":
            arrays = content.array_records["arrays"]
            content["arrays"] = ArrayRecord(
                {name: Array(np.full(a.shape, value, "f4")) for name, a in arrays.items()}
            )
        return content

    return lie


def error(content: RecordDict, message: Message) -> Error:
    return Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, "no")


def nan_in_round_one(content: RecordDict, message: Message) -> RecordDict:
    config = message.content.config_records.get("config", {})
    if message.metadata.message_type == "evaluate" and config.get("server-round") == 1:
        content.metric_records["metrics"]["accuracy"] = math.nan
    return content


BOTH = ("train", "evaluate")
LIES: dict[str, Lie] = {
    "weight 1e8": said("num-examples", 100_000_000, *BOTH),
    "weight 1e300": said("num-examples", 1e300, *BOTH),
    "weight 1e-36": said("num-examples", 1e-36, *BOTH),
    "weight 0.5": said("num-examples", 0.5, *BOTH),
    "metric 1e300": said("accuracy", 1e300, "evaluate"),
    "metric 3": said("accuracy", 3.0, "evaluate"),
    "metric -1": said("accuracy", -1.0, "evaluate"),
    "loss 0": said("train_loss", 0.0, "train"),
    "loss 1e-10": said("train_loss", 1e-10, "train"),
    "loss -1": said("train_loss", -1.0, "train"),
    "loss 1e12": said("train_loss", 1e12, "train"),
    "update 1e18": update(1e18),
    "update -1e6": update(-1e6),
    "error": error,
    "NaN in round 1": nan_in_round_one,
}


def private(wrapper: Callable[..., Strategy], **settings: float) -> Callable[[], Strategy]:
    return lambda: wrapper(FedAvg(), num_sampled_clients=len(NODES), **settings)


STRATEGIES: dict[str, Callable[[], Strategy]] = {
    "FedAvg": FedAvg,
    "StreamingFedAvg": StreamingFedAvg,
    "FedAdam": partial(flower.FedAdam, eta=0.1),
    "FedYogi": partial(flower.FedYogi, eta=0.1),
    "FedAdagrad": partial(flower.FedAdagrad, eta=0.1),
    "QFedAvg": partial(flower.QFedAvg, client_learning_rate=0.1),
    "FedMedian": flower.FedMedian,
    "DP server, fixed": private(
        flower.DifferentialPrivacyServerSideFixedClipping, noise_multiplier=0.0, clipping_norm=10.0
    ),
    "DP server, adaptive": private(
        flower.DifferentialPrivacyServerSideAdaptiveClipping,
        noise_multiplier=0.0,
        initial_clipping_norm=10.0,
    ),
}


@dataclass(frozen=True)
class Session:
    """What a session came to.

    Attributes
    ----------
    model : np.ndarray
        The last model.
    metric, loss : list[float]
        The metric, and the loss of training, by round.
    stages : list[str]
        The stage of each version.
    named : bool
        Whether the log named the node that lies.
    """

    model: np.ndarray
    metric: list[float]
    loss: list[float]
    stages: list[str]
    named: bool


def session(
    make: Callable[[], Strategy], home: Path, lie: Lie | None = None, liar: int = 1
) -> Session:
    """Run a session around a strategy, in which one node may lie."""
    chance = np.random.default_rng(0)
    random.seed(0)
    np.random.seed(0)

    def answer(node: int, message: Message) -> RecordDict | Error:
        content = honest(chance, message, node)
        return lie(content, message) if lie is not None and node == liar else content

    store = InMemoryModelStore()
    strategy = LifecycleStrategy(
        make(),
        metric="accuracy",
        store=store,
        tracker=InMemoryTracker(),
        home=home,
        rounds=RoundSettings(pipeline=False),
    )
    first = ArrayRecord({"w": Array(np.zeros(50, "f4"))})
    lines, log, handler = list[str](), logging.getLogger("flwr.fl_app"), logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    log.addHandler(handler)
    try:
        result = strategy.start(LocalGrid(answer, NODES), first, num_rounds=ROUNDS)
    finally:
        log.removeHandler(handler)
    return Session(
        result.arrays["w"].numpy(),
        [float(m["accuracy"]) for m in result.evaluate_metrics_clientapp.values()],
        [float(m["train_loss"]) for m in result.train_metrics_clientapp.values()],
        [str(version["stage"]) for version in store.list_all_versions()],
        any(re.search(rf"\bnode {liar}\b", line) for line in lines),
    )
