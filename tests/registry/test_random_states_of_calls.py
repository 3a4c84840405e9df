# SPDX-License-Identifier: Apache-2.0
"""Calls to MLflow draw nothing from Python's, NumPy's and torch's global generators."""

from __future__ import annotations

import random
import uuid
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from fl_registry import FederatedLearningTracker, ModelManager, StoreUnavailable

MakeWeights = Callable[[float], Path]
ADDRESSES = [
    "",
    pytest.param("served_mlflow", marks=pytest.mark.slow),
    pytest.param("postgres_mlflow", marks=pytest.mark.slow),
]


def states() -> tuple[str, str, str]:
    """The states of the three generators."""
    found = random.getstate(), np.random.get_state(), torch.get_rng_state().tolist()
    return str(found[0]), str(found[1]), str(found[2])


@pytest.mark.parametrize("server", ADDRESSES)
def test_runs_without_a_name_and_versions_of_any_model_draw_nothing(
    server: str, mlflow_home: Path, weights: MakeWeights, request: pytest.FixtureRequest
) -> None:
    address = request.getfixturevalue(server) if server else None
    name = f"of 3.5 % more {uuid.uuid4().hex[:8]}"  # a shared database has the files of other tests
    before = states()
    with FederatedLearningTracker(address, name, home=mlflow_home) as tracker:
        tracker.log_params({"rounds": 3})
        tracker.log_metrics({"accuracy": 0.5}, step=1)
        tracker.log_dataset("shapes/val", "0" * 64)
        tracker.log_artifact(weights(1))
        assert tracker.run is not None
        assert tracker.run.info.run_name
        run_id = tracker.run.info.run_id
    manager = ModelManager(address, name, home=mlflow_home, experiment_name=name)
    manager.promote_to_production(manager.save_model_version(weights(1), run_id))
    manager.promote_to_production(manager.save_model_version(weights(2), run_id))
    assert manager.rollback()
    assert manager.load_arrays()
    assert states() == before


def test_an_mlflow_that_is_down_draws_nothing(home: Path) -> None:
    before = states()
    for _ in range(2):
        with pytest.raises(StoreUnavailable):
            FederatedLearningTracker("http://127.0.0.1:9").start_run()
    assert states() == before
