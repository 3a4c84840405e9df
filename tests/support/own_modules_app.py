# SPDX-License-Identifier: Apache-2.0
"""A Flower app with modules of its own that are called `models` and `registry`."""

from __future__ import annotations

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

import models
import registry
from fl_app.strategy import LifecycleStrategy, RoundSettings
from fl_registry import ModelManager

server = ServerApp()
client = ClientApp()


@server.main()
def main(grid: Grid, context: Context) -> None:
    """Train two rounds, register them under a name that the app's own `registry` gives."""
    strategy = LifecycleStrategy(
        FedAvg(),
        metric="accuracy",
        store=ModelManager(None, registry.NAME),
        rounds=RoundSettings(pipeline=False),
    )
    strategy.start(grid, ArrayRecord(models.first()), num_rounds=2)


@client.train()
def train(message: Message, context: Context) -> Message:
    """Move the arrays one step up."""
    arrays = [array + 1 for array in message.content["arrays"].to_numpy_ndarrays()]
    content = {"arrays": ArrayRecord(arrays), "metrics": MetricRecord({"num-examples": 10})}
    return Message(RecordDict(content), reply_to=message)


@client.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Score the arrays by the app's own `models`."""
    score = models.score(message.content["arrays"].to_numpy_ndarrays())
    metrics = MetricRecord({"num-examples": 10, "accuracy": score})
    return Message(RecordDict({"metrics": metrics}), reply_to=message)
