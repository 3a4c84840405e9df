# SPDX-License-Identifier: Apache-2.0
"""Callbacks that raise or hang, and drift by a test double: what the monitor makes of them."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from support.api_client import Client

from fl_app.api import create_trigger_api, serve_api
from fl_app.retraining import MonitorStore, RetrainingManager, RetrainRequest, TriggerKind

START = datetime(2026, 1, 4, tzinfo=UTC)


def wait_until(true: Callable[[], object], seconds: float = 10) -> None:
    """Wait until the condition holds."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)


def outcomes(manager: RetrainingManager) -> list[str]:
    return [entry["outcome"] for entry in manager.trigger_history]


class Hanging:
    """A callback that does not return before the test lets it."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.go_on = threading.Event()

    def __call__(self, request: RetrainRequest) -> None:
        self.seen.append(request.reason)
        self.go_on.wait(60)


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'monitor.db'}"


@pytest.fixture
def hanging() -> Iterator[Hanging]:
    callback = Hanging()
    yield callback
    callback.go_on.set()


def test_a_hanging_callback_holds_up_nothing_but_sessions(
    url: str, hanging: Hanging, caplog: pytest.LogCaptureFixture
) -> None:
    clock = [START]
    manager = RetrainingManager(
        check_interval=0.05,
        min_rounds_between_retrain=0,
        min_hours_between_retrain=0,
        store=MonitorStore(url),
        now=lambda: clock[0],
    )
    manager.schedule_periodic_retrain(7)
    manager.set_retrain_callback(hanging)
    manager.start_monitoring()
    server = serve_api(create_trigger_api(manager), port=0)
    assert server is not None
    client = Client(server.port)
    with caplog.at_level(logging.INFO, "flwr.fl_app"):
        manager.manual_trigger("hangs")
        wait_until(lambda: hanging.seen)
        # The monitor goes on: it looks at the calendar, takes scores and answers over HTTP.
        clock[0] += timedelta(days=7, hours=1)
        wait_until(lambda: outcomes(manager) == ["running", "pending"])
        manager.update_metrics(0.8, 1)
        for reason in ("one", "two"):
            reply = client.post("/trigger_retrain", {"reason": reason}, timeout=5)
            assert reply.json["status"] == "joined"
        status = client.get("/status", timeout=5).json
        assert (status["running"]["reason"], status["monitoring"]) == ("hangs", True)
        assert status["running"]["started"] is not None
        assert status["pending"]["kind"] == "schedule"
        assert hanging.seen == ["hangs"]
        wait_until(lambda: "the retrain callback has had request" in caplog.text)
        # It comes back after all, and what waited is served.
        hanging.go_on.set()
        wait_until(lambda: outcomes(manager) == ["done", "done", "joined", "joined"])
        wait_until(lambda: caplog.text.count(" took ") == 2)
    server.close()
    manager.stop_monitoring()
    began, ended = (manager.trigger_history[0][name] for name in ("started", "ended"))
    assert datetime.fromisoformat(ended) >= datetime.fromisoformat(began)


def test_what_a_callback_never_finished_is_handed_out_again_after_a_restart(
    url: str, hanging: Hanging
) -> None:
    manager = RetrainingManager(store=MonitorStore(url))
    manager.set_retrain_callback(hanging)
    manager.start_monitoring()
    manager.manual_trigger("hangs")
    wait_until(lambda: hanging.seen)
    began = time.monotonic()
    manager.stop_monitoring()
    assert time.monotonic() - began < 5  # it does not wait for the callback
    manager.store.close()  # as the end of a process does
    seen: list[tuple[str, bool]] = []
    after = RetrainingManager(store=MonitorStore(url))
    after.set_retrain_callback(lambda request: seen.append((request.reason, request.cut_short)))
    after.start_monitoring()
    wait_until(lambda: outcomes(after) == ["done"])
    after.stop_monitoring()
    assert seen == [("hangs", True)]


def test_a_memory_that_is_away_for_a_while_does_not_end_the_monitor(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from sqlalchemy.exc import OperationalError

    manager = RetrainingManager(check_interval=0.05)
    called: list[str] = []
    manager.set_retrain_callback(lambda request: called.append(request.reason))

    def away(*_: Any, **__: Any) -> None:
        raise OperationalError("select", {}, Exception("the server closed the connection"))

    with monkeypatch.context() as patch:
        patch.setattr(manager.store.requests, "take", away)
        manager.start_monitoring()
        wait_until(lambda: "memory does not answer" in caplog.text)
    manager.manual_trigger("after that")
    wait_until(lambda: called == ["after that"])
    manager.stop_monitoring()


def test_a_server_that_leaves_keeps_what_it_was_serving_for_the_next(url: str) -> None:
    manager = RetrainingManager(store=MonitorStore(url))
    manager.manual_trigger("stopped in the middle")
    request = manager.take()
    assert request is not None

    def session() -> None:
        with manager.running(request):
            manager.leave()
            raise RuntimeError("the SuperLink does not know this run")

    with pytest.raises(RuntimeError):
        session()
    assert manager.take(wait=60) is None
    again = RetrainingManager(store=MonitorStore(url)).take()
    assert again is not None
    assert (again.id, again.cut_short) == (request.id, True)


@dataclass(frozen=True)
class ShiftSeen:
    """A double of a drift trigger: requests when inputs are far off for the third time in a row."""

    most: float
    seen: int = 0

    def update(self, distance: float) -> tuple[ShiftSeen, str]:
        """Take what was measured; return the next state and the reason to retrain, if any."""
        seen = self.seen + 1 if distance > self.most else 0
        return replace(self, seen=seen % 3), f"inputs are off by {distance}" if seen == 3 else ""


def test_drift_goes_through_the_policy_like_a_fall() -> None:
    clock = [START]
    manager = RetrainingManager(
        min_rounds_between_retrain=0,
        min_hours_between_retrain=24,
        budget=2,
        now=lambda: clock[0],
    )
    trigger = ShiftSeen(0.2)
    for hour, distance in enumerate([0.1, 0.5, 0.5, 0.1] + [0.5] * 12 + [0.1] * 90 + [0.5] * 90):
        clock[0] = START + timedelta(hours=hour)
        trigger, reason = trigger.update(distance)
        if reason:
            manager.request(TriggerKind.DRIFT, reason)
        request = manager.take()
        if request is not None:
            assert (request.kind, request.force) == (TriggerKind.DRIFT, False)
            with manager.running(request):
                pass
    rows = manager.trigger_history
    assert {row["kind"] for row in rows} == {"drift"}
    assert outcomes(manager).count("done") == 2
    assert {row["why"].split(",")[0] for row in rows if row["outcome"] == "suppressed"} >= {
        "only 3.0 hours since the last retraining",
        "2 automatic retrainings in 30 days",
    }
    assert all(row["reason"] == "inputs are off by 0.5" for row in rows)


def test_drift_is_only_suggested_where_that_is_wanted_and_joins_what_waits() -> None:
    manager = RetrainingManager(on_request="suggest", store=MonitorStore())
    manager.request(TriggerKind.DRIFT, "inputs are off")
    assert outcomes(manager) == ["suggested"]
    manager = RetrainingManager(store=MonitorStore())
    waiting = manager.manual_trigger("new pictures")
    assert manager.request(TriggerKind.DRIFT, "inputs are off") == waiting
    assert outcomes(manager) == ["pending", "joined"]
