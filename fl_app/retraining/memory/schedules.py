# SPDX-License-Identifier: Apache-2.0
"""When each schedule is due next, in the monitor's memory."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime

from sqlalchemy import ColumnElement, Engine, and_
from sqlalchemy.exc import IntegrityError

from fl_app.retraining.memory.tables import SCHEDULES


class ScheduleTable:
    """The due times of a model's schedules by their names.

    Parameters
    ----------
    engine : Engine
        The database.
    model : str
        The registered model.
    """

    def __init__(self, engine: Engine, model: str) -> None:
        self._engine = engine
        self._model = model

    def add(self, name: str, due: datetime) -> None:
        """Set when ``name`` is due next, unless it has a due time already."""
        row = {"model": self._model, "name": name, "due": due.timestamp()}
        try:
            with self._engine.begin() as connection:
                connection.execute(SCHEDULES.insert().values(row))
        except IntegrityError:
            return

    def due(self, name: str) -> datetime | None:
        """Return when ``name`` is due next; None if it was never added."""
        with self._engine.connect() as connection:
            row = connection.execute(SCHEDULES.select().where(self._named(name))).first()
        return None if row is None else datetime.fromtimestamp(row.due, UTC)

    def claim(self, name: str, due: datetime, following: datetime) -> bool:
        """Change the due time of ``name`` from ``due`` to ``following``.

        Returns
        -------
        bool
            True for one caller for each due time.
        """
        change = (
            SCHEDULES.update()
            .where(self._named(name), SCHEDULES.c.due == due.timestamp())
            .values(due=following.timestamp())
        )
        with self._engine.begin() as connection:
            return bool(connection.execute(change).rowcount == 1)

    def request_id(self, name: str, due: datetime) -> str:
        """Return the id of the request for this due time, the same in every process."""
        text = f"fl-app {self._model} {name} {due.timestamp()!r}"
        return uuid.uuid5(uuid.NAMESPACE_OID, text).hex

    def _named(self, name: str) -> ColumnElement[bool]:
        return and_(SCHEDULES.c.model == self._model, SCHEDULES.c.name == name)
