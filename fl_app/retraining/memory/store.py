# SPDX-License-Identifier: Apache-2.0
"""MonitorStore: the monitor's memory in a SQL database, SQLite by default."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from fl_app.retraining.memory.errors import IN_MEMORY
from fl_registry.home import DEFAULT_MODEL_NAME, sqlite_address

if TYPE_CHECKING:
    from fl_app.retraining.memory.database import Note

T = TypeVar("T")


def default_url(home: Path) -> str:
    """Return the URL of the SQLite file in the app's home."""
    return sqlite_address(home / "monitor.db")


class MonitorStore:
    """Requests, idempotency keys and notes that outlive the process.

    Each operation is one transaction, so that a crash leaves it done or not done. Several servers
    may share a PostgreSQL database.

    Parameters
    ----------
    url : str
        SQLAlchemy URL, for instance ``sqlite:////home/me/.fl-app/monitor.db``; by default a
        database in memory, which lasts as long as this object.
    model : str
        The registered model; each model has its own requests, keys and notes.

    Attributes
    ----------
    is_shared : bool
        Whether other processes can see it: it is not in memory.
    requests : RequestTable
        The requests for retraining.
    keys : KeyTable
        The API's answers by idempotency key.

    Raises
    ------
    MonitorStoreError
        If the database cannot be opened.
    """

    def __init__(self, url: str = IN_MEMORY, model: str = DEFAULT_MODEL_NAME) -> None:
        # Imported here: SQLAlchemy takes long to load, and nodes and hooks do not need it.
        from fl_app.retraining.memory.database import KeyTable, open_database
        from fl_app.retraining.memory.requests import RequestTable

        self.model, self.is_shared = model, url != IN_MEMORY
        self._database = open_database(url, model)
        self.requests = RequestTable(self._database)
        self.keys = KeyTable(self._database)

    def note(self, name: str, kind: type[T]) -> Note[T]:
        """Return the record of this name, which all processes share.

        Parameters
        ----------
        name : str
            At most 80 characters.
        kind : type[T]
            A type that pydantic can write as JSON and read, such as a frozen dataclass.
        """
        from fl_app.retraining.memory.database import Note

        return Note(self._database, name, kind)

    def close(self) -> None:
        """Stop serving the running request, if this object does, and close all connections."""
        self.requests.abandon()
        self._database.engine.dispose()
