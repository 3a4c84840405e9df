# SPDX-License-Identifier: Apache-2.0
"""A Flower app whose server is killed (kill -9) in the middle of its first run."""

from __future__ import annotations

import os
import signal

import numpy as np
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAdam

from fl_app.strategy import LifecycleStrategy, RoundSettings
from fl_registry import ModelManager, app_home

ROUNDS, LAST = 6, 4

server = ServerApp()
client = ClientApp()


@server.main()
def main(grid: Grid, context: Context) -> None:
    """Train six rounds; the first time, die while round 4 is evaluated."""
    strategy = LifecycleStrategy(
        FedAdam(eta=0.2),
        metric="accuracy",
        store=ModelManager(None, "killed"),
        rounds=RoundSettings(pipeline=False),
    )
    strategy.start(grid, ArrayRecord([np.zeros((4, 3))]), num_rounds=ROUNDS, evaluate_fn=evaluate)


def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:
    """Score the arrays, or die."""
    died = app_home() / "died"
    if server_round == LAST and not died.exists():
        died.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return MetricRecord({"accuracy": float(np.tanh(arrays.to_numpy_ndarrays()[0]).mean())})


@client.train()
def train(message: Message, context: Context) -> Message:
    """Move the arrays towards this node's own number."""
    (arrays,) = message.content["arrays"].to_numpy_ndarrays()
    goal = 1.0 + float(context.node_config["partition-id"])
    trained = ArrayRecord([arrays + 0.1 * (goal - arrays)])
    metrics = MetricRecord({"num-examples": 10, "loss": float(np.abs(goal - arrays).mean())})
    return Message(RecordDict({"arrays": trained, "metrics": metrics}), reply_to=message)


@client.evaluate()
def score(message: Message, context: Context) -> Message:
    """The same for all."""
    metrics = MetricRecord({"num-examples": 10, "accuracy": 0.5})
    return Message(RecordDict({"metrics": metrics}), reply_to=message)
