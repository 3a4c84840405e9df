# SPDX-License-Identifier: Apache-2.0
"""Hooks are called once for each stored request, with its outcome."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from fl_app.events import Event, RetrainingRequested
from fl_app.hooks.queue import Hooks
from fl_app.retraining import MonitorStore, RetrainingManager, TriggerKind


@pytest.fixture
def events() -> list[Event]:
    return []


@pytest.fixture
def hooks(events: list[Event]) -> Hooks:
    return Hooks([events.append])


def monitor(tmp_path: Path, hooks: Hooks, **settings: object) -> RetrainingManager:
    store = MonitorStore(f"sqlite:///{tmp_path / 'monitor.db'}")
    return RetrainingManager(store=store, hooks=hooks, **settings)  # type: ignore[arg-type]


def outcomes(events: list[Event]) -> list[tuple[str, str, str]]:
    rows = [event for event in events if isinstance(event, RetrainingRequested)]
    return [(row.kind, row.outcome, row.reason) for row in rows]


def test_every_outcome_is_an_event_with_its_reason(
    tmp_path: Path, hooks: Hooks, events: list[Event]
) -> None:
    manager = monitor(tmp_path, hooks, on_request="suggest")
    first = manager.manual_trigger("new pictures")
    manager.manual_trigger("more of them")
    manager.request(TriggerKind.DRIFT, "brightness lower")
    hooks.flush()
    assert outcomes(events) == [
        ("manual", "pending", "new pictures"),
        ("manual", "joined", "more of them"),
        ("drift", "suggested", "brightness lower"),
    ]
    joined = events[1]
    assert isinstance(joined, RetrainingRequested)
    assert first in joined.why
    assert [e.id for e in events] == [row["id"] for row in manager.trigger_history]
    assert [e.time.isoformat() for e in events] == [r["created"] for r in manager.trigger_history]


def test_a_second_request_with_the_same_id_is_no_event(
    tmp_path: Path, hooks: Hooks, events: list[Event]
) -> None:
    manager, same = monitor(tmp_path, hooks), "ab" * 16
    for _ in range(3):
        manager.manual_trigger("new pictures", request_id=same)
    hooks.flush()
    assert [event.id for event in events] == [same]


def test_a_due_time_is_one_event(tmp_path: Path, hooks: Hooks, events: list[Event]) -> None:
    now = [datetime(2026, 11, 1, tzinfo=UTC)]
    managers = [monitor(tmp_path, hooks, now=lambda: now[0]) for _ in range(2)]
    for manager in managers:
        manager.schedule_periodic_retrain(7)
    now[0] = datetime(2026, 11, 9, tzinfo=UTC)
    for manager in managers * 2:
        manager.check_schedules()
    hooks.flush()
    assert [kind for kind, _, _ in outcomes(events)] == ["schedule"]
