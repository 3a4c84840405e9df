# SPDX-License-Identifier: Apache-2.0
"""What hooks hear of a session, and that none of them can delay, change or end it."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from flwr.app import ArrayRecord, Error, MetricRecord
from support.local_grid import LocalGrid, add_one, model

from fl_app.events import Event, RoundReport, SessionEnded, SessionStarted, StageMoved, as_json
from fl_app.hooks import PrometheusMetrics, log_event
from fl_app.hooks.queue import Hooks
from fl_app.strategy import (
    LifecycleStrategy,
    MetricError,
    Origin,
    RoundSettings,
    RunFailedError,
    SessionSettings,
)
from fl_registry import InMemoryModelStore, InMemoryTracker, Stage


@pytest.fixture
def store() -> InMemoryModelStore:
    return InMemoryModelStore()


@pytest.fixture
def tracker() -> InMemoryTracker:
    return InMemoryTracker()


@pytest.fixture
def parts(store: InMemoryModelStore, tracker: InMemoryTracker) -> dict[str, Any]:
    return {"store": store, "tracker": tracker, "metric": "accuracy"}


@pytest.fixture
def told() -> list[Event]:
    return []


def holdout(server_round: int, arrays: ArrayRecord) -> MetricRecord:
    return MetricRecord({"accuracy": float(arrays.to_numpy_ndarrays()[0].mean()) / 10})


def start(hooks: Any, parts: dict[str, Any], num_rounds: int = 2, **more: Any) -> None:
    strategy = LifecycleStrategy(hooks=hooks, **parts, **more)
    strategy.start(LocalGrid(add_one), model(), num_rounds=num_rounds, evaluate_fn=holdout)


@pytest.mark.parametrize("pipeline", [True, False])
def test_a_session_is_told_from_its_start_to_its_end_in_order(
    parts: dict[str, Any], tracker: InMemoryTracker, told: list[Event], pipeline: bool
) -> None:
    origin = Origin(session=2, trigger="the score fell", request_id="cd")
    start(
        [told.append],
        parts,
        approval="auto",
        session=SessionSettings(origin=origin),
        rounds=RoundSettings(pipeline=pipeline),
    )
    assert [event.type for event in told] == [
        "session.started",
        "stage.moved",
        "round.finished",
        "stage.moved",
        "round.finished",
        "stage.moved",
        "session.ended",
    ]
    started, *_, promoted, ended = told
    run_id = tracker.runs[0].info.run_id
    assert isinstance(started, SessionStarted)
    assert (started.run_id, started.session, started.trigger) == (run_id, 2, "the score fell")
    assert (started.production, started.staging) == (None, None)
    assert isinstance(promoted, StageMoved)
    assert (promoted.op, promoted.version, promoted.actor) == ("promote", "2", "policy")
    assert (promoted.production, promoted.staging) == ("2", None)
    assert isinstance(ended, SessionEnded)
    assert (ended.status, ended.versions, ended.pending) == ("finished", ("1", "2"), None)
    assert len({event.id for event in told}) == len(told)


def test_every_event_is_json_and_says_when(parts: dict[str, Any], told: list[Event]) -> None:
    start([told.append], parts)
    for event in told:
        plain = json.loads(json.dumps(as_json(event), allow_nan=False))
        assert set(plain) == {"type", "id", "timestamp", "data"}
        assert plain["timestamp"].endswith("+00:00")
        assert not {"id", "time"} & set(plain["data"])


def test_what_waits_for_approval_is_told_at_the_end(
    parts: dict[str, Any], told: list[Event]
) -> None:
    start([told.append], parts)
    ended = told[-1]
    assert isinstance(ended, SessionEnded)
    assert ended.pending == "2"


def test_a_failed_session_is_told_with_its_reason(parts: dict[str, Any], told: list[Event]) -> None:
    with pytest.raises(MetricError):
        start([told.append], {**parts, "metric": "mAP"})
    ended = told[-1]
    assert isinstance(ended, SessionEnded)
    assert (ended.status, ended.versions) == ("failed", ())
    assert ended.reason.startswith("MetricError: ")


def test_failed_rounds_are_told_and_counted(parts: dict[str, Any], told: list[Event]) -> None:
    grid = LocalGrid(lambda node_id, message: Error(code=100, reason="out of memory"))
    with pytest.raises(RunFailedError):
        LifecycleStrategy(hooks=[told.append], **parts).start(grid, model(), num_rounds=9)
    rounds = [event for event in told if isinstance(event, RoundReport)]
    assert [(r.round, r.failed) for r in rounds] == [(1, True), (2, True), (3, True)]
    ended = told[-1]
    assert isinstance(ended, SessionEnded)
    assert (ended.status, ended.failed_rounds) == ("failed", 3)


def test_a_session_that_is_told_to_end_is_told_as_killed(
    parts: dict[str, Any], told: list[Event]
) -> None:
    def answer(node_id: int, message: object) -> Any:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        LifecycleStrategy(hooks=[told.append], **parts).start(
            LocalGrid(answer), model(), num_rounds=2
        )
    ended = told[-1]
    assert isinstance(ended, SessionEnded)
    assert (ended.status, ended.reason) == ("killed", "KeyboardInterrupt")


@pytest.mark.parametrize("error", [RuntimeError("mine"), SystemExit(3)])
def test_a_hook_that_raises_changes_nothing_and_is_called_again(
    parts: dict[str, Any],
    store: InMemoryModelStore,
    told: list[Event],
    caplog: pytest.LogCaptureFixture,
    error: BaseException,
) -> None:
    heard: list[str] = []

    def broken(event: Event) -> None:
        heard.append(event.type)
        raise error

    start([broken, told.append], parts)
    assert store.get_latest_version(Stage.STAGING) == "2"
    assert heard == [event.type for event in told]
    failures = [r for r in caplog.records if "failed on" in r.getMessage()]
    assert len(failures) == len(told)
    assert all("Traceback" in record.getMessage() for record in failures)


@pytest.fixture
def hang() -> Iterator[threading.Event]:
    """What a hook waits for; it comes at the end of the test."""
    release = threading.Event()
    yield release
    release.set()


def test_a_hook_that_hangs_delays_no_round_and_nobody_else(
    parts: dict[str, Any],
    store: InMemoryModelStore,
    told: list[Event],
    hang: threading.Event,
    caplog: pytest.LogCaptureFixture,
) -> None:
    heard: list[Event] = []

    def hanging(event: Event) -> None:
        heard.append(event)
        hang.wait()

    hooks = Hooks([told.append, hanging], store, seconds=1.0)
    start(hooks, parts, num_rounds=3)  # returns while the hook still hangs
    assert not hang.is_set()
    assert store.get_latest_version(Stage.STAGING) == "3"
    assert [event.type for event in told][-1] == "session.ended"
    assert len(heard) == 1
    assert f"still has {len(told)} events; not waiting for it" in caplog.text
    hang.set()
    hooks.flush(20)
    assert heard == told  # nothing was lost, and the order was kept


def test_a_hook_that_is_far_behind_misses_events_and_it_is_told(
    hang: threading.Event, caplog: pytest.LogCaptureFixture
) -> None:
    heard: list[int] = []
    entered = threading.Event()

    def slow(event: Event) -> None:
        assert isinstance(event, RoundReport)
        entered.set()
        hang.wait()
        heard.append(event.round)

    hooks = Hooks([slow], max_waiting=3)
    hooks(RoundReport(1, 9))
    assert entered.wait(20)
    for number in range(2, 8):
        hooks(RoundReport(number, 9))
    hang.set()
    hooks.flush(20)
    hooks(RoundReport(8, 9))
    hooks.flush(20)
    assert heard == [1, 2, 3, 4, 8]
    told = [r.getMessage() for r in caplog.records]
    assert "is 3 events behind; events from -round-5 on are dropped" in told[0]
    assert "missed 3 events" in told[1]
    assert len(told) == 2


def test_no_thread_is_left_when_there_is_nothing_to_tell(parts: dict[str, Any]) -> None:
    others = {*threading.enumerate()}  # of earlier tests

    def ours() -> list[str]:
        new = {*threading.enumerate()} - others
        return [thread.name for thread in new if thread.name.startswith("fl-app-")]

    hooks = Hooks([lambda event: None], parts["store"])
    start(hooks, parts)
    with hooks.watching(0.01):
        assert "fl-app-journal" in ours()
    for thread in {*threading.enumerate()} - others:
        if thread.name.startswith("fl-app-"):
            thread.join(20)
    assert ours() == []


def test_the_log_hook_writes_a_line_of_json(
    parts: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "flwr.fl_app.events")
    start([log_event], parts, num_rounds=1)
    lines = [r.getMessage() for r in caplog.records if r.name == "flwr.fl_app.events"]
    assert [json.loads(line)["type"] for line in lines] == [
        "session.started",
        "stage.moved",
        "round.finished",
        "session.ended",
    ]
    assert not any("\n" in line for line in lines)


def test_prometheus_counts_what_happened(parts: dict[str, Any]) -> None:
    metrics = PrometheusMetrics()
    start([metrics], parts, approval="auto")

    def sample(what: str, **labels: str) -> float | None:
        return metrics.registry.get_sample_value(f"fl_app_{what}", labels)

    assert sample("rounds_total", result="ok") == 2
    assert sample("rounds_total", result="failed") == 0
    assert sample("round_seconds_count") == 2
    assert sample("metric", name="accuracy") == pytest.approx(0.2)
    assert sample("version", stage="production") == 2
    assert sample("version", stage="staging") is None
    assert sample("stage_moves_total", op="promote") == 1
    assert sample("sessions_total", status="finished") == 1


def test_prometheus_takes_no_more_than_a_hundred_names() -> None:
    metrics = PrometheusMetrics()
    many = {f"client/{n}": 1.0 for n in range(500)}
    metrics(RoundReport(1, 1, {**many, "mAP50": 0.5}))
    names = [s.labels["name"] for f in metrics.collect() for s in f.samples if "name" in s.labels]
    assert len(names) == 100
    assert "mAP50" in names
    metrics(RoundReport(2, 2, {"mAP50": 0.6}))  # those of the round before do not stay
    assert metrics.registry.get_sample_value("fl_app_metric", {"name": "client/1"}) is None
