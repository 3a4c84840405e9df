# SPDX-License-Identifier: Apache-2.0
"""A disk that is full, or fails, at each place where something is written.

What was there keeps its digest, nothing half done is left, the error is a known one, and what can
go on does. `disk_writers.py` lists the places, `disk_faults.py` makes the disk fail.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from disk_writers import CASES
from hypothesis import settings

from fl_app.retraining import MonitorStore, RetrainingManager
from fl_app.retraining.triggers import Outcome

HERE = Path(__file__).parent
NIGHTLY = settings.get_current_profile_name() == "nightly"
pytestmark = pytest.mark.chaos
MLFLOW = {"saved_in_mlflow", "halved_in_mlflow", "downloaded"}
GO_ON = {"summary", "pictures", "monitor"}


def faults(folder: Path, names: list[str]) -> dict[str, Any]:
    """Let each of these write while its disk fails, in a process of their own."""
    path = os.pathsep.join([str(HERE), str(HERE.parent)])
    quiet = {"PYTHONDONTWRITEBYTECODE": "1", "MPLBACKEND": "agg", "PYTHONPATH": path}
    done = subprocess.run(
        [sys.executable, str(HERE / "disk_faults.py"), "1" if NIGHTLY else "6", *names],
        env={**os.environ, **quiet, "FL_APP_HOME": str(folder / "disk")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize(
    "names", [sorted(CASES.keys() - MLFLOW), sorted(MLFLOW)], ids=["", "mlflow"]
)
def test_a_disk_that_fails_costs_nothing_that_was_there(tmp_path: Path, names: list[str]) -> None:
    found = faults(tmp_path, names)
    assert found.keys() == set(names)
    assert [problem for outcome in found.values() for problem in outcome["problems"]] == []
    for name, outcome in found.items():
        failed = outcome["faults"] - outcome["survived"]
        assert failed == 0 if name in GO_ON else failed >= 2, name


def test_a_fall_that_could_not_be_written_down_is_asked_for_in_the_next_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = MonitorStore(f"sqlite:///{tmp_path / 'monitor.db'}")
    manager = RetrainingManager(policy="best_minus_threshold", store=store)
    manager.update_metrics(accuracy=0.9, round_num=1)
    with monkeypatch.context() as patched:
        patched.setattr(store, "add", raises_disk_full)
        manager.update_metrics(accuracy=0.5, round_num=2)
        assert manager.health.failing.keys() == {"the monitor's memory"}
    assert store.find(Outcome.PENDING) is None
    manager.update_metrics(accuracy=0.5, round_num=3)
    waiting = store.find(Outcome.PENDING)
    assert waiting is not None
    assert waiting.reason.startswith("in round 3")
    assert manager.health.failing == {}


def raises_disk_full(*_: object) -> None:
    from sqlalchemy.exc import OperationalError

    raise OperationalError("INSERT", {}, Exception("database or disk is full"))
