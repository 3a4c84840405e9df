# SPDX-License-Identifier: Apache-2.0
"""An app whose model has as many arrays as YOLOv8n, and whose node sends it back at once."""

from __future__ import annotations

import json
import resource
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg, Strategy

from fl_app import LifecycleStrategy
from fl_app.client.mods.packing import pack_arrays
from fl_app.strategy import RoundSettings
from fl_registry import ModelManager

ARRAYS = 355

server = ServerApp()
client = ClientApp(mods=[pack_arrays])


class Timed(FedAvg):
    """Notes when each round begins."""

    def __init__(self, **named: Any) -> None:
        super().__init__(**named)
        self.began: list[float] = []

    def configure_train(self, *args: Any, **named: Any) -> Iterable[Message]:
        """Note the time."""
        self.began.append(time.perf_counter())
        return super().configure_train(*args, **named)


@server.main()
def main(grid: Grid, context: Context) -> None:
    """Run the rounds; write what they took where the run config says.

    That is the seconds of each round but the last, and the peak of this process's memory in bytes.
    """
    config = context.run_config
    nodes = int(config["nodes"])
    inner = Timed(fraction_evaluate=0.0, min_train_nodes=nodes, min_available_nodes=nodes)
    strategy: Strategy = inner
    if not config["bare"]:
        strategy = LifecycleStrategy(
            inner,
            metric="train/loss",
            store=ModelManager(None, "wire"),
            rounds=RoundSettings(pack_arrays=bool(config["pack"])),
        )
    chance, floats = np.random.default_rng(0), int(config["floats"])
    arrays = [chance.random(floats // ARRAYS, dtype=np.float32) for _ in range(ARRAYS)]
    result = strategy.start(grid, ArrayRecord(arrays), num_rounds=int(config["rounds"]))
    if not all(
        np.allclose(made, one)
        for made, one in zip(result.arrays.to_numpy_ndarrays(), arrays, strict=True)
    ):
        raise RuntimeError("the nodes sent back another model")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    told = {"seconds": list(np.diff(inner.began)), "peak": peak}
    Path(str(config["told"])).write_text(json.dumps(told))


@client.train()
def train(message: Message, context: Context) -> Message:
    """Send back what came, and in how many arrays the app saw it."""
    arrays = message.content["arrays"]
    metrics = MetricRecord({"num-examples": 1, "loss": 1.0, "arrays": len(arrays)})
    return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)
