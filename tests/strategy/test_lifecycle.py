# SPDX-License-Identifier: Apache-2.0
"""LifecycleStrategy: what a session leaves in registry and tracking, and what it survives."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg
from support.local_grid import LocalGrid, add_one, model, reply

from fl_app import LifecycleStrategy, RoundReport
from fl_app.events import Event, Hook
from fl_app.strategy import (
    DataUsed,
    MetricError,
    ModelCard,
    Origin,
    RoundSettings,
    RunFailedError,
    SessionReport,
    SessionSettings,
    default_policy,
)
from fl_registry import InMemoryModelStore, InMemoryTracker, RegistryError, Serving, Stage
from fl_registry.files.artifacts import checked_header
from fl_registry.files.weights import load_weights


@pytest.fixture
def store(tmp_path: Path) -> InMemoryModelStore:
    return InMemoryModelStore()


@pytest.fixture
def tracker() -> InMemoryTracker:
    return InMemoryTracker()


@pytest.fixture
def parts(store: InMemoryModelStore, tracker: InMemoryTracker) -> dict[str, Any]:
    return {"store": store, "tracker": tracker}


def holdout(server_round: int, arrays: ArrayRecord) -> MetricRecord:
    """Accuracy is a tenth of the mean weight: each honest round adds 0.1."""
    return MetricRecord({"accuracy": float(arrays.to_numpy_ndarrays()[0].mean()) / 10})


def rounds_into(reports: list[RoundReport]) -> Hook:
    """A hook that keeps the rounds' reports and nothing else."""

    def keep(event: Event) -> None:
        if isinstance(event, RoundReport):
            reports.append(event)

    return keep


def versions(store: InMemoryModelStore) -> list[dict[str, Any]]:
    return sorted(store.list_all_versions(), key=lambda row: int(row["version"]))


@pytest.mark.parametrize("pipeline", [True, False])
def test_each_round_becomes_a_version_and_the_best_waits(
    parts: dict[str, Any], store: InMemoryModelStore, tracker: InMemoryTracker, pipeline: bool
) -> None:
    strategy = LifecycleStrategy(
        FedAvg(), metric="accuracy", rounds=RoundSettings(pipeline=pipeline), **parts
    )
    result = strategy.start(LocalGrid(add_one), model(), num_rounds=3, evaluate_fn=holdout)

    rows = versions(store)
    assert [row["tags"]["round"] for row in rows] == ["1", "2", "3"]
    assert [row["stage"] for row in rows] == ["Archived", "Archived", "Staging"]
    assert [row["tags"]["approval"] for row in rows] == ["superseded", "superseded", "pending"]
    assert store.get_latest_version(Stage.PRODUCTION) is None
    assert rows[2]["metrics"]["accuracy"] == pytest.approx(0.3)
    scored = {r: m["accuracy"] for r, m in result.evaluate_metrics_serverapp.items()}
    assert scored == pytest.approx({0: 0.0, 1: 0.1, 2: 0.2, 3: 0.3})


def test_a_version_is_the_round_s_arrays_with_their_own_dtypes(
    parts: dict[str, Any], store: InMemoryModelStore
) -> None:
    strategy = LifecycleStrategy(
        metric="accuracy", model=ModelCard(description={"family": "toy"}), **parts
    )
    result = strategy.start(LocalGrid(add_one), model(), num_rounds=2, evaluate_fn=holdout)
    path = store.weights_path("2")
    saved = list(load_weights(path).values())
    for mine, flowers in zip(saved, result.arrays.to_numpy_ndarrays(), strict=True):
        np.testing.assert_array_equal(mine, flowers)
    assert [a.dtype for a in saved] == [np.float32, np.int64]
    manifest = checked_header(path, shown=path).manifest
    assert manifest is not None
    assert manifest.model == {"family": "toy"}


def test_versions_are_servable_and_the_holdout_is_noted(
    parts: dict[str, Any], store: InMemoryModelStore, tracker: InMemoryTracker, tmp_path: Path
) -> None:
    code = tmp_path / "code.py"
    code.write_text("def load(weights, spec, config): ...")
    data = DataUsed("digits/val", "ab" * 32, "/data/digits")
    strategy = LifecycleStrategy(model=ModelCard(serving=Serving(code), holdout=data), **parts)
    strategy.start(LocalGrid(add_one), model(), num_rounds=1)
    assert (store.weights_path("1").parent / "MLmodel").is_file()
    assert tracker.runs[0].datasets == {"holdout": ("digits/val", "ab" * 32)}


