# SPDX-License-Identifier: Apache-2.0
"""The ServerApp: a lifecycle around differential privacy around FedAvg."""

from flwr.app import ArrayRecord, Context, MetricRecord, UserConfig
from flwr.serverapp import (
    Grid,
    NeighboringRelation,
    PrivacyConfig,
    RdpAccountant,
    SamplingMethod,
    ServerApp,
)
from flwr.serverapp.strategy import DifferentialPrivacyServerSideFixedClipping, FedAvg, Strategy

from dp_app.task import accuracy, first_arrays, holdout
from fl_app.strategy import LifecycleStrategy, ModelManager, RoundSettings, SessionSettings

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Train, and score each round on the server's holdout, which is nobody's secret."""
    config = context.run_config
    strategy = LifecycleStrategy(
        private(config),
        metric="accuracy",
        store=ModelManager(None, "dp-digits"),
        session=SessionSettings(
            params={
                name: config[name] for name in ("noise-multiplier", "clipping-norm", "num-nodes")
            }
        ),
        rounds=RoundSettings(node_wait_timeout=60),
    )
    strategy.start(
        grid, first_arrays(), num_rounds=int(config["num-server-rounds"]), evaluate_fn=evaluate
    )


def private(config: UserConfig) -> Strategy:
    """FedAvg of all nodes' clipped updates, with noise; the accountant needs noise above 0."""
    nodes, noise = int(config["num-nodes"]), float(config["noise-multiplier"])
    return DifferentialPrivacyServerSideFixedClipping(
        FedAvg(min_train_nodes=nodes, min_available_nodes=nodes, fraction_evaluate=0.0),
        noise_multiplier=noise,
        clipping_norm=float(config["clipping-norm"]),
        num_sampled_clients=nodes,
        accountant=accountant(nodes, float(config["delta"])) if noise > 0 else None,
    )


def accountant(nodes: int, delta: float) -> RdpAccountant:
    """Flower's, for one node more or less, of which all take part in each round."""
    return RdpAccountant(
        PrivacyConfig(
            target_delta=delta,
            population_size=nodes,
            neighboring_relation=NeighboringRelation.ADD_OR_REMOVE_ONE,
            sampling_method=SamplingMethod.NO_AMPLIFICATION,
        )
    )


def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:
    """Accuracy on the holdout."""
    return MetricRecord({"accuracy": accuracy(arrays, holdout())})
