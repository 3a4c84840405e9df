# SPDX-License-Identifier: Apache-2.0
"""The ServerApp: a lifecycle with a monitor."""

from flwr.app import ArrayRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from clinics_app.task import first_arrays, holdout, model_of
from fl_app import LifecycleStrategy, RetrainingManager
from fl_app.retraining import DriftSettings
from fl_app.retraining.drift.plot import drift_artifacts
from fl_app.strategy import ModelManager, plot_metrics

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Train, and let the monitor look at what the clinics tell of their data."""
    monitor = RetrainingManager(drift=DriftSettings(false_alarm_days=0.05), model="clinics")
    strategy = LifecycleStrategy(
        FedAvg(fraction_evaluate=0.0),
        metric="accuracy",
        store=ModelManager(None, "clinics"),
        monitor=monitor,
        artifacts=[plot_metrics, drift_artifacts(monitor)],
    )
    strategy.start(
        grid,
        first_arrays(),
        num_rounds=int(context.run_config["num-server-rounds"]),
        evaluate_fn=evaluate,
    )


def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:
    """Accuracy on the holdout."""
    return MetricRecord({"accuracy": float(model_of(arrays).score(*holdout()))})
