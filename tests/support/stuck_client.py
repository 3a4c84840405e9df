# SPDX-License-Identifier: Apache-2.0
"""A ClientApp that fails, or hangs, as the server's message says."""

from __future__ import annotations

import time

import numpy as np
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

HANG = 60.0  # seconds, far beyond the round's timeout

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """Add one, or do what `case` says; only the second node hangs."""
    case = message.content["config"]["case"]
    if case == "all fail":
        raise RuntimeError("no data here")
    if case == "one hangs" and context.node_config["data"] == "1":
        time.sleep(HANG)
    (weights,) = message.content["arrays"].to_numpy_ndarrays()
    content = RecordDict(
        {
            "arrays": ArrayRecord([np.asarray(weights + 1, dtype=np.float32)]),
            "metrics": MetricRecord({"num-examples": 10, "accuracy": 0.5}),
        }
    )
    return Message(content, reply_to=message)
