# SPDX-License-Identifier: Apache-2.0
"""When a periodic retraining is due next; pure, but for the calendar of cron expressions."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol


class Schedule(Protocol):
    """A calendar of due times."""

    @property
    def name(self) -> str:
        """One name for one calendar, the same in every process."""

    def after(self, now: datetime, due: datetime | None = None) -> datetime:
        """The first due time after ``now``; ``due`` is the one that has just come, if any."""

    def too_far(self, now: datetime, due: datetime) -> bool:
        """Whether ``due`` is farther away than it can be: the clock has gone back."""


@dataclass(frozen=True)
class Every:
    """Due once each ``days`` days; missed times fall together, the rhythm stays.

    Attributes
    ----------
    days : float
        More than 0.
    """

    days: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.days) and self.days > 0):
            raise ValueError(f"interval_days is {self.days}, expected a positive number of days.")

    @property
    def name(self) -> str:
        """One name for one interval."""
        return f"every {self.days:g} days"

    def after(self, now: datetime, due: datetime | None = None) -> datetime:
        """The first time after ``now`` in the rhythm of ``due``."""
        every = timedelta(days=self.days)
        if due is None or due > now:
            return now + every
        return due + every * (1 + (now - due) // every)

    def too_far(self, now: datetime, due: datetime) -> bool:
        """Whether ``due`` is more than one interval away."""
        return due - now > timedelta(days=self.days)


@dataclass(frozen=True)
class Cron:
    """Due at the times of a cron expression, in UTC.

    Attributes
    ----------
    expression : str
        Five fields, for instance ``0 2 * * 0`` for Sundays at 2.
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
        """One name for one expression."""
        return f"cron {self.expression}"

    def after(self, now: datetime, due: datetime | None = None) -> datetime:
        """The first time after ``now`` that the expression names."""
        from croniter import croniter

        return croniter(self.expression, now).get_next(datetime)  # type: ignore[no-any-return]

    def too_far(self, now: datetime, due: datetime) -> bool:
        """Whether ``due`` is later than the first time after ``now``."""
        return due > self.after(now)
