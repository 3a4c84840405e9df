# SPDX-License-Identifier: Apache-2.0
"""The shipped ClientApp, but for one node that sends back worthless weights of the right shape."""

from __future__ import annotations

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message
from flwr.clientapp import ClientApp
from flwr.clientapp.typing import ClientAppCallable

from fl_app.client import client_app as honest


def poison(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Turn the weights of node 0 into zeros."""
    reply = call_next(message, context)
    if message.metadata.message_type == "train" and context.node_config["partition-id"] == 0:
        sent = reply.content["arrays"]
        reply.content["arrays"] = ArrayRecord(
            {name: Array(np.zeros_like(array.numpy())) for name, array in sent.items()}
        )
    return reply


app = ClientApp(mods=[poison])
app.train()(honest.train)
app.evaluate()(honest.evaluate)
