# SPDX-License-Identifier: Apache-2.0
"""The ServerApp: a lifecycle around FedAdam."""

from flwr.app import ArrayRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAdam

from fl_app.strategy import LifecycleStrategy, ModelManager
from torch_app.task import accuracy, holdout, network

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Train, and score each round on the server's holdout."""
    strategy = LifecycleStrategy(
        FedAdam(eta=float(context.run_config["server-learning-rate"])),
        metric="accuracy",
        store=ModelManager(None, "digits-cnn"),
    )
    strategy.start(
        grid,
        ArrayRecord(network().state_dict()),
        num_rounds=int(context.run_config["num-server-rounds"]),
        evaluate_fn=evaluate,
    )


def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:
    """Accuracy on the holdout."""
    model = network()
    model.load_state_dict(arrays.to_torch_state_dict())
    return MetricRecord({"accuracy": accuracy(model, holdout())})
