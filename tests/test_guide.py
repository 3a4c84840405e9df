# SPDX-License-Identifier: AGPL-3.0-or-later
"""The user guide's snippets on registry and tracking, run as they stand (guide_snippets.md)."""

from __future__ import annotations

import logging
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from support.guide import SNIPPETS, Names, run

from fl_models.yolo import get_model
from fl_registry import FederatedLearningTracker, ModelManager, StageError

NAME = "fl-global-model"


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("guide") / "global_round_10.pt"
    torch.save(get_model("n", 7).state_dict(), path)
    return path


@pytest.fixture
def folder(tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the reader's project folder, in which the snippets run."""
    place = tmp_path / "project"
    (place / "server" / "checkpoints").mkdir(parents=True)
    shutil.copyfile(checkpoint, place / "server" / "checkpoints" / "global_round_10.pt")
    (place / "predictions.json").write_text("[]")
    monkeypatch.chdir(place)
    return place


def save(manager: ModelManager, accuracy: float) -> str:
    """Save a further version of the guide's checkpoint."""
    return manager.save_model_version(
        "server/checkpoints/global_round_10.pt",
        metrics={"accuracy": accuracy},
        tags={"round": str(accuracy)},
    )


@pytest.fixture
def manager(folder: Path) -> ModelManager:
    return ModelManager()


def test_using_the_model_manager(
    folder: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    address = f"sqlite:///{home}/mlflow.db"
    names = run("Using the Model Manager", {}, address=address)
    (row,) = names["versions"]
    assert (row["version"], row["stage"]) == ("1", "Production")
    assert row["metrics"] == {"accuracy": 0.85, "loss": 0.42}
    assert row["run_id"] == "abc123"
    assert re.search(r"Saved model version: 1\nv1: Production - 20\d\d-", capsys.readouterr().out)
    # Run again as it is, the script saves nothing twice and says why it cannot go on.
    with pytest.raises(StageError, match="Version 1 is in production and cannot go back"):
        run("Using the Model Manager", names, address=address)
    assert len(names["manager"].list_all_versions()) == 1


def test_model_comparison(manager: ModelManager, capsys: pytest.CaptureFixture[str]) -> None:
    for accuracy in (0.5, 0.75):
        save(manager, accuracy)
    names = run("Model Comparison", {"manager": manager})
    assert names["comparison"]["differences"] == {"accuracy": 0.25}
    assert "  Accuracy: 0.75\n  Stage: None" in capsys.readouterr().out


def test_loading_the_production_model(
    manager: ModelManager, capsys: pytest.CaptureFixture[str], checkpoint: Path
) -> None:
    names: Names = {"manager": manager, "images": torch.rand(1, 3, 64, 64)}
    assert run("Loading Production Model", names)["production_model"] is None
    manager.promote_to_production(save(manager, 0.5))
    with torch.no_grad():
        names = run("Loading Production Model", names)
    assert "Production model loaded" in capsys.readouterr().out
    expected = torch.load(checkpoint, weights_only=True)
    found = names["production_model"].state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert names["predictions"][0].shape[:2] == (1, 11)


@pytest.mark.parametrize(("accuracy", "stage"), [(0.9, "Staging"), (0.5, "None")])
def test_the_validation_phase(manager: ModelManager, accuracy: float, stage: str) -> None:
    for number in (0.1, 0.2):
        save(manager, number)
    given = {
        "manager": manager,
        "model": None,
        "validation_dataset": None,
        "validate_model": lambda model, data: accuracy,
    }
    assert run("Validation Phase", given)["latest_version"] == "2"
    assert manager.get_version("2").stage == stage


@pytest.mark.parametrize(("passed", "stage"), [(True, "Production"), (False, "Staging")])
def test_the_staging_phase(manager: ModelManager, passed: bool, stage: str) -> None:
    manager.promote_to_staging(save(manager, 0.5))
    names = run("Staging Phase", {"manager": manager, "tests_passed": passed})
    assert names["staging_version"] == "1"
    assert names["staging_model"] is None  # nothing is in production yet
    assert manager.get_version("1").stage == stage


def test_a_failed_deployment_brings_the_previous_version_back(
    manager: ModelManager, caplog: pytest.LogCaptureFixture
) -> None:
    for accuracy in (0.5, 0.6):
        manager.promote_to_production(save(manager, accuracy))

    def deploy(model: object) -> None:
        raise RuntimeError("the gateway does not answer")

    given = {
        "manager": manager,
        "deploy_to_production": deploy,
        "get_previous_version": lambda: "1",
        "logger": logging.getLogger("guide"),
    }
    run("Production Deployment", given)
    assert manager.get_latest_version("Production") == "1"
    assert manager.get_version("2").stage == "Archived"
    assert "Deployment failed, rolled back" in caplog.text
    assert manager.history()[-1].op == "rollback"
    run("Production Deployment", given | {"get_previous_version": lambda: "2"})
    assert manager.get_latest_version("Production") == "2"


def test_tracking_model_performance(manager: ModelManager) -> None:
    tracker = run("Track Model Performance", {})["tracker"]
    assert isinstance(tracker, FederatedLearningTracker)
    assert tracker.run is not None
    stored = manager.client.get_run(tracker.run.info.run_id)
    assert (stored.info.status, stored.info.run_name) == ("FINISHED", "production_inference_v1")
    assert stored.data.metrics == {
        "inference_accuracy": 0.87,
        "avg_latency_ms": 45.0,
        "throughput_qps": 100.0,
    }
    assert [f.path for f in manager.client.list_artifacts(stored.info.run_id)] == [
        "predictions.json"
    ]


def test_troubleshooting(manager: ModelManager, capsys: pytest.CaptureFixture[str]) -> None:
    run("Model not found", {"manager": manager})
    assert "will be created on first save" in capsys.readouterr().out
    save(manager, 0.5)
    run("Model not found", {"manager": manager})
    run("Version mismatch", {"manager": manager})
    said = capsys.readouterr().out
    assert f"Model exists: {NAME}" in said
    assert re.search(r"Source: file:///\S+/artifacts/models/m-\w+/artifacts\nRun ID: ", said)


def test_the_complete_workflow(folder: Path) -> None:
    asked: list[str] = []
    given = {"accuracy": 0.85, "start_new_training": lambda trigger: asked.append(trigger.reason)}
    names = run("Complete Workflow", given)
    manager, tracker, monitor = names["manager"], names["tracker"], names["retrain_mgr"]
    assert (monitor.monitoring, monitor.current_accuracy) == (True, 0.85)
    monitor.manual_trigger("new pictures")
    deadline = time.monotonic() + 10
    while not asked and time.monotonic() < deadline:
        time.sleep(0.01)
    monitor.stop_monitoring()
    assert asked == ["new pictures"]
    record = manager.get_version(names["version"])
    assert record.stage == "Production"
    assert record.run_id == tracker.run.info.run_id
    stored = manager.client.get_run(record.run_id)
    assert stored.data.params == {"rounds": "10", "clients": "3", "model": "yolov8n"}
    assert stored.info.status == "FINISHED"
    assert sorted(path.name for path in folder.iterdir()) == ["predictions.json", "server"]


def test_every_snippet_is_run() -> None:
    titles = re.findall(r"^## (.*)$", SNIPPETS.read_text(), re.MULTILINE)
    tests = "".join(path.read_text() for path in Path(__file__).parent.glob("test_guide*.py"))
    assert set(titles) == set(re.findall(r'(?:run|snippet)\(\s*"([^"]+)"', tests))


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """Return the address of a real MLflow server."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    files = tmp_path / "server"
    files.mkdir()
    command = [
        *(sys.executable, "-m", "mlflow", "server", "--workers", "1"),
        *("--host", "127.0.0.1", "--port", str(port)),
        *("--backend-store-uri", f"sqlite:///{files}/mlflow.db"),
        *("--artifacts-destination", str(files / "artifacts")),
    ]
    environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (files / "log").open("w") as log:
        process = subprocess.Popen(
            command, cwd=files, env=environment, stdout=log, stderr=log, start_new_session=True
        )
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(240):
            try:
                urllib.request.urlopen(f"{address}/health", timeout=1).close()
                break
            except OSError:
                assert process.poll() is None, (files / "log").read_text()
                time.sleep(0.5)
        yield address
    finally:
        process.terminate()
        process.wait(30)


@pytest.mark.slow
def test_the_guide_on_a_real_server(folder: Path, server: str, tmp_path: Path) -> None:
    names = run("Using the Model Manager", {}, address=server)
    names["images"] = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        run("Loading Production Model", names)
    manager = names["manager"]
    for accuracy in (0.5, 0.6, 0.7):
        save(manager, accuracy)
    run("Model Comparison", names)
    run("Version mismatch", names)
    copy = manager.compress_version("1", evaluate=lambda path: {"m": 1.0})
    assert copy.changes == {"m": 0.0}
    assert manager.load_production_model(lambda: get_model("n", 7), half=True) is not None
    assert manager.compare_versions("1", "2")["architecture"]["changed"] == {}
    files = tmp_path / "server" / "artifacts"
    times = []
    for _ in range(9):
        began = time.perf_counter()
        manager.load_production_model(get_model, max_age=60)
        times.append(time.perf_counter() - began)
    assert sorted(times)[4] < 0.001
    manager.weights_path("2")
    cache = Path(os.environ["FL_APP_HOME"]) / "cache"
    fetched = cache / manager.get_version("2").sha256
    assert fetched.is_dir()
    before = sum(path.stat().st_size for path in files.rglob("*") if path.is_file())
    report = manager.prune(keep=1, dry_run=False)
    after = sum(path.stat().st_size for path in files.rglob("*") if path.is_file())
    assert report.versions == ("2", "3")
    assert report.left == {}
    assert report.freed == before - after > 2 * copy.size
    assert [row["version"] for row in manager.list_all_versions()] == ["4", "1"]
    assert not fetched.exists()
    assert manager.load_production_model(lambda: get_model("n", 7), copy=True) is not None
