# SPDX-License-Identifier: Apache-2.0
"""The tables of the monitor's memory. Importing this loads SQLAlchemy, which takes a while."""

from __future__ import annotations

from sqlalchemy import (
    Column,
    Engine,
    Float,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    func,
    select,
)
from sqlalchemy.schema import CreateIndex, CreateTable

from fl_app.retraining.requests import Outcome

_CREATING = 0x666C2D617070
"""Key of the advisory lock under which tables are created; "fl-app" in ASCII."""
_METADATA = MetaData()

REQUESTS = Table(
    "requests",
    _METADATA,
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
_SINGLE = REQUESTS.c.outcome.in_([str(Outcome.PENDING), str(Outcome.RUNNING)])
Index(
    "one_pending_one_running",
    REQUESTS.c.model,
    REQUESTS.c.outcome,
    unique=True,
    sqlite_where=_SINGLE,
    postgresql_where=_SINGLE,
)
SCHEDULES = Table(
    "schedules",
    _METADATA,
    Column("model", String(255), primary_key=True),
    Column("name", String(80), primary_key=True),
    Column("due", Float(53), nullable=False),
)
KEYS = Table(
    "idempotency_keys",
    _METADATA,
    Column("model", String(255), primary_key=True),
    Column("key", String(255), primary_key=True),
    Column("id", String(32), nullable=False),
    Column("digest", String(64), nullable=False),
    Column("owner", String(32), nullable=False),
    Column("created", Float(53), nullable=False, index=True),
    Column("status", Integer),
    Column("body", Text, nullable=False),
)
NOTES = Table(
    "notes",
    _METADATA,
    Column("model", String(255), primary_key=True),
    Column("name", String(80), primary_key=True),
    Column("revision", Integer, nullable=False),
    Column("value", Text, nullable=False),
)


def create_tables(engine: Engine) -> None:
    """Create the tables that do not exist; several processes may do so at once."""
    with engine.begin() as connection:
        # PostgreSQL's IF NOT EXISTS still fails when two processes create a table at once.
        if engine.dialect.name == "postgresql":
            connection.execute(select(func.pg_advisory_xact_lock(_CREATING)))
        for table in _METADATA.sorted_tables:
            connection.execute(CreateTable(table, if_not_exists=True))
            for index in table.indexes:
                connection.execute(CreateIndex(index, if_not_exists=True))
