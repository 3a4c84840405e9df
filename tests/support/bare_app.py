# SPDX-License-Identifier: Apache-2.0
"""An app of Flower's FedAvg alone, whose nodes answer at once."""

from __future__ import annotations

import sys

import numpy as np
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

server = ServerApp()
client = ClientApp()
LAST = "the last line"


@server.main()
def main(grid: Grid, context: Context) -> None:
    """Run one round; print a line when it is over."""
    FedAvg().start(grid, ArrayRecord([np.zeros(10, np.float32)]), num_rounds=1)
    sys.stdout.write(f"{LAST}\n")


@client.train()
def train(message: Message, context: Context) -> Message:
    """Return the model as it came."""
    content = {"arrays": message.content["arrays"], "metrics": MetricRecord({"num-examples": 1})}
    return Message(RecordDict(content), reply_to=message)


@client.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Score any model alike."""
    metrics = MetricRecord({"num-examples": 1, "accuracy": 0.5})
    return Message(RecordDict({"metrics": metrics}), reply_to=message)
