# SPDX-License-Identifier: Apache-2.0
"""Homes whose names have characters that mean something in an address."""

from __future__ import annotations

import json
import os
import subprocess
import sys
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


def test_a_home_directory_that_cannot_be_written_needs_only_fl_app_home(tmp_path: Path) -> None:
    read_only = "/proc"  # not even root can write there
    home = tmp_path / "state"
    names = ("HOME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME", "MPLCONFIGDIR", "YOLO_CONFIG_DIR")
    kept = {name: value for name, value in os.environ.items() if name not in names}
    code = (
        "import numpy as np; from pathlib import Path;"
        "from fl_registry import FederatedLearningTracker, ModelManager;"
        "from fl_registry.files.weights import save_weights;"
        f"file = Path({str(tmp_path)!r}, 'w.safetensors');"
        "save_weights({'w': np.ones(3, np.float32)}, file);"
        "ModelManager(None, 'm').save_model_version(file, metrics={'m': 0.5});"
        "tracker = FederatedLearningTracker(); tracker.start_run('r'); tracker.end_run();"
        "import fl_app.yolo;"
        "from fl_app.cli.main import main; main(['versions', '--name', 'm', '--json'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**kept, "HOME": read_only, "FL_APP_HOME": str(home)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout)[0]["version"] == "1"
    assert (home / "mlflow.db").is_file()
