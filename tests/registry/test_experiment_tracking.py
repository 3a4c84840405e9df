# SPDX-License-Identifier: Apache-2.0
"""What the tracker logs, read back with MLflow's own client; and the fake that stands in for it."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from fl_registry import (
    ArtifactError,
    FederatedLearningTracker,
    InMemoryTracker,
    InvalidName,
    ModelManager,
    RegistryError,
    Tracker,
)
from fl_registry.tracking import clean_key


@pytest.fixture
def tracker(mlflow_home: Path) -> FederatedLearningTracker:
    return FederatedLearningTracker(home=mlflow_home)


@pytest.fixture(params=["memory", "mlflow"])
def any_tracker(request: pytest.FixtureRequest) -> Iterator[Tracker]:
    if request.param == "memory":
        yield InMemoryTracker()
    else:
        yield request.getfixturevalue("tracker")


def test_a_run_keeps_what_was_logged(
    tracker: FederatedLearningTracker, manager: ModelManager, tmp_path: Path
) -> None:
    (tmp_path / "predictions.json").write_text("[]")
    run = tracker.start_run(run_name="production_inference_v1", tags={"session": "1"})
    tracker.log_params({"rounds": 10, "model": "yolov8n", "long": "x" * 9000, "empty": None})
    tracker.log_metrics({"accuracy": 0.8, "loss": np.float64(0.5)}, step=1)
    tracker.log_metrics({"accuracy": 0.9}, step=2)
    tracker.log_artifact(tmp_path / "predictions.json", "out")
    tracker.set_tags({"resumed": "no"})
    tracker.end_run()

    assert tracker.run is not None
    assert tracker.run.info.run_id == run.info.run_id
    stored = manager.client.get_run(run.info.run_id)
    assert stored.info.status == "FINISHED"
    assert stored.info.run_name == "production_inference_v1"
    assert stored.data.params == {
        "rounds": "10", "model": "yolov8n", "long": "x" * 6000, "empty": "None"
    }  # fmt: skip
    assert stored.data.metrics == {"accuracy": 0.9, "loss": 0.5}
    assert (stored.data.tags["session"], stored.data.tags["resumed"]) == ("1", "no")
    history = manager.client.get_metric_history(run.info.run_id, "accuracy")
    assert [(m.step, m.value) for m in history] == [(1, 0.8), (2, 0.9)]
    assert history[0].timestamp > 1_600_000_000_000
    (artifact,) = manager.client.list_artifacts(run.info.run_id, "out")
    assert artifact.path == "out/predictions.json"


def test_names_that_mlflow_refuses_are_cleaned_and_the_others_kept(
    tracker: FederatedLearningTracker, manager: ModelManager, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING), tracker:
        tracker.log_metrics(
            {"mAP50(B)": 0.5, "mAP50_B": 0.6, "../x": 1.0, "nan": math.nan, "text": "hi"},  # type: ignore[dict-item]
            step=3,
        )
        tracker.log_params({"lr(0)": 0.1})
    assert tracker.run is not None
    data = manager.client.get_run(tracker.run.info.run_id).data
    assert data.metrics.pop("mAP50_B") == 0.6
    assert data.metrics.pop("x") == 1.0
    ((name, value),) = data.metrics.items()
    assert name.startswith("mAP50_B_")
    assert value == 0.5
    assert data.params == {"lr_0": "0.1"}
    assert "metric nan is nan" in caplog.text
    assert "metric text is 'hi'" in caplog.text


@pytest.mark.parametrize(
    ("name", "cleaned"),
    [
        ("metrics/mAP50(B)", "metrics/mAP50_B"),
        ("fit/loss: a-b.c d", "fit/loss: a-b.c d"),
        ("_private_", "_private_"),
        ("größe", "größe"),
        ("/a//b/", "a/b"),
        ("x" * 250, "x" * 250),
    ],
)
def test_cleaned_names(name: str, cleaned: str) -> None:
    assert clean_key(name) == cleaned


@pytest.mark.parametrize("name", ["", "((", "..", "y" * 400])
def test_hopeless_names_still_give_a_name(name: str) -> None:
    assert 0 < len(clean_key(name)) <= 250
    assert clean_key(name) == clean_key(name)


def test_many_metrics_and_params_in_one_call(
    tracker: FederatedLearningTracker, manager: ModelManager
) -> None:
    with tracker:
        tracker.log_metrics({f"m{n}": float(n) for n in range(1100)})
        tracker.log_params({f"p{n}": n for n in range(120)})
    assert tracker.run is not None
    data = manager.client.get_run(tracker.run.info.run_id).data
    assert (len(data.metrics), len(data.params)) == (1100, 120)


def test_two_trackers_at_once_do_not_disturb_each_other(
    mlflow_home: Path, manager: ModelManager
) -> None:
    one = FederatedLearningTracker(home=mlflow_home)
    two = FederatedLearningTracker(None, "other", home=mlflow_home)
    one.start_run("one")
    two.start_run("two")
    one.log_metrics({"m": 1.0})
    two.log_metrics({"m": 2.0})
    one.end_run("KILLED")
    two.log_metrics({"n": 2.0})
    two.end_run()
    assert one.run is not None
    assert two.run is not None
    first = manager.client.get_run(one.run.info.run_id)
    second = manager.client.get_run(two.run.info.run_id)
    assert (first.data.metrics, first.info.status) == ({"m": 1.0}, "KILLED")
    assert (second.data.metrics, second.info.status) == ({"m": 2.0, "n": 2.0}, "FINISHED")
    assert first.info.experiment_id != second.info.experiment_id


def test_a_run_can_be_continued(mlflow_home: Path, manager: ModelManager) -> None:
    first = FederatedLearningTracker(home=mlflow_home)
    run_id = first.start_run("session").info.run_id
    first.log_metrics({"m": 1.0}, step=1)
    first.end_run("FAILED")
    second = FederatedLearningTracker(home=mlflow_home)
    assert second.start_run(run_id=run_id, tags={"resumed": "yes"}).info.run_id == run_id
    assert manager.client.get_run(run_id).info.status == "RUNNING"
    second.log_metrics({"m": 2.0}, step=2)
    second.end_run()
    stored = manager.client.get_run(run_id)
    assert (stored.info.status, stored.info.run_name) == ("FINISHED", "session")
    assert stored.data.tags["resumed"] == "yes"
    assert [m.step for m in manager.client.get_metric_history(run_id, "m")] == [1, 2]


def test_an_exception_ends_the_run_as_failed(
    any_tracker: Tracker, request: pytest.FixtureRequest
) -> None:
    with pytest.raises(ZeroDivisionError), any_tracker:
        any_tracker.log_metrics({"m": 1 / 0})
    if isinstance(any_tracker, InMemoryTracker):
        status = any_tracker.runs[0].status
    else:
        client = request.getfixturevalue("manager").client
        status = client.get_run(any_tracker.run.info.run_id).info.status
    assert status == "FAILED"


def test_both_trackers_refuse_the_same(any_tracker: Tracker, tmp_path: Path) -> None:
    with pytest.raises(RegistryError, match="No run is active"):
        any_tracker.log_metrics({"m": 1.0})
    any_tracker.end_run()
    assert any_tracker.start_run("a").info.run_id
    with pytest.raises(RegistryError, match="already active"):
        any_tracker.start_run("b")
    with pytest.raises(ArtifactError, match="no file at"):
        any_tracker.log_artifact(tmp_path / "nothing")
    with pytest.raises(RegistryError, match="cannot end 'DONE'"):
        any_tracker.end_run("DONE")
    any_tracker.end_run()
    with pytest.raises(RegistryError):
        any_tracker.start_run(run_id="0" * 32)


def test_the_fake_keeps_what_was_logged(tmp_path: Path) -> None:
    (tmp_path / "f.txt").touch()
    with InMemoryTracker() as tracker:
        tracker.log_params({"a": 1})
        tracker.log_metrics({"mAP50(B)": 0.5, "bad": math.nan}, step=2)
        tracker.log_artifact(tmp_path / "f.txt", "out")
        tracker.set_tags({"t": "1"})
    (run,) = tracker.runs
    assert run.params == {"a": "1"}
    assert run.metrics == {"mAP50_B": [(2, 0.5)]}
    assert run.artifacts == ["out/f.txt"]
    assert (run.tags, run.status) == ({"t": "1"}, "FINISHED")


def test_the_guide_s_lines_work(
    mlflow_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "predictions.json").write_text("[]")
    tracker = FederatedLearningTracker()
    tracker.start_run("fl_training_round_1")
    tracker.log_params({"rounds": 10, "clients": 3, "model": "yolov8n"})
    tracker.log_metrics({"inference_accuracy": 0.87, "avg_latency_ms": 45}, step=1)
    tracker.log_artifact("predictions.json")
    assert tracker.run is not None
    run_id = tracker.run.info.run_id
    tracker.end_run()
    client = ModelManager(home=mlflow_home).client
    assert client.get_run(run_id).info.run_name == "fl_training_round_1"
    assert [a.path for a in client.list_artifacts(run_id)] == ["predictions.json"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["fl-app-home", "predictions.json"]


def test_trackers_in_two_threads_do_not_disturb_each_other(
    mlflow_home: Path, manager: ModelManager
) -> None:
    failures: list[BaseException] = []
    runs: dict[int, list[str]] = {0: [], 1: []}

    def work(who: int) -> None:
        try:
            tracker = FederatedLearningTracker(None, f"experiment-{who}", home=mlflow_home)
            for number in range(3):
                with tracker:
                    for step in range(4):
                        tracker.log_metrics({"m": who * 100 + number * 10 + step}, step=step)
                    tracker.set_tags({"who": str(who)})
                assert tracker.run is not None
                runs[who].append(tracker.run.info.run_id)
        except BaseException as error:
            failures.append(error)
            raise

    threads = [threading.Thread(target=work, args=(who,)) for who in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    for who, ids in runs.items():
        for number, run_id in enumerate(ids):
            stored = manager.client.get_run(run_id)
            assert (stored.data.tags["who"], stored.info.status) == (str(who), "FINISHED")
            values = [m.value for m in manager.client.get_metric_history(run_id, "m")]
            assert values == [who * 100 + number * 10 + step for step in range(4)]


def test_an_unfinished_run_is_found_by_its_tags_and_continued(
    mlflow_home: Path, manager: ModelManager
) -> None:
    def left_running(**tags: str) -> str:
        run_id: str = FederatedLearningTracker(home=mlflow_home).start_run(tags=tags).info.run_id
        time.sleep(0.002)  # MLflow orders runs by the millisecond
        return run_id

    oldest = left_running(flower="7", session="1")
    wanted = left_running(flower="7", session="1", by='it\'s "quoted"')
    left_running(flower="7", session="2")
    with FederatedLearningTracker(home=mlflow_home) as ended:
        ended.set_tags({"flower": "7", "session": "1"})

    tracker = FederatedLearningTracker(home=mlflow_home)
    assert tracker.adopt_run({"flower": "7", "session": "3"}) is None
    assert tracker.run is None
    found = tracker.adopt_run({"flower": "7", "by": 'it\'s "quoted"'})
    assert found is not None
    assert found.info.run_id == wanted
    tracker.log_metrics({"m": 1.0}, step=4)
    with pytest.raises(RegistryError, match="already active"):
        tracker.adopt_run({"flower": "7"})
    tracker.end_run()
    assert manager.client.get_run(wanted).info.status == "FINISHED"
    again = FederatedLearningTracker(home=mlflow_home).adopt_run({"flower": "7", "session": "1"})
    assert again is not None
    assert again.info.run_id == oldest


def test_both_trackers_adopt_alike(any_tracker: Tracker) -> None:
    with pytest.raises(RegistryError, match="at least one"):
        any_tracker.adopt_run({})
    assert any_tracker.adopt_run({"a": "1"}) is None
    any_tracker.start_run(tags={"a": "1"})
    any_tracker.end_run()
    assert any_tracker.adopt_run({"a": "1"}) is None


def test_the_fake_adopts_the_newest_unfinished_run() -> None:
    tracker = InMemoryTracker()
    for _ in range(2):
        tracker.start_run(tags={"a": "1"})
        tracker.run = None  # as if its process had gone
    found = tracker.adopt_run({"a": "1"})
    assert found is tracker.runs[1]


def test_the_data_that_scores_are_taken_on_are_noted(
    tracker: FederatedLearningTracker, manager: ModelManager
) -> None:
    digest = "0123456789abcdef" * 4
    with tracker:
        tracker.log_dataset("shapes/val", digest, "/data/shapes", context="holdout")
        tracker.log_dataset("shapes/val", digest, "/data/shapes")  # twice is once
    assert tracker.run is not None
    stored = manager.client.get_run(tracker.run.info.run_id)
    (used,) = stored.inputs.dataset_inputs
    assert (used.dataset.name, used.dataset.digest) == ("shapes/val", digest[:36])
    assert "/data/shapes" in used.dataset.source
    assert {tag.key: tag.value for tag in used.tags} == {"mlflow.data.context": "holdout"}
    assert stored.data.tags["dataset.holdout"] == digest


@pytest.mark.parametrize(
    ("name", "digest", "context"),
    [("", "d", "holdout"), ("x" * 501, "d", "h"), ("n", "", "h"), ("n", "d", ""), ("n", "d", "a(")],
)
def test_both_trackers_refuse_the_same_data_sets(
    any_tracker: Tracker, name: str, digest: str, context: str
) -> None:
    with pytest.raises(RegistryError, match="No run is active"):
        any_tracker.log_dataset("n", "d")
    with any_tracker, pytest.raises(InvalidName):
        any_tracker.log_dataset(name, digest, context=context)


def test_a_password_in_a_data_set_s_address_is_not_kept(
    tracker: FederatedLearningTracker, manager: ModelManager
) -> None:
    with tracker:
        tracker.log_dataset("n", "d", "https://ada:s3cret@host/data")
    assert tracker.run is not None
    (used,) = manager.client.get_run(tracker.run.info.run_id).inputs.dataset_inputs
    assert "s3cret" not in used.dataset.source


def test_system_metrics_are_logged_on_request(
    mlflow_home: Path,
    manager: ModelManager,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import mlflow

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.2")
    tracker = FederatedLearningTracker(home=mlflow_home, system_metrics=True)
    before = threading.active_count()
    with tracker:
        time.sleep(0.9)
        assert mlflow.active_run() is None
    assert threading.active_count() == before
    assert tracker.run is not None
    first = manager.client.get_run(tracker.run.info.run_id).data.metrics
    assert "system/cpu_utilization_percentage" in first
    assert sorted(p.name for p in tmp_path.iterdir()) == ["fl-app-home"]
    plain = FederatedLearningTracker(home=mlflow_home)
    with plain:
        time.sleep(0.5)
    assert plain.run is not None
    assert manager.client.get_run(plain.run.info.run_id).data.metrics == {}


def test_no_global_state_of_mlflow_is_touched(tracker: FederatedLearningTracker) -> None:
    import mlflow

    before = mlflow.get_tracking_uri()
    with tracker:
        assert mlflow.active_run() is None
    assert mlflow.get_tracking_uri() == before


REFUSED = {"top@5": 0.5, "F1[macro]": 0.6, "val acc (%)": 70.0, "accuracy": 0.7}


def test_a_name_that_mlflow_refuses_is_reported_once_a_run(
    any_tracker: Tracker, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "fl_registry"):
        with any_tracker:
            for step in (1, 2, 3):
                any_tracker.log_metrics(REFUSED, step=step)
        assert [record.getMessage() for record in caplog.records] == [
            "MLflow cannot take the name 'F1[macro]': logged as 'F1_macro'",
            "MLflow cannot take the name 'top@5': logged as 'top_5'",
            "MLflow cannot take the name 'val acc (%)': logged as 'val acc'",
        ]
        with any_tracker:  # another run
            any_tracker.log_metrics({"top@5": 0.5}, step=1)
            any_tracker.log_params({"lr(0)": 0.1})
    assert len(caplog.records) == 5


@pytest.mark.parametrize("together", [True, False])
def test_two_names_that_become_the_same_one_stay_two(
    any_tracker: Tracker, manager: ModelManager, together: bool, caplog: pytest.LogCaptureFixture
) -> None:
    rounds: list[dict[str, float]] = (
        [{"top@5": 0.5, "top_5": 0.6}] if together else [{"top@5": 0.5}, {"top_5": 0.6}]
    )
    with caplog.at_level(logging.WARNING, "fl_registry"), any_tracker:
        for metrics in [*rounds, *rounds]:
            any_tracker.log_metrics(metrics, step=1)
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == (1 if together else 2)
    logged = {line.rpartition("logged as ")[2].strip("'") for line in lines}
    assert len(logged | {"top_5"}) == 2
    run = any_tracker.run
    metrics = (
        {name: points[-1][1] for name, points in run.metrics.items()}
        if isinstance(any_tracker, InMemoryTracker)
        else manager.client.get_run(run.info.run_id).data.metrics
    )
    assert sorted(metrics.values()) == [0.5, 0.6]
    assert set(metrics) == logged | {"top_5"}
