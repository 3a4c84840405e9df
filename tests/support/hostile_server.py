# SPDX-License-Identifier: Apache-2.0
"""A ServerApp for the hostile nodes: FedAvg in the wrapper, three rounds."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Context, Message
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from fl_app.strategy import LifecycleStrategy
from fl_registry import ModelManager

ROUNDS = 3


class EvaluatesOnce(FedAvg):
    """Has nodes evaluate in the first round only: each message starts a process on each node."""

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        if server_round > 1:
            return []
        return super().configure_evaluate(server_round, arrays, config, grid)


app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run a session with as many nodes as the run config says."""
    nodes = int(context.run_config["nodes"])
    all_of_them = {"min_train_nodes": nodes, "min_evaluate_nodes": nodes}
    inner = EvaluatesOnce(min_available_nodes=nodes, **all_of_them)
    LifecycleStrategy(inner, metric="accuracy", store=ModelManager(None, "hostile")).start(
        grid, ArrayRecord([np.zeros((2, 3), np.float32)]), num_rounds=ROUNDS
    )
