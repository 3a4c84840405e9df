# SPDX-License-Identifier: Apache-2.0
"""The tables of the monitor's memory; `store.py` uses them."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

from fl_app.retraining.requests import Outcome
from fl_registry.redaction import redact

if TYPE_CHECKING:
    from sqlalchemy import Engine, Table

MEMORY = "the monitor's memory"
_CREATING = 0x666C2D617070
"""Key of the advisory lock under which tables are made; "fl-app" in ASCII."""


@lru_cache(maxsize=1)
def tables() -> tuple[Table, Table, Table, Table, Table]:
    """Requests, schedules, state, answers, notes: the same for every store of this process."""
    from sqlalchemy import Column, Float, Index, Integer, MetaData, String, Table, Text

    metadata = MetaData()
    requests = Table(
        "requests",
        metadata,
        Column("number", Integer, primary_key=True),
        Column("model", String(255), nullable=False),
        Column("id", String(32), unique=True, nullable=False),
        Column("kind", String(20), nullable=False),
        Column("reason", Text, nullable=False),
        Column("created", String(40), nullable=False),
        Column("outcome", String(20), nullable=False),
        Column("why", Text, nullable=False),
        Column("started", String(40)),
        Column("ended", String(40)),
    )
    alone = requests.c.outcome.in_([str(Outcome.PENDING), str(Outcome.RUNNING)])
    Index(
        "one_pending_one_running",
        requests.c.model,
        requests.c.outcome,
        unique=True,
        sqlite_where=alone,
        postgresql_where=alone,
    )
    schedules = Table(
        "schedules",
        metadata,
        Column("model", String(255), primary_key=True),
        Column("name", String(80), primary_key=True),
        Column("due", Float(53), nullable=False),
    )
    state = Table(
        "state",
        metadata,
        Column("model", String(255), primary_key=True),
        Column("value", Text, nullable=False),
    )
    answers = Table(
        "answers",
        metadata,
        Column("model", String(255), primary_key=True),
        Column("key", String(255), primary_key=True),
        Column("id", String(32), nullable=False),
        Column("digest", String(64), nullable=False),
        Column("owner", String(32), nullable=False),
        Column("created", Float(53), nullable=False, index=True),
        Column("status", Integer),
        Column("body", Text, nullable=False),
    )
    notes = Table(
        "notes",
        metadata,
        Column("model", String(255), primary_key=True),
        Column("name", String(80), primary_key=True),
        Column("revision", Integer, nullable=False),
        Column("value", Text, nullable=False),
    )
    return requests, schedules, state, answers, notes


class MonitorStoreError(ValueError):
    """The monitor's memory cannot be opened; the text says why, without its password."""


def open_database(url: str, **options: Any) -> Engine:
    """Connect to the memory at `url`, and make its tables if they are not there.

    Raises
    ------
    MonitorStoreError
        It cannot be opened.
    """
    from sqlalchemy import create_engine
    from sqlalchemy.exc import SQLAlchemyError

    try:
        engine = create_engine(url, **options)
        create_tables(engine)
        return engine
    except (SQLAlchemyError, OSError, ValueError, ModuleNotFoundError) as error:
        said = type(error).__name__
        if isinstance(error, ModuleNotFoundError):
            said = f"the package {error.name} is not installed"
    where = f" at {redact(url, url)}" if "://" in url else ""  # else who knows what it is
    raise MonitorStoreError(  # out here: the foreign text may hold the password
        f"The monitor's memory{where} cannot be opened ({said}); check its SQLAlchemy URL "
        "(monitor-database-url, --monitor), and that the database runs."
    )


def memory_errors() -> tuple[type[Exception], ...]:
    """What is raised where the database, or the disk below it, does not do what it is asked."""
    from sqlalchemy.exc import SQLAlchemyError

    return SQLAlchemyError, OSError


def create_tables(engine: Engine) -> None:
    """Make what is missing; several processes may do so at once."""
    from sqlalchemy import func, select
    from sqlalchemy.schema import CreateIndex, CreateTable

    with engine.begin() as connection:
        if engine.dialect.name == "postgresql":  # there `IF NOT EXISTS` looks before it leaps
            connection.execute(select(func.pg_advisory_xact_lock(_CREATING)))
        for table in tables():
            connection.execute(CreateTable(table, if_not_exists=True))
            for index in table.indexes:
                connection.execute(CreateIndex(index, if_not_exists=True))
