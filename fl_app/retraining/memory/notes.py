# SPDX-License-Identifier: Apache-2.0
"""Note: one record that all processes of a model share, as JSON in the monitor's memory."""

from __future__ import annotations

from typing import Generic, TypeVar

from pydantic import TypeAdapter, ValidationError
from sqlalchemy import ColumnElement

from fl_app.retraining.memory.database import Database
from fl_app.retraining.memory.errors import MonitorStoreError
from fl_app.retraining.memory.tables import NOTES

T = TypeVar("T")


class Note(Generic[T]):
    """A record and its revision, which each write increments.

    Parameters
    ----------
    database : Database
        The model's rows.
    name : str
        Name of the record.
    kind : type[T]
        A type that pydantic can write as JSON and read.
    """

    def __init__(self, database: Database, name: str, kind: type[T]) -> None:
        self._database = database
        self._name = name
        self._json = TypeAdapter(kind)

    def read(self) -> tuple[int, T | None]:
        """Return the revision and the record; 0 and None before the first write.

        Raises
        ------
        MonitorStoreError
            If what is stored is damaged, or was written by another version of this package.
        """
        row = self._database.first(NOTES, NOTES.c.name == self._name)
        if row is None:
            return 0, None
        try:
            return row.revision, self._json.validate_json(row.value)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"])) or "the text"
            raise MonitorStoreError(
                f"The note '{self._name}' of {self._database.model} in the monitor's memory cannot "
                f"be read: {place}: {first['msg']}. Restore the database from a backup, or delete "
                "this row of its table 'notes' to begin anew."
            ) from error

    def write(self, record: T) -> None:
        """Write the record, whatever the revision is."""
        if not self._update(record):
            self.swap(0, record)  # False where another process has just written the first one

    def swap(self, revision: int, record: T) -> bool:
        """Write the record if ``revision`` is still the stored one; return whether it was."""
        if revision:
            return self._update(record, NOTES.c.revision == revision)
        return self._database.insert(NOTES, name=self._name, revision=1, value=self._dump(record))

    def _update(self, record: T, *conditions: ColumnElement[bool]) -> bool:
        revision, value = NOTES.c.revision + 1, self._dump(record)
        named = NOTES.c.name == self._name
        return self._database.update(NOTES, named, *conditions, revision=revision, value=value)

    def _dump(self, record: T) -> str:
        return self._json.dump_json(record).decode()
