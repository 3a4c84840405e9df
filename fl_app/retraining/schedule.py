# SPDX-License-Identifier: Apache-2.0
"""When a periodic retraining is due."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import datetime, timedelta

from fl_registry.errors import require


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
        require("A cron schedule", "croniter")
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
