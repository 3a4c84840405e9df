# SPDX-License-Identifier: Apache-2.0
"""When a periodic retraining is due, and the requests for due times."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Protocol

from fl_app.retraining.requests import RetrainRequest, TriggerKind

if TYPE_CHECKING:
    from fl_app.retraining.memory.schedules import ScheduleTable


class Schedule(Protocol):
    """A rule for due times."""

    @property
    def name(self) -> str:
        """Name of the schedule, the same in every process."""

    def after(self, now: datetime, due: datetime | None = None) -> datetime:
        """Return the first due time after ``now``, given the previous due time, if any."""

    def too_far(self, now: datetime, due: datetime) -> bool:
        """Return whether ``due`` is later than possible, since the clock was set back."""


@dataclass(frozen=True)
class Every:
    """Due once each ``days`` days. Missed due times lead to one request and no shift of the rest.

    Attributes
    ----------
    days : float
        More than 0.

    Raises
    ------
    ValueError
        If the number of days is not finite or not positive.
    """

    days: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.days) and self.days > 0):
            raise ValueError(f"interval_days is {self.days}, expected a positive number of days.")

    @property
    def name(self) -> str:
        """Name of the schedule."""
        return f"every {self.days:g} days"

    def after(self, now: datetime, due: datetime | None = None) -> datetime:
        """Return the first time after ``now`` that is a multiple of the interval after ``due``."""
        every = timedelta(days=self.days)
        if due is None or due > now:
            return now + every
        return due + every * (1 + (now - due) // every)

    def too_far(self, now: datetime, due: datetime) -> bool:
        """Return whether ``due`` is more than one interval after ``now``."""
        return due - now > timedelta(days=self.days)


@dataclass(frozen=True)
class Cron:
    """Due at the times of a cron expression, in UTC.

    Attributes
    ----------
    expression : str
        Five fields, for instance ``0 2 * * 0`` for Sundays at 2.

    Raises
    ------
    ValueError
        If the expression is not valid.
    """

    expression: str

    def __post_init__(self) -> None:
        from croniter import croniter

        if len(self.expression.split()) != 5 or not croniter.is_valid(self.expression):
            raise ValueError(
                f"{self.expression!r} is not a cron expression, expected five fields such as "
                "'0 2 * * 0' for Sundays at 2 in the morning, UTC."
            )

    @property
    def name(self) -> str:
        """Name of the schedule."""
        return f"cron {self.expression}"

    def after(self, now: datetime, due: datetime | None = None) -> datetime:
        """Return the first time after ``now`` that matches the expression."""
        from croniter import croniter

        return croniter(self.expression, now).get_next(datetime)  # type: ignore[no-any-return]

    def too_far(self, now: datetime, due: datetime) -> bool:
        """Return whether ``due`` is later than the first time after ``now``."""
        return due > self.after(now)


def due_requests(
    schedules: Iterable[Schedule], table: ScheduleTable, now: datetime
) -> Iterator[RetrainRequest]:
    """Yield a request for each schedule that is due, and store its next due time afterwards.

    The id of a request is a function of its due time. So there is one request even if a crash comes
    before the next due time is stored, if the clock is set back, or if several servers check.
    """
    for schedule in schedules:
        due = table.due(schedule.name)
        if due is None or (due > now and not schedule.too_far(now, due)):
            continue
        if due <= now:
            reason = f"{schedule.name}, due {due:%Y-%m-%d %H:%M} UTC"
            request_id = table.request_id(schedule.name, due)
            yield RetrainRequest(TriggerKind.SCHEDULE, reason, id=request_id)
        table.claim(schedule.name, due, schedule.after(now, due))
