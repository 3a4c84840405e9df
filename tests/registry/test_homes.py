# SPDX-License-Identifier: Apache-2.0
"""Homes whose names have characters that mean something in an address."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fl_app.retraining import MonitorStore, RetrainingManager
from fl_app.retraining.memory.store import default_url
from fl_registry import FederatedLearningTracker, ModelManager
from fl_registry.files.weights import load_weights, save_weights
from fl_registry.home import sqlite_address
from fl_registry.mlflow.address import absolute_address, sqlite_file

NAMES = ["a?b", "a%20b", "a#b", "a b", "ö 語", "100%", "a?b/c%d", "a;b&c=d", "a+b", "a@b:c"]


@pytest.mark.parametrize("name", NAMES)
def test_the_address_of_a_file_is_read_back(name: str, tmp_path: Path) -> None:
    file = tmp_path / name / "mlflow.db"
    assert sqlite_file(sqlite_address(file)) == file
    assert absolute_address(sqlite_address(file), tmp_path) == sqlite_address(file)


@pytest.mark.parametrize("name", NAMES)
def test_a_home_of_any_name_holds_all_that_is_written(name: str, tmp_path: Path) -> None:
    home = tmp_path / name
    weights = tmp_path / "w.safetensors"
    save_weights({"w": np.arange(3, dtype=np.float32)}, weights)
    store = ModelManager(None, "m", home=home)
    store.save_model_version(weights, metrics={"m": 0.5})
    store.promote_to_production("1")
    tracker = FederatedLearningTracker(home=home)
    tracker.start_run("r")
    tracker.log_artifact(weights)
    tracker.end_run()
    monitor = RetrainingManager(store=MonitorStore(default_url(home)))
    monitor.manual_trigger("new pictures")

    again = ModelManager(None, "m", home=home)
    assert again.get_latest_version("Production") == "1"
    assert list(load_weights(again.weights_path("1"))["w"]) == [0, 1, 2]
    assert len(MonitorStore(default_url(home)).requests.history()) == 1
    top = name.split("/", maxsplit=1)[0]
    assert {path.name for path in tmp_path.iterdir()} == {top, "w.safetensors", "fl-app-home"} - (
        set() if (tmp_path / "fl-app-home").exists() else {"fl-app-home"}
    )
    assert {"mlflow.db", "monitor.db"} <= {path.name for path in home.iterdir()}
