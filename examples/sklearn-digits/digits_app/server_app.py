# SPDX-License-Identifier: Apache-2.0
"""The ServerApp."""

from flwr.app import ArrayRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from digits_app.task import first_arrays, holdout, model_of
from fl_app.strategy import LifecycleStrategy, ModelManager

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Train, and score each round on the server's holdout."""
    strategy = LifecycleStrategy(FedAvg(), metric="accuracy", store=ModelManager(None, "digits"))
    strategy.start(
        grid,
        first_arrays(),
        num_rounds=int(context.run_config["num-server-rounds"]),
        evaluate_fn=evaluate,
    )


def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:
    """Accuracy on the holdout."""
    return MetricRecord({"accuracy": float(model_of(arrays).score(*holdout()))})
