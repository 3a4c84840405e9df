# SPDX-License-Identifier: AGPL-3.0-or-later
"""The ClientApp: trains and evaluates the global YOLO model on this node's pictures.

Flower's simulation imports this file before it starts Ray, which takes seconds. So torch and
Ultralytics, which take seconds too, are imported with the first message.
"""

from __future__ import annotations

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from fl_app.client.mods.packing import pack_arrays
from fl_registry.errors import require
from fl_registry.imports import uncollected

require("The shipped model", "torch", "ultralytics")
app = ClientApp()


@app.train(mods=[pack_arrays])
def train(message: Message, context: Context) -> Message:
    """Train the global weights on this node's pictures."""
    with uncollected():
        from fl_app.client import handlers

    return handlers.train(message, context)


@app.evaluate(mods=[pack_arrays])
def evaluate(message: Message, context: Context) -> Message:
    """Evaluate the global weights on pictures that this node never trains on."""
    with uncollected():
        from fl_app.client import handlers

    return handlers.evaluate(message, context)
