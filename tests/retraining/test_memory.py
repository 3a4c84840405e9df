# SPDX-License-Identifier: Apache-2.0
"""What the monitor stores: across restarts, crashes, clocks that jump and many threads."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from fl_app.retraining import (
    Cron,
    MonitorStore,
    RetrainingManager,
    RetrainRequest,
    train_and_retrain,
)

START = datetime(2026, 1, 4, tzinfo=UTC)  # a Sunday


class Clock:
    """A wall clock that goes where the test sends it."""

    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'monitor.db'}"


def outcomes(manager: RetrainingManager) -> list[str]:
    return [entry["outcome"] for entry in manager.trigger_history]


def test_requests_rule_and_cooldown_outlive_the_process(url: str) -> None:
    before = RetrainingManager(store=MonitorStore(url))
    before.start_from("7", 0.9)
    before.update_metrics(0.88, 1)
    request_id = before.manual_trigger("new pictures")
    after = RetrainingManager(store=MonitorStore(url))
    assert (after.best_accuracy, after.current_accuracy) == (0.9, 0.88)
    request = after.take()
    assert request is not None
    assert (request.id, request.reason) == (request_id, "new pictures")


def test_another_threshold_starts_the_rule_anew(url: str) -> None:
    RetrainingManager(0.05, store=MonitorStore(url)).start_from("7", 0.9)
    assert RetrainingManager(0.1, store=MonitorStore(url)).best_accuracy is None


def test_two_models_on_one_database_are_separate(url: str) -> None:
    one = RetrainingManager(store=MonitorStore(url, "one"))
    two = RetrainingManager(store=MonitorStore(url, "two"))
    one.manual_trigger("for one")
    one.start_from("1", 0.5)
    assert two.take() is None
    assert two.trigger_history == []
    two.manual_trigger("for two")
    assert outcomes(one) == outcomes(two) == ["pending"]


def test_what_a_crash_cut_short_is_served_again_and_once(url: str) -> None:
    crashed = RetrainingManager(store=MonitorStore(url))
    crashed.manual_trigger("first")
    assert crashed.take() is not None
    crashed.manual_trigger("second")
    crashed.store.close()  # as the end of a process does
    served: list[str] = []

    def session(number: int, request: RetrainRequest | None) -> None:
        served.append(request.reason if request is not None else "")

    after = RetrainingManager(store=MonitorStore(url))
    train_and_retrain(session, after, max_retrains=3)
    assert served == ["first", "second"]
    assert outcomes(after) == ["done", "done"]


def test_kill_9_loses_no_request_that_was_answered(url: str) -> None:
    code = (
        "import sys; from fl_app.retraining import *;"
        f"m = RetrainingManager(store=MonitorStore({url!r}));"
        "print(m.manual_trigger('before the end'), flush=True);"
        "import time; time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        answered = child.stdout.readline().strip()
        os.kill(child.pid, signal.SIGKILL)
    request = RetrainingManager(store=MonitorStore(url)).take()
    assert request is not None
    assert request.id == answered


def test_500_requests_at_once_leave_one_running_and_one_waiting(url: str) -> None:
    manager = RetrainingManager(store=MonitorStore(url))
    manager.manual_trigger("the one that runs")
    running = manager.take()
    assert running is not None
    with ThreadPoolExecutor(16) as pool:
        ids = set(pool.map(lambda n: manager.manual_trigger(f"number {n}"), range(500)))
    assert len(ids) == 1
    counts = {kind: outcomes(manager).count(kind) for kind in ("running", "pending", "joined")}
    assert counts == {"running": 1, "pending": 1, "joined": 499}
    assert manager.take() is None
    with manager.running(running):
        pass
    following = manager.take()
    assert following is not None
    assert {following.id} == ids


def test_several_processes_on_one_store_run_a_due_time_once(url: str) -> None:
    clock = Clock()
    managers = [RetrainingManager(store=MonitorStore(url), now=clock) for _ in range(4)]
    for manager in managers:
        manager.schedule_periodic_retrain(interval_days=7)
    clock.now += timedelta(days=7, hours=1)
    threads = [threading.Thread(target=manager.check_schedules) for manager in managers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes(managers[0]) == ["pending"]


def test_due_while_down_runs_once_at_start_and_keeps_the_rhythm(url: str) -> None:
    clock = Clock()
    RetrainingManager(store=MonitorStore(url), now=clock).schedule_periodic_retrain(7)
    clock.now += timedelta(days=24)
    manager = RetrainingManager(store=MonitorStore(url), now=clock)
    manager.schedule_periodic_retrain(7)
    manager.check_schedules()
    manager.check_schedules()
    assert outcomes(manager) == ["pending"]
    due = MonitorStore(url).note("every 7 days", datetime).read()[1]
    assert due == START + timedelta(days=28)


@pytest.mark.parametrize("cron", ["", "every sunday", "0 2 * *", "61 2 * * 0", "0 0 2 * * 0"])
def test_an_invalid_cron_expression_is_refused(cron: str) -> None:
    with pytest.raises(ValueError, match="five fields"):
        RetrainingManager().schedule_periodic_retrain(cron=cron)


@pytest.mark.parametrize("days", [0, -7, float("nan"), float("inf")])
def test_an_invalid_interval_is_refused(days: float) -> None:
    with pytest.raises(ValueError, match="positive number of days"):
        RetrainingManager().schedule_periodic_retrain(days)


def test_cron_is_in_utc() -> None:
    assert Cron("0 2 * * 0").after(START) == START + timedelta(hours=2)


def test_the_budget_and_the_hours_hold_for_rules_and_not_for_people(url: str) -> None:
    clock = Clock()
    manager = RetrainingManager(
        0.05,
        min_rounds_between_retrain=0,
        min_hours_between_retrain=24,
        budget=2,
        policy="best_minus_threshold",
        store=MonitorStore(url),
        now=clock,
    )

    def fall() -> bool:
        manager.update_metrics(0.9, 1)  # all right again
        manager.update_metrics(0.5, 2)
        request = manager.take()
        if request is not None:
            with manager.running(request):
                pass
        return request is not None

    assert fall()
    clock.now += timedelta(hours=23)
    assert not fall()
    assert "hours since" in manager.trigger_history[-1]["why"]
    clock.now += timedelta(hours=2)
    assert fall()
    clock.now += timedelta(days=2)
    assert not fall()
    assert "the budget" in manager.trigger_history[-1]["why"]
    manager.manual_trigger("a person may")
    assert manager.take() is not None


def test_a_score_that_stays_low_is_one_request() -> None:
    manager = RetrainingManager(
        0.05, 300, 0, min_hours_between_retrain=0, policy="best_minus_threshold"
    )
    for score in (0.9, 0.5, 0.5, 0.5):
        manager.update_metrics(score, 1)
        request = manager.take()
        if request is not None:
            with manager.running(request):
                pass
    assert outcomes(manager) == ["done", "suppressed", "suppressed"]


def test_suggest_leaves_it_to_a_person() -> None:
    manager = RetrainingManager(policy="best_minus_threshold", on_request="suggest")
    for score in (0.9, 0.5):
        manager.update_metrics(score, 1)
    assert outcomes(manager) == ["suggested"]
    assert manager.take() is None


def test_the_callback_gets_requests_and_what_it_raises_is_kept_from_the_monitor() -> None:
    manager = RetrainingManager(check_interval=0.05)
    seen: list[str] = []

    def callback(trigger: RetrainRequest) -> None:
        seen.append(trigger.reason)
        if len(seen) == 1:
            raise RuntimeError("no GPU")

    manager.set_retrain_callback(callback)
    manager.start_monitoring()
    try:
        assert manager.monitoring
        for reason in ("one", "two"):
            manager.manual_trigger(reason)
            wait_until(lambda: manager.trigger_history[-1]["outcome"] in ("done", "failed"))
    finally:
        manager.stop_monitoring()
    assert not manager.monitoring
    assert seen == ["one", "two"]
    assert outcomes(manager) == ["failed", "done"]


def test_continuous_serves_a_request_within_a_second() -> None:
    manager = RetrainingManager()
    began: list[tuple[float, int]] = []

    class EnoughError(Exception):
        pass

    def session(number: int, request: RetrainRequest | None) -> None:
        began.append((time.monotonic(), number))
        if number == 3:
            raise EnoughError

    def loop() -> None:
        with pytest.raises(EnoughError):
            train_and_retrain(session, manager, max_retrains=0, continuous=True)

    thread = threading.Thread(target=loop)
    thread.start()
    for number in (2, 3):
        wait_until(lambda number=number: len(began) == number - 1)  # type: ignore[misc]
        requested_at = time.monotonic()
        manager.manual_trigger("go on")
        wait_until(lambda number=number: len(began) == number)  # type: ignore[misc]
        assert began[-1][0] - requested_at < 1
    thread.join(5)
    assert outcomes(manager) == ["done", "failed"]


def wait_until(true: object, seconds: float = 10) -> None:
    """Wait until the condition holds."""
    deadline = time.monotonic() + seconds
    while not true():  # type: ignore[operator]
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)
