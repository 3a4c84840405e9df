# SPDX-License-Identifier: Apache-2.0
"""A wall clock that jumps: one due time makes one request, and what was missed is made up once."""

from __future__ import annotations

import random
from collections import Counter
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_app.retraining import Cron, Every, MonitorStore, RetrainingManager
from fl_app.retraining.memory.database import Note

NIGHTLY = settings.get_current_profile_name() == "nightly"
pytestmark = pytest.mark.chaos
START = datetime(2026, 1, 4, tzinfo=UTC)  # a Sunday
SCHEDULES = [Every(7), Every(0.5), Cron("0 2 * * 0")]


class Jumping:
    """Two monitors on one store, as two servers are, under a clock that goes where it is sent."""

    def __init__(self, schedule: Every | Cron) -> None:
        self.now = START
        self.schedule = schedule
        self.store = MonitorStore()
        self.known = 0
        self.monitors = [self.monitor(), self.monitor()]

    def monitor(self) -> RetrainingManager:
        monitor = RetrainingManager(
            min_rounds_between_retrain=0,
            min_hours_between_retrain=0,
            budget=10**9,
            store=self.store,
            now=lambda: self.now,
        )
        if isinstance(self.schedule, Every):
            monitor.schedule_periodic_retrain(self.schedule.days)
        else:
            monitor.schedule_periodic_retrain(cron=self.schedule.expression)
        return monitor

    def jump(self, by: timedelta) -> None:
        """Set the clock, have all look twice, serve what they ask for, and check."""
        self.now += by
        for monitor in self.monitors * 2:
            monitor.check_schedules()
        count = sum(self.store.requests.counts().values())
        assert count - self.known <= 1
        self.known = count
        due = self.due()
        assert due is not None
        assert self.now < due <= self.schedule.after(self.now)
        request = self.monitors[0].take()
        if request is not None:
            with self.monitors[0].running(request):
                pass

    def due(self) -> datetime | None:
        """Return the due time that is stored."""
        return self.store.note(self.schedule.name, datetime).read()[1]

    def no_due_time_ran_twice(self) -> bool:
        """Whether each is there once; an interval's are all new ones where the clock went back."""
        rows = self.store.requests.history()
        once = set(Counter(row["reason"] for row in rows).values()) <= {1}
        return once or isinstance(self.schedule, Every)


@given(st.lists(st.floats(-400, 400), max_size=30), st.sampled_from(SCHEDULES))
def test_a_due_time_never_runs_twice_nor_is_more_than_one_made_up(
    days: list[float], schedule: Every | Cron
) -> None:
    jumping = Jumping(schedule)
    for by in days:
        jumping.jump(timedelta(days=by))
    assert jumping.no_due_time_ran_twice()


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: schedule.name)
def test_jumps_of_all_sizes(schedule: Every | Cron) -> None:
    """Small ones, as clocks drift and are set right, and large ones; restarts in between."""
    jumping, chance = Jumping(schedule), random.Random(5)
    for number in range(10_000 if NIGHTLY else 300):
        days = chance.choice([0.01, 1, 8, 400])
        jumping.jump(timedelta(days=chance.uniform(-days, days)))
        if number % 100 == 99:
            jumping.monitors[1] = jumping.monitor()
    assert jumping.known > (3 if isinstance(schedule, Cron) else 30)
    assert jumping.no_due_time_ran_twice()


def test_a_crash_between_asking_and_the_next_due_time_asks_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    jumping = Jumping(Every(7))

    def crash(*_: object) -> bool:
        raise KeyboardInterrupt

    jumping.now += timedelta(days=8)
    with monkeypatch.context() as patch:
        patch.setattr(Note, "swap", crash)
        with pytest.raises(KeyboardInterrupt):
            jumping.monitors[0].check_schedules()
    assert jumping.due() == START + timedelta(days=7)
    jumping.monitor().check_schedules()
    (row,) = jumping.store.requests.history()
    assert row["outcome"] == "pending"
    assert jumping.due() == START + timedelta(days=14)
