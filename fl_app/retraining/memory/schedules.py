# SPDX-License-Identifier: Apache-2.0
"""When each schedule is due next, in the monitor's memory."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime

from fl_app.retraining.memory.database import Database
from fl_app.retraining.memory.tables import SCHEDULES


class ScheduleTable:
    """The due times of a model's schedules by their names.

    Parameters
    ----------
    database : Database
        The model's rows.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, name: str, due: datetime) -> None:
        """Set when ``name`` is due next, unless it has a due time already."""
        # False where an earlier process has added it; its due time may have passed meanwhile.
        self._database.insert(SCHEDULES, name=name, due=due.timestamp())

    def due(self, name: str) -> datetime | None:
        """Return when ``name`` is due next; None if it was never added."""
        row = self._database.first(SCHEDULES, SCHEDULES.c.name == name)
        return None if row is None else datetime.fromtimestamp(row.due, UTC)

    def claim(self, name: str, due: datetime, following: datetime) -> bool:
        """Change the due time of ``name`` from ``due`` to ``following``.

        Returns
        -------
        bool
            True for one caller for each due time.
        """
        unchanged = (SCHEDULES.c.name == name, SCHEDULES.c.due == due.timestamp())
        return self._database.update(SCHEDULES, *unchanged, due=following.timestamp())

    def request_id(self, name: str, due: datetime) -> str:
        """Return the id of the request for this due time, the same in every process."""
        text = f"fl-app {self._database.model} {name} {due.timestamp()!r}"
        return uuid.uuid5(uuid.NAMESPACE_OID, text).hex