def test_provenance_is_in_the_tags(parts: dict[str, Any], store: InMemoryModelStore) -> None:
    origin = Origin(session=2, parent_version=None, trigger="the score fell", request_id="ab")
    strategy = LifecycleStrategy(session=SessionSettings(origin=origin), **parts)
    strategy.start(LocalGrid(add_one), model(), num_rounds=1)
    tags = versions(store)[0]["tags"]
    assert (tags["session"], tags["trigger"], tags["flower_run_id"]) == ("2", "the score fell", "7")
    nodes = json.loads(tags["nodes"])
    assert {n["node_id"]: n["data_digest"] for n in nodes} == {
        "11": "data-of-11",
        "12": "data-of-12",
        "13": "data-of-13",
    }
    assert {n["num_examples"] for n in nodes} == {10}


def test_a_report_tells_the_verdict_that_decided(parts: dict[str, Any]) -> None:
    reports: list[RoundReport] = []
    policy = default_policy("accuracy", threshold=0.15)
    hooks = [rounds_into(reports)]
    LifecycleStrategy(metric="accuracy", policy=policy, hooks=hooks, **parts).start(
        LocalGrid(add_one), model(), num_rounds=2, evaluate_fn=holdout
    )
    assert "0.1" in reports[0].reason
    assert "below 0.15" in reports[0].reason
    assert "no production version to beat" in reports[1].reason


def test_without_a_metric_nothing_is_staged(
    parts: dict[str, Any], store: InMemoryModelStore
) -> None:
    LifecycleStrategy(FedAvg(), **parts).start(LocalGrid(add_one), model(), num_rounds=2)
    assert [row["stage"] for row in versions(store)] == ["None", "None"]


def test_auto_approval_promotes_the_best_at_the_end(
    parts: dict[str, Any], store: InMemoryModelStore
) -> None:
    strategy = LifecycleStrategy(metric="accuracy", approval="auto", **parts)
    strategy.start(LocalGrid(add_one), model(), num_rounds=3, evaluate_fn=holdout)
    assert store.get_latest_version(Stage.PRODUCTION) == "3"
    assert versions(store)[2]["tags"]["approval"] == "approved"


def test_a_worse_session_never_replaces_production(
    parts: dict[str, Any], store: InMemoryModelStore
) -> None:
    first = LifecycleStrategy(metric="accuracy", approval="auto", **parts)
    first.start(LocalGrid(add_one), model(), num_rounds=3, evaluate_fn=holdout)
    second = LifecycleStrategy(metric="accuracy", approval="auto", **parts)
    second.start(LocalGrid(add_one), model(), num_rounds=2, evaluate_fn=holdout)
    assert store.get_latest_version(Stage.PRODUCTION) == "3"
    assert "0.2" in versions(store)[4]["tags"]["reason"]


