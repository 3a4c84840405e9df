# SPDX-License-Identifier: Apache-2.0
"""A ServerApp with short deadlines; the run config's `case` says what goes wrong."""

from __future__ import annotations

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from fl_app.strategy import LifecycleStrategy, RoundSettings
from fl_registry import ModelManager

NODES, NODE_WAIT, ROUND = 2, 5.0, 12.0

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Train for up to nine rounds; one more node is needed than there is, if so it says."""
    case = str(context.run_config["case"])
    needed = NODES + (case == "too few nodes")
    strategy = FedAvg(
        fraction_evaluate=0.0,
        min_train_nodes=NODES,
        min_available_nodes=needed,
    )
    LifecycleStrategy(
        strategy,
        store=ModelManager(None, case),
        rounds=RoundSettings(node_wait_timeout=NODE_WAIT),
        resume="fresh",
    ).start(
        grid,
        ArrayRecord([np.zeros(3, dtype=np.float32)]),
        num_rounds=1 if case == "one hangs" else 9,
        timeout=ROUND,
        train_config=ConfigRecord({"case": case}),
    )
