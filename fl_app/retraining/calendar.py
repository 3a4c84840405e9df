# SPDX-License-Identifier: Apache-2.0
"""The schedules of a monitor and what is due by them; due times are kept in its store."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

from fl_app.retraining.memory.store import MonitorStore
from fl_app.retraining.requests import RetrainRequest, TriggerKind
from fl_app.retraining.schedule import Schedule


class Calendar:
    """Schedules by name, and the requests that fall due.

    Parameters
    ----------
    store : MonitorStore
        Where due times are kept.
    """

    def __init__(self, store: MonitorStore) -> None:
        self._store = store
        self._schedules: dict[str, Schedule] = {}

    def add(self, schedule: Schedule, now: datetime) -> None:
        """Add a schedule; a due time that is known already stays."""
        self._store.set_schedule(schedule.name, schedule.after(now))
        self._schedules[schedule.name] = schedule

    def due(self, now: datetime) -> Iterator[RetrainRequest]:
        """Yield a request for each schedule that is due; then set when it is due next.

        The request has the due time's own id, so that a crash before the next due time is set, or a
        clock that goes back, does not make another.
        """
        for schedule in self._schedules.values():
            due = self._store.due(schedule.name)
            if due is None or (due > now and not schedule.too_far(now, due)):
                continue
            if due <= now:
                reason = f"{schedule.name}, due {due:%Y-%m-%d %H:%M} UTC"
                its_own = self._store.id_of(schedule.name, due)
                yield RetrainRequest(TriggerKind.SCHEDULE, reason, id=its_own)
            self._store.claim_due(schedule.name, due, schedule.after(now, due))
