# SPDX-License-Identifier: Apache-2.0
"""A disk that is full, or fails, at each place where something is written.

What was there keeps its digest, nothing half done is left, the error is a known one, and what can
go on does. `disk_writers.py` lists the places, `disk_faults.py` makes the disk fail.
"""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from support.disk_writers import CASES
from support.local_grid import LocalGrid, add_one, model

from fl_app.retraining import MonitorStore, RetrainingManager
from fl_app.retraining.requests import Outcome
from fl_app.strategy import LifecycleStrategy
from fl_app.strategy.checkpoints.folder import SessionFolder
from fl_app.strategy.checkpoints.record import SessionRecord
from fl_app.strategy.errors import CheckpointError
from fl_app.strategy.records import Origin
from fl_registry import InMemoryModelStore, InMemoryTracker

HERE = Path(__file__).parent
NIGHTLY = settings.get_current_profile_name() == "nightly"
pytestmark = pytest.mark.chaos
MLFLOW = {"saved_in_mlflow", "halved_in_mlflow", "downloaded"}
GO_ON = {"summary", "pictures", "monitor"}


def faults(folder: Path, names: list[str]) -> dict[str, Any]:
    """Let each of these write while its disk fails, in a process of their own."""
    root = HERE.parent
    path = os.pathsep.join(map(str, (HERE, root, root / "registry", root / "models")))
    quiet = {"PYTHONDONTWRITEBYTECODE": "1", "MPLBACKEND": "agg", "PYTHONPATH": path}
    done = subprocess.run(
        [sys.executable, str(HERE / "support" / "disk_faults.py"), "1" if NIGHTLY else "6", *names],
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
        patched.setattr(store.requests, "add", raises_disk_full)
        manager.update_metrics(accuracy=0.5, round_num=2)
        assert manager.health.failing.keys() == {"the monitor's memory"}
    assert store.requests.find(Outcome.PENDING) is None
    manager.update_metrics(accuracy=0.5, round_num=3)
    waiting = store.requests.find(Outcome.PENDING)
    assert waiting is not None
    assert waiting.reason.startswith("in round 3")
    assert manager.health.failing == {}


def test_a_session_ends_well_without_its_pictures(caplog: pytest.LogCaptureFixture) -> None:
    def picture(report: object, folder: Path) -> list[Path]:
        raise OSError(28, "No space left on device")

    store, tracker = InMemoryModelStore(), InMemoryTracker()
    LifecycleStrategy(store=store, tracker=tracker, artifacts=[picture]).start(
        LocalGrid(add_one), model(), num_rounds=1
    )
    assert len(store.list_all_versions()) == 1
    assert tracker.runs[0].status == "FINISHED"
    assert "picture is not logged: [Errno 28] No space left on device" in caplog.text


def test_a_session_folder_that_cannot_be_made_holds_no_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("os.fsync", full)
        with pytest.raises(CheckpointError, match="could not be written"):
            SessionFolder.create(tmp_path / "session", SessionRecord("m", Origin(), 1))
    assert not list(tmp_path.glob("*session*"))
    SessionFolder.create(tmp_path / "session", SessionRecord("m", Origin(), 1)).release()


# Where else than in `fl_registry.files.atomic` files are made, and why that needs no more care.
WRITERS = {
    "registry/fl_registry/files/atomic.py": "the one way",
    "registry/fl_registry/files/artifacts.py": "in a scratch folder",
    "registry/fl_registry/serving/mlmodel.py": "in a scratch folder",
    "registry/fl_registry/memory.py": "a version's folder, removed again where it fails",
    "registry/fl_registry/store.py": "a folder that goes",
    "registry/fl_registry/mlflow/files.py": "in a scratch folder",
    "registry/fl_registry/mlflow/home.py": "a folder that is moved, or copied and removed again",
    "registry/fl_registry/mlflow/address.py": "a look whether the folder can be written",
    "fl_app/client/summary/reference.py": "within `replacing`",
    "fl_app/client/generated_shapes.py": "within `new_folder`",
    "fl_app/deploy/folder.py": "within `new_folder`",
    "fl_app/deploy/fork_server.py": "in a folder that goes",
    "fl_app/deploy/local_superlink.py": "a log, and a copy in a folder that goes",
    "fl_app/strategy/checkpoints/folder.py": "renames",
    "fl_app/strategy/session/live.py": "a draft that replaces the last; nothing relies on it",
    "fl_app/strategy/session/recover.py": "renames",
    "fl_app/strategy/finish/reporting.py": "in a folder that goes",
    "fl_app/retraining/drift/plot.py": "in a folder that goes",
    "fl_app/yolo.py": "in a folder that goes",
    "fl_app/api/downloads.py": "in a folder that goes, and a file without a name",
    "fl_app/api/page/chart.py": "in memory",
    "models/fl_models/drawings.py": "in a folder that goes",
    "models/fl_models/export.py": "in a folder that goes, beside its place, and then renamed",
    "models/fl_models/holdout.py": "in a folder that goes",
}
MAKES = {
    *("write_text", "write_bytes", "mkstemp", "mkdtemp", "NamedTemporaryFile", "TemporaryFile"),
    *("TemporaryDirectory", "savez", "savez_compressed", "imwrite", "savefig", "copyfile", "copy2"),
    *("copytree", "rename", "touch", "link", "symlink_to", "save_file"),
}


def makes_files(path: Path) -> bool:
    """Whether a source makes files by itself."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute | ast.Name):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else node.func.id
            modes = [a.value for a in node.args if isinstance(a, ast.Constant)]
            opens = name == "open" and any(str(mode)[:1] in "wax" for mode in modes if mode)
            if name in MAKES or opens:
                return True
    return False


def test_files_are_made_in_one_way_only() -> None:
    root = HERE.parent
    sources = [p for d in ("fl_app", "registry", "models") for p in (root / d).rglob("*.py")]
    found = {str(path.relative_to(root)) for path in sources if makes_files(path)}
    assert found == WRITERS.keys()


def raises_disk_full(*_: object) -> None:
    from sqlalchemy.exc import OperationalError

    raise OperationalError("INSERT", {}, Exception("database or disk is full"))
