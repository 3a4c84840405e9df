# SPDX-License-Identifier: Apache-2.0
"""An app in NumPy for a deployment: its server waits for requests, its nodes wait for the test."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg, Result

from fl_app import LifecycleStrategy, RetrainingManager, create_trigger_api
from fl_app.api import serve_api
from fl_app.retraining import RetrainRequest, train_and_retrain
from fl_app.strategy import Origin, SessionSettings
from fl_registry import FederatedLearningTracker, ModelManager, app_home

NAME, ROUNDS, DEADLINE = "deployed", 2, 25.0
"""The model, the rounds of a session, and the seconds that a round waits for replies."""

server = ServerApp()
client = ClientApp()


@server.main()
def main(grid: Grid, context: Context) -> None:
    """Train two rounds, and again for each request; with `continuous` wait for the next."""
    monitor = RetrainingManager(model=NAME)

    def session(number: int, request: RetrainRequest | None) -> Result:
        nodes = FedAvg(fraction_evaluate=0.0, min_train_nodes=1, min_available_nodes=1)
        asked = (request.reason, request.id) if request is not None else ("", "")
        origin = Origin(session=number, trigger=asked[0], request_id=asked[1])
        strategy = LifecycleStrategy(
            nodes,
            metric="accuracy",
            store=ModelManager(None, NAME),
            tracker=FederatedLearningTracker(None, NAME),
            session=SessionSettings(origin=origin),
            monitor=monitor,
        )
        arrays = ArrayRecord([np.zeros((4, 3))])
        return strategy.start(
            grid, arrays, num_rounds=ROUNDS, timeout=DEADLINE, evaluate_fn=evaluate
        )

    continuous = bool(context.run_config["continuous"])
    app = create_trigger_api(monitor, store=ModelManager(None, NAME))
    api = serve_api(app, port=int(context.run_config["api-port"])) if continuous else None
    monitor.start_monitoring()
    try:
        train_and_retrain(session, monitor, max_retrains=1, continuous=continuous)
    finally:
        monitor.stop_monitoring()
        if api is not None:
            api.close()


def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:
    """Score the arrays."""
    return MetricRecord({"accuracy": float(np.tanh(arrays.to_numpy_ndarrays()[0]).mean())})


@client.train()
def train(message: Message, context: Context) -> Message:
    """Move the arrays a little; while a file ``hold-ROUND`` is in the node's folder, wait."""
    note = app_home() / "training"
    note.touch()
    while (app_home() / f"hold-{message.content['config']['server-round']}").exists():
        time.sleep(0.05)
    (arrays,) = message.content["arrays"].to_numpy_ndarrays()
    pictures = Path(str(context.node_config["data"])).parent.rglob("*.jpg")
    metrics = MetricRecord({"num-examples": len(list(pictures)), "loss": 1.0})
    note.unlink()
    return Message(
        RecordDict({"arrays": ArrayRecord([arrays + 0.1]), "metrics": metrics}), reply_to=message
    )
