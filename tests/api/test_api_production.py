# SPDX-License-Identifier: Apache-2.0
"""The operator's feed over HTTP: what is taken, what it leads to, and what is in the run after."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.api_client import TOKEN, Client, refused

from fl_app.api import create_trigger_api, serve_api
from fl_app.retraining import MonitorStore, Probation, ProbationSettings, RetrainingManager
from fl_app.retraining.probation.state import ProbationState
from fl_registry import InMemoryModelStore, ModelManager, StoreUnavailable
from fl_registry.files.weights import save_weights

PATH = "/production_metrics"


def well(api: Client, accuracy: float = 0.9, count: int = 12) -> None:
    for _ in range(count):
        assert api.post(PATH, {"accuracy": accuracy}).status == 200


def test_a_report_is_counted_and_answered(api: Client, store: InMemoryModelStore) -> None:
    assert refused(api.post(PATH, {"accuracy": 0.9}), 409)
    store.promote_to_production("1")
    body = {"accuracy": 0.87, "avg_latency_ms": 45, "throughput_qps": 100, "version": "1"}
    said = api.post(PATH, {**body, "metrics": {"recall": 0.8}, "predictions": [{"box": [1, 2]}]})
    assert said.status == 200
    assert said.json == {
        "status": "watching",
        "version": "1",
        "production": "1",
        "reason": "",
        "report": 1,
        "logged": False,  # these versions have no run
    }
    assert refused(api.post(PATH, {"accuracy": 0.9, "version": "2"}), 409)


def test_a_critical_fall_rolls_back_and_the_status_tells(
    api: Client, store: InMemoryModelStore, manager: RetrainingManager
) -> None:
    store.promote_to_production("1")
    well(api)
    store.promote_to_production("2")
    before = api.get("/status").json["probation"]
    assert (before["version"], before["phase"], before["reports"]) == ("2", "watching", 0)
    said = [api.post(PATH, {"accuracy": 0.5, "version": "2"}).json for _ in range(3)]
    assert [answer["status"] for answer in said] == ["watching", "watching", "rolled_back"]
    assert (said[-1]["version"], said[-1]["production"]) == ("2", "1")
    assert "0.5000, below 0.8000" in said[-1]["reason"]
    after = api.get("/status").json["probation"]
    assert (after["version"], after["phase"]) == ("1", "exempt")
    assert after["last_failure"]["version"] == "2"
    assert [entry["kind"] for entry in api.get("/trigger_history").json] == ["probation"]
    assert refused(api.post(PATH, {"accuracy": 0.5, "version": "2"}), 409)
    assert api.post(PATH, {"accuracy": 0.5}).json["status"] == "ok"
    assert [entry.actor for entry in store.history()].count("probation") == 1


def test_with_nothing_to_go_back_to_the_answer_says_so(
    api: Client, store: InMemoryModelStore
) -> None:
    store.promote_to_production("1")
    well(api)
    said = [api.post(PATH, {"accuracy": 0.5}).json["status"] for _ in range(4)]
    assert said == ["watching", "watching", "failed", "failed"]
    assert store.get_latest_version("Production") == "1"


BAD = [
    {},
    {"version": "1"},
    {"accuracy": 87},
    {"accuracy": -0.1},
    {"accuracy": True},
    {"accuracy": "0.9"},
    {"accuracy": None},
    {"accuracy": [0.9]},
    {"avg_latency_ms": -1},
    {"throughput_qps": 10**400},
    {"metrics": {"recall": 1.1e300}},
    {"inference_accuracy": 0.9},
    {"metrics": [1]},
    {"metrics": {"recall": "0.8"}},
    {"metrics": {"recall": False}},
    {"metrics": {"accuracy": 0.8}},
    {"metrics": {"": 0.8}},
    {"metrics": {"x" * 201: 0.8}},
    {"metrics": {f"m{n}": n for n in range(101)}},
    {"accuracy": 0.9, "version": 1},
    b'{"accuracy": NaN}',
    b'{"accuracy": Infinity}',
    b'{"accuracy": 1e999}',
    b'{"predictions": [1e999]}',
    b'{"accuracy": 0.9, "accuracy": 0.1}',
]


@pytest.mark.parametrize("body", BAD, ids=lambda body: repr(body)[:40])
def test_a_report_without_sense_counts_nothing(
    api: Client, store: InMemoryModelStore, manager: RetrainingManager, body: Any
) -> None:
    store.promote_to_production("1")
    reply = api.post(PATH, body)
    assert refused(reply, 400)
    assert len(reply.body) < 400
    assert manager.store.note("probation", ProbationState).read() == (0, None)


def test_what_is_no_version_is_not_found(api: Client, store: InMemoryModelStore) -> None:
    store.promote_to_production("1")
    assert refused(api.post(PATH, {"accuracy": 0.9, "version": "01"}), 404)


def test_the_same_key_counts_once(api: Client, store: InMemoryModelStore) -> None:
    store.promote_to_production("1")
    first = api.post(PATH, {"accuracy": 0.9}, Idempotency_Key="a")
    again = api.post(PATH, {"accuracy": 0.9}, Idempotency_Key="a")
    assert (again.json, again.headers["idempotency-replayed"]) == (first.json, "true")
    assert api.post(PATH, {"accuracy": 0.9}).json["report"] == 2


def test_what_a_crash_cut_short_before_the_answer_counts_once(
    api: Client, store: InMemoryModelStore, manager: RetrainingManager
) -> None:
    import hashlib

    store.promote_to_production("1")
    asked = f'{PATH}\n{{"accuracy": 0.9}}'
    claim = manager.store.keys.claim(
        "k", hashlib.sha256(asked.encode()).hexdigest(), owner="gone", now=datetime.now(UTC)
    )
    from fl_app.retraining import ProductionReport

    Probation(store, manager).report(ProductionReport(0.9, id=claim.id))  # then it was gone
    reply = api.post(PATH, {"accuracy": 0.9}, Idempotency_Key="k")
    assert (reply.status, reply.json["report"], reply.json["status"]) == (200, 1, "watching")


def test_a_registry_that_does_not_answer_is_told_and_counts_nothing(
    api: Client,
    store: InMemoryModelStore,
    manager: RetrainingManager,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store.promote_to_production("1")

    def down(**_: object) -> None:
        raise StoreUnavailable("MLflow does not answer.")

    monkeypatch.setattr(store, "history", down)
    assert refused(api.post(PATH, {"accuracy": 0.9}), 503)
    assert manager.store.note("probation", ProbationState).read() == (0, None)
    status = api.get("/status")
    assert (status.status, status.json["probation"]) == (200, None)


def test_a_slow_registry_holds_up_nothing_else(manager: RetrainingManager, tmp_path: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    began, go_on = threading.Semaphore(0), threading.Event()

    class Slow(InMemoryModelStore):
        def history(self, *, after: int = 0) -> tuple[Any, ...]:
            began.release()
            go_on.wait(20)
            return super().history(after=after)

    server = serve_api(create_trigger_api(manager, store=Slow(tmp_path / "slow")), port=0)
    assert server is not None
    client = Client(server.port)
    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(client.post, PATH, {"accuracy": 0.9}) for _ in range(6)]
        assert all(began.acquire(timeout=10) for _ in range(4))
        assert client.get("/status").json["probation"] is None
        assert client.post("/trigger_retrain", {}).status == 202
        go_on.set()
        statuses = [reply.result().status for reply in asked]
    server.close()
    assert set(statuses) == {409, 503}  # nothing is in production there; and it was busy


def test_without_a_registry_there_is_no_such_route() -> None:
    client = create_trigger_api(RetrainingManager()).test_client()
    assert client.post(PATH, json={"accuracy": 0.9}).status_code == 404
    assert client.get("/status").get_json()["probation"] is None
    assert PATH not in client.get("/openapi.json").get_json()["paths"]


def test_a_rollback_goes_to_a_day_or_a_moment(api: Client, store: InMemoryModelStore) -> None:
    for version in "123":
        store.promote_to_production(version)
        time.sleep(0.002)  # the journal tells milliseconds
    before = store.history()[0]
    for to in (before.time, before.time.replace("+00:00", "Z")):
        assert api.post("/rollback", {"to": to, "by": "Ada"}).json["version"] == "1"
        assert api.post("/rollback", {"to": "3"}).json["version"] == "3"
    today = datetime.now(UTC).date().isoformat()
    assert api.post("/rollback", {"to": today}).json["version"] == "3"
    assert refused(api.post("/rollback", {"to": "2020-01-01"}), 409)
    assert refused(api.post("/rollback", {"to": "0001-01-01T00:00:00+14:00"}), 409)
    for to in (
        "2026-13-01",
        "0000-01-01",
        "yesterday",
        "2026-11-23x",
        "2026-11-23T10:00:00+00:00; drop",
    ):
        assert refused(api.post("/rollback", {"to": to}), 404)


@pytest.fixture
def mlflow(tmp_path: Path) -> Iterator[tuple[Client, ModelManager, str]]:
    """The API on MLflow in SQLite, with two versions from one run, and limits."""
    models = ModelManager()
    experiment = models.backend.connection.experiment_id("fl-app")
    run_id = models.client.create_run(experiment).info.run_id
    models.client.set_terminated(run_id, "FINISHED")
    for number in (1, 2):
        path = tmp_path / f"{number}.safetensors"
        save_weights({"w": np.full(3, number, dtype=np.float32)}, path)
        models.save_model_version(path, run_id, {"mAP50": 0.8}, {"round": str(number)})
    manager = RetrainingManager(store=MonitorStore(f"sqlite:///{tmp_path / 'monitor.db'}"))
    probation = Probation(models, manager, ProbationSettings(in_a_row=2, max_latency_ms=250))
    app = create_trigger_api(manager, store=models, token=TOKEN, probation=probation)
    server = serve_api(app, port=0)
    assert server is not None
    yield Client(server.port, TOKEN), models, run_id
    server.close()


def test_numbers_and_predictions_are_in_the_version_s_run_in_mlflow(
    mlflow: tuple[Client, ModelManager, str], tmp_path: Path
) -> None:
    from mlflow.artifacts import download_artifacts

    api, models, run_id = mlflow
    models.promote_to_production("1", actor="Ada")
    predictions = [{"picture": "1.jpg", "boxes": [[1, 2, 3, 4]]}]
    first = api.post(PATH, {"accuracy": 0.9, "avg_latency_ms": 45, "predictions": predictions})
    assert (first.json["status"], first.json["logged"]) == ("watching", True)
    models.promote_to_production("2", actor="Ada")
    said = [api.post(PATH, {"avg_latency_ms": 400}).json["status"] for _ in range(2)]
    assert said == ["watching", "rolled_back"]
    assert models.get_latest_version("Production") == "1"
    run = models.client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.data.metrics["production/accuracy"] == 0.9

    def curve(name: str) -> list[tuple[int, float]]:
        history = models.client.get_metric_history(run_id, f"production/{name}")
        return [(point.step, point.value) for point in history]

    assert curve("avg_latency_ms") == [(1, 45), (2, 400), (3, 400)]
    assert curve("version") == [(1, 1), (2, 2), (3, 2)]
    file = download_artifacts(
        run_id=run_id,
        artifact_path="production/1/predictions.json",
        dst_path=str(tmp_path),
        tracking_uri=models.tracking_uri,
    )
    assert json.loads(Path(file).read_text()) == predictions
    assert "latency 400 ms, above 250" in models.history()[-1].reason
    assert models.get_version("2").tags["probation"] == "failed"
    assert models.verify() == 3
