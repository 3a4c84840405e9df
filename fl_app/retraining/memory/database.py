# SPDX-License-Identifier: Apache-2.0
"""One model's rows in the tables of the monitor's memory. Each call is one transaction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Engine, Row, Select, Table
from sqlalchemy.exc import IntegrityError


@dataclass(frozen=True)
class Database:
    """The database, as a model sees it.

    Attributes
    ----------
    engine : Engine
        The database.
    model : str
        The registered model.
    """

    engine: Engine
    model: str

    def rows(self, query: Select[Any]) -> Sequence[Row[Any]]:
        """Return the rows of a query."""
        with self.engine.connect() as connection:
            return connection.execute(query).all()

    def first(self, table: Table, *conditions: ColumnElement[bool]) -> Row[Any] | None:
        """Return the first of the model's rows that meet the conditions, if any."""
        query = table.select().where(table.c.model == self.model, *conditions)
        return next(iter(self.rows(query.limit(1))), None)

    def insert(self, table: Table, **values: Any) -> bool:
        """Insert a row of the model; False if an index of the table does not allow it."""
        try:
            with self.engine.begin() as connection:
                connection.execute(table.insert().values(model=self.model, **values))
        except IntegrityError:
            return False
        return True

    def update(self, table: Table, *conditions: ColumnElement[bool], **values: Any) -> bool:
        """Update the model's row that meets the conditions; return whether there was one."""
        change = table.update().where(table.c.model == self.model, *conditions).values(**values)
        with self.engine.begin() as connection:
            return bool(connection.execute(change).rowcount == 1)

    def delete(self, table: Table, *conditions: ColumnElement[bool]) -> None:
        """Delete the model's rows that meet the conditions."""
        with self.engine.begin() as connection:
            connection.execute(table.delete().where(table.c.model == self.model, *conditions))
