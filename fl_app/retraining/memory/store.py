# SPDX-License-Identifier: Apache-2.0
"""MonitorStore: the monitor's memory in a SQL database, SQLite by default."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from fl_app.retraining.memory.errors import MonitorStoreError
from fl_registry.home import DEFAULT_MODEL_NAME
from fl_registry.redaction import redact

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from fl_app.retraining.memory.notes import Note

IN_MEMORY = "sqlite://"

T = TypeVar("T")


def default_url(home: Path) -> str:
    """Return the URL of the SQLite file in the app's home."""
    return f"sqlite:///{home / 'monitor.db'}"


class MonitorStore:
    """Requests, schedules, idempotency keys and notes that outlive the process.

    Each operation is one transaction, so that a crash leaves it done or not done. Several servers
    may share a PostgreSQL database.

    Parameters
    ----------
    url : str
        SQLAlchemy URL, for instance ``sqlite:////home/me/.fl-app/monitor.db``; by default a
        database in memory, which lasts as long as this object.
    model : str
        The registered model; each model has its own requests, schedules, keys and notes.

    Attributes
    ----------
    requests : RequestTable
        The requests for retraining.
    schedules : ScheduleTable
        When each schedule is due next.
    keys : KeyTable
        The API's answers by idempotency key.

    Raises
    ------
    MonitorStoreError
        If the database cannot be opened.
    """

    def __init__(self, url: str = IN_MEMORY, model: str = DEFAULT_MODEL_NAME) -> None:
        # Imported here: SQLAlchemy takes long to load, and nodes and hooks do not need it.
        from sqlalchemy.pool import QueuePool

        from fl_app.retraining.memory.database import Database
        from fl_app.retraining.memory.keys import KeyTable
        from fl_app.retraining.memory.requests import RequestTable
        from fl_app.retraining.memory.schedules import ScheduleTable

        options: dict[str, Any] = {"pool_pre_ping": True}  # a database may restart meanwhile
        if url == IN_MEMORY:
            # A single connection, which threads use in turn. If they shared it, the end of one
            # thread's transaction would roll back the other's.
            options = {"poolclass": QueuePool, "pool_size": 1, "max_overflow": 0}
            options["connect_args"] = {"check_same_thread": False}
        self._database = Database(_open(url, options), model)
        self.requests = RequestTable(self._database)
        self.schedules = ScheduleTable(self._database)
        self.keys = KeyTable(self._database)

    @property
    def model(self) -> str:
        """The registered model."""
        return self._database.model

    def note(self, name: str, kind: type[T]) -> Note[T]:
        """Return the record of this name, which all processes share.

        Parameters
        ----------
        name : str
            At most 80 characters.
        kind : type[T]
            A type that pydantic can write as JSON and read, such as a frozen dataclass.
        """
        from fl_app.retraining.memory.notes import Note

        return Note(self._database, name, kind)

    def close(self) -> None:
        """Stop serving the running request, if this object does, and close all connections."""
        self.requests.abandon()
        self._database.engine.dispose()


def _open(url: str, options: dict[str, Any]) -> Engine:
    from sqlalchemy import create_engine
    from sqlalchemy.exc import SQLAlchemyError

    from fl_app.retraining.memory.tables import create_tables

    try:
        engine = create_engine(url, **options)
        create_tables(engine)
        return engine
    except (SQLAlchemyError, OSError, ValueError, ModuleNotFoundError) as error:
        problem = type(error).__name__
        if isinstance(error, ModuleNotFoundError):
            problem = f"the package {error.name} is not installed"
    where = f" at {redact(url, url)}" if "://" in url else ""  # other texts may be a password
    # Raised outside of the handler, whose exception may have the password in its text.
    raise MonitorStoreError(
        f"The monitor's memory{where} cannot be opened ({problem}); check its SQLAlchemy URL "
        "(monitor-database-url, --monitor), and that the database runs."
    )
