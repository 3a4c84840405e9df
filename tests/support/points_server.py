# SPDX-License-Identifier: Apache-2.0
"""A ServerApp that puts a weak champion into production and trains with four strategies."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import (
    DifferentialPrivacyServerSideFixedClipping,
    FedAdam,
    FedAvg,
    FedProx,
    Strategy,
)
from points_client import CLASSES, FEATURES, data_of, fit

from fl_app.strategy import Finite, LifecycleStrategy, Origin, SessionSettings, ShadowEvaluation
from fl_registry import FederatedLearningTracker, ModelManager, Stage, app_home
from fl_registry.files.weights import save_weights

NODES = 3

app = ServerApp()


def inner_strategies() -> dict[str, Strategy]:
    """Those that train a better model, and one whose noise spoils it."""
    all_nodes = {
        "min_train_nodes": NODES,
        "min_evaluate_nodes": NODES,
        "min_available_nodes": NODES,
    }
    return {
        "FedAvg": FedAvg(**all_nodes),
        "FedProx": FedProx(proximal_mu=0.1, **all_nodes),
        "FedAdam": FedAdam(eta=0.05, **all_nodes),
        "DP": DifferentialPrivacyServerSideFixedClipping(
            FedAvg(**all_nodes), noise_multiplier=5.0, clipping_norm=5.0, num_sampled_clients=NODES
        ),
    }


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Put a champion into production, then run one session for each strategy."""
    home = app_home()
    store = ModelManager(None, "points", home=home)
    weak = fit(np.zeros((FEATURES, CLASSES)), data_of(0, 30), steps=2)
    save_weights({"0": weak}, Path(home) / "champion.safetensors")
    champion = store.save_model_version(Path(home) / "champion.safetensors", tags={"round": "0"})
    store.promote_to_production(champion)
    for number, (name, strategy) in enumerate(inner_strategies().items(), start=1):
        LifecycleStrategy(
            strategy,
            metric="accuracy",
            policy={Stage.STAGING: [Finite()], Stage.PRODUCTION: []},
            shadow=ShadowEvaluation(rounds=2, confidence=0.6),
            store=store,
            tracker=FederatedLearningTracker(None, "points", home=home),
            session=SessionSettings(
                params={"inner": name}, origin=Origin(session=number, parent_version=champion)
            ),
        ).start(grid, ArrayRecord([weak]), num_rounds=1)