def test_the_champion_is_scored_on_this_session_s_holdout(
    parts: dict[str, Any], store: InMemoryModelStore
) -> None:
    LifecycleStrategy(metric="accuracy", approval="auto", **parts).start(
        LocalGrid(add_one), model(), num_rounds=3, evaluate_fn=holdout
    )

    def harder(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        mean = float(arrays.to_numpy_ndarrays()[0].mean())
        return MetricRecord({"accuracy": 0.01 if mean == 3 else mean / 100})

    LifecycleStrategy(metric="accuracy", approval="auto", **parts).start(
        LocalGrid(add_one), model(), num_rounds=2, evaluate_fn=harder
    )
    # 0.02 is far below the 0.3 that production was saved with, and above its 0.01 on this holdout.
    assert store.get_latest_version(Stage.PRODUCTION) == "5"


def test_without_a_holdout_the_clients_metrics_are_the_metrics(
    parts: dict[str, Any], store: InMemoryModelStore, tracker: InMemoryTracker
) -> None:
    LifecycleStrategy(metric="accuracy", **parts).start(LocalGrid(add_one), model(), num_rounds=2)
    assert versions(store)[1]["metrics"] == pytest.approx({"accuracy": 0.2, "train/loss": 1.0})


def test_less_can_be_better(parts: dict[str, Any], store: InMemoryModelStore) -> None:
    strategy = LifecycleStrategy(metric="accuracy", mode="min", **parts)
    strategy.start(LocalGrid(add_one), model(), num_rounds=2, evaluate_fn=holdout)
    assert [row["stage"] for row in versions(store)] == ["Staging", "None"]


def test_a_score_that_is_not_a_number_stages_nothing_and_ends_nothing(
    parts: dict[str, Any], store: InMemoryModelStore
) -> None:
    def broken(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        scored = holdout(server_round, arrays)
        return MetricRecord({"accuracy": np.nan}) if server_round == 2 else scored

    LifecycleStrategy(metric="accuracy", **parts).start(
        LocalGrid(add_one), model(), num_rounds=3, evaluate_fn=broken
    )
    rows = versions(store)
    assert [row["stage"] for row in rows] == ["Archived", "None", "Staging"]
    assert "not a finite number" in rows[1]["tags"]["reason"]
    assert "accuracy" not in rows[1]["metrics"]


def test_an_unknown_metric_fails_while_the_first_nodes_train(
    parts: dict[str, Any], store: InMemoryModelStore, tracker: InMemoryTracker
) -> None:
    grid = LocalGrid(add_one)
    with pytest.raises(MetricError, match=r"'mAP'.*\['accuracy'\]"):
        LifecycleStrategy(metric="mAP", **parts).start(
            grid, model(), num_rounds=3, evaluate_fn=holdout
        )
    assert {message.metadata.message_type for message in grid.sent} == {"train"}
    assert store.list_versions() == []
    assert tracker.runs[0].params  # of the session that failed


class Looking(FedAvg):
    """Notes when it samples nodes and when it gets their replies."""

    def __init__(self, events: list[str]) -> None:
        super().__init__()
        self.events = events

    def configure_train(self, server_round: int, *args: Any) -> Iterable[Message]:
        self.events.append(f"train {server_round}")
        return super().configure_train(server_round, *args)

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
        self.events.append(f"replies {server_round}")
        return super().aggregate_train(server_round, replies)


@pytest.mark.parametrize("rounds", [0, 2])
def test_what_it_starts_with_is_scored_while_the_first_nodes_train(
    parts: dict[str, Any], tracker: InMemoryTracker, rounds: int
) -> None:
    events: list[str] = []

    def score(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        events.append(f"score {server_round}")
        return holdout(server_round, arrays)

    strategy = LifecycleStrategy(Looking(events), **parts)
    strategy.start(LocalGrid(add_one), model(), num_rounds=rounds, evaluate_fn=score)
    # The worker scores the later rounds whenever it gets to them.
    first = [event for event in events if event not in ("score 1", "score 2")]
    later = ["train 1", "score 0", "replies 1", "train 2", "replies 2"]
    assert first == (later if rounds else ["score 0"])
    (run,) = tracker.runs
    assert run.metrics["accuracy"][0][0] == 0
    assert run.params


def test_an_unknown_client_metric_fails_after_round_one(
    parts: dict[str, Any], tracker: InMemoryTracker
) -> None:
    with pytest.raises(MetricError, match=r"'mAP'.*accuracy"):
        LifecycleStrategy(metric="mAP", **parts).start(LocalGrid(add_one), model(), num_rounds=3)


class FailsOnce(FedAvg):
    """Divides by zero in the second round."""

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
        arrays, metrics = super().aggregate_train(server_round, replies)
        if arrays is not None and server_round == 2:
            spoilt = [np.full_like(a, np.nan, dtype=float) for a in arrays.to_numpy_ndarrays()]
            arrays = ArrayRecord(spoilt)
        return arrays, metrics


def test_a_round_that_is_not_finite_keeps_the_old_arrays(
    parts: dict[str, Any], store: InMemoryModelStore
) -> None:
    reports: list[RoundReport] = []
    hooks = [rounds_into(reports)]
    result = LifecycleStrategy(FailsOnce(), metric="accuracy", hooks=hooks, **parts).start(
        LocalGrid(add_one), model(), num_rounds=3, evaluate_fn=holdout
    )
    assert [r.failed for r in reports] == [False, True, False]
    assert "not finite" in reports[1].reason
    assert [row["tags"]["round"] for row in versions(store)] == ["1", "3"]
    np.testing.assert_array_equal(result.arrays.to_numpy_ndarrays()[0], np.full((2, 3), 2.0))


def test_three_failed_rounds_in_a_row_fail_the_run(
    parts: dict[str, Any], store: InMemoryModelStore
) -> None:
    def answer(node_id: int, message: Message) -> Any:
        return Error(code=100, reason="out of memory")

    grid = LocalGrid(answer)
    with pytest.raises(RunFailedError, match=r"3 rounds in a row .* no client sent a valid reply"):
        LifecycleStrategy(metric="accuracy", **parts).start(grid, model(), num_rounds=9)
    assert store.list_all_versions() == []


def test_replies_that_do_not_fit_together_are_a_failed_round(
    parts: dict[str, Any], store: InMemoryModelStore
) -> None:
    def answer(node_id: int, message: Message) -> Any:
        return reply(ArrayRecord([np.zeros(node_id)]), loss=1.0)

    inner = FedAvg(fraction_evaluate=0.0)
    with pytest.raises(
        RunFailedError, match=r"All replies of round 1 .* the model's: it lacks '1'"
    ):
        LifecycleStrategy(inner, **parts).start(LocalGrid(answer), model(), num_rounds=3)
    with pytest.raises(RunFailedError, match=r"the replies do not fit together|raised ValueError"):
        LifecycleStrategy(inner, rounds=RoundSettings(screening=None), **parts).start(
            LocalGrid(answer), model(), num_rounds=3
        )


def test_the_monitor_hears_the_start_and_every_round(
    parts: dict[str, Any], store: InMemoryModelStore
) -> None:
    class Heard:
        def __init__(self) -> None:
            self.scores: list[tuple[int, float]] = []
            self.data: list[tuple[int, dict[str, dict[str, object]]]] = []
            self.start: tuple[str, float] | None = None

        def start_from(self, version: str, score: float) -> None:
            self.start = (version, round(score, 6))

        def update_metrics(self, accuracy: float, round_num: int) -> None:
            self.scores.append((round_num, round(accuracy, 6)))

        def update_data(
            self, summaries: Mapping[str, Mapping[str, object]], round_num: int
        ) -> None:
            self.data.append((round_num, {node: dict(told) for node, told in summaries.items()}))

        def data_orders(self) -> dict[str, str | bool]:
            return {"data-reference": "first"}

    def tells(node_id: int, message: Message) -> RecordDict:
        records = add_one(node_id, message)
        if node_id == 11 and message.metadata.message_type == "train":
            records["data-summary"] = ConfigRecord({"version": 1})
        return records

    LifecycleStrategy(metric="accuracy", **parts).start(
        LocalGrid(add_one), model(), num_rounds=1, evaluate_fn=holdout
    )
    monitor = Heard()
    LifecycleStrategy(
        metric="accuracy",
        monitor=monitor,
        session=SessionSettings(origin=Origin(parent_version="1")),
        **parts,
    ).start(grid := LocalGrid(tells), model(1), num_rounds=2, evaluate_fn=holdout)
    assert monitor.start == ("1", 0.1)
    assert monitor.scores == [(1, 0.2), (2, 0.3)]
    assert monitor.data == [(1, {"11": {"version": 1}}), (2, {"11": {"version": 1}})]
    orders = {m.content.config_records["config"].get("data-reference") for m in grid.sent}
    assert orders == {"first", None}  # to train, and to evaluate


def test_artifacts_get_the_whole_session(parts: dict[str, Any], tracker: InMemoryTracker) -> None:
    given: list[SessionReport] = []

    def note(report: SessionReport, folder: Path) -> list[Path]:
        given.append(report)
        path = folder / "note.txt"
        path.write_text("hello")
        return [path]

    LifecycleStrategy(metric="accuracy", artifacts=[note], **parts).start(
        LocalGrid(add_one), model(), num_rounds=2, evaluate_fn=holdout
    )
    report = given[0]
    assert [step for step, _ in report.history["accuracy"]] == [0, 1, 2]
    assert report.weights is not None
    assert report.weights.is_file()


def test_it_must_be_the_outermost_strategy(parts: dict[str, Any]) -> None:
    with pytest.raises(RegistryError, match="outermost"):
        LifecycleStrategy(**parts).aggregate_train(1, [])


def test_an_interrupted_session_ends_its_run_as_killed(
    parts: dict[str, Any], tracker: InMemoryTracker
) -> None:
    def answer(node_id: int, message: Message) -> Any:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        LifecycleStrategy(**parts).start(LocalGrid(answer), model(), num_rounds=2)
    assert [run.status for run in tracker.runs] == ["KILLED"]


def test_a_failed_session_ends_its_run_as_failed(
    parts: dict[str, Any], tracker: InMemoryTracker
) -> None:
    with pytest.raises(MetricError):
        LifecycleStrategy(metric="no", **parts).start(
            LocalGrid(add_one), model(), num_rounds=1, evaluate_fn=holdout
        )
    assert [run.status for run in tracker.runs] == ["FAILED"]


def test_a_better_session_supersedes_what_waits_from_the_one_before(
    parts: dict[str, Any], store: InMemoryModelStore
) -> None:
    for start in (0, 1):
        LifecycleStrategy(metric="accuracy", **parts).start(
            LocalGrid(add_one), model(start), num_rounds=1, evaluate_fn=holdout
        )
    rows = versions(store)
    assert [row["stage"] for row in rows] == ["Archived", "Staging"]
    assert [row["tags"]["approval"] for row in rows] == ["superseded", "pending"]


def test_no_file_stays_once_all_is_in_the_registry(parts: dict[str, Any], home: Path) -> None:
    LifecycleStrategy(home=home, **parts).start(LocalGrid(add_one), model(), num_rounds=3)
    assert list((home / "checkpoints").iterdir()) == []
