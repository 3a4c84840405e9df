# SPDX-License-Identifier: Apache-2.0
"""The database of the monitor's memory: its tables, a model's rows, notes and idempotency keys.

The requests are in `requests.py`. Importing this loads SQLAlchemy, which takes a while.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Generic, TypeVar

import sqlalchemy as sa
from pydantic import TypeAdapter, ValidationError
from sqlalchemy.exc import IntegrityError, SQLAlchemyError
from sqlalchemy.pool import QueuePool

from fl_app.retraining.memory.errors import IN_MEMORY, MonitorStoreError
from fl_app.retraining.memory.schema import HEAD, NewerSchemaError, upgrade
from fl_app.retraining.requests import Outcome
from fl_registry.errors import remedy
from fl_registry.files.sqlite import advice, create_private, is_damage
from fl_registry.redaction import one_line, redact

T = TypeVar("T")

LIFETIME = timedelta(hours=24)
"""How long the answer to an idempotency key is stored."""
METADATA = sa.MetaData()
"""The tables, in the form `schema.HEAD`."""

REQUESTS = sa.Table(
    "requests",
    METADATA,
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("model", sa.String(255), nullable=False),
    sa.Column("id", sa.String(32), unique=True, nullable=False),
    sa.Column("kind", sa.String(20), nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("created", sa.String(40), nullable=False),
    sa.Column("outcome", sa.String(20), nullable=False),
    sa.Column("why", sa.Text, nullable=False),
    sa.Column("started", sa.String(40)),
    sa.Column("ended", sa.String(40)),
)
_SINGLE = REQUESTS.c.outcome.in_([str(Outcome.PENDING), str(Outcome.RUNNING)])
sa.Index(
    "one_pending_one_running",
    REQUESTS.c.model,
    REQUESTS.c.outcome,
    unique=True,
    sqlite_where=_SINGLE,
    postgresql_where=_SINGLE,
)
KEYS = sa.Table(
    "idempotency_keys",
    METADATA,
    sa.Column("model", sa.String(255), primary_key=True),
    sa.Column("key", sa.String(255), primary_key=True),
    sa.Column("id", sa.String(32), nullable=False),
    sa.Column("digest", sa.String(64), nullable=False),
    sa.Column("owner", sa.String(32), nullable=False),
    sa.Column("created", sa.Float(53), nullable=False, index=True),
    sa.Column("status", sa.Integer),
    sa.Column("body", sa.Text, nullable=False),
)
NOTES = sa.Table(
    "notes",
    METADATA,
    sa.Column("model", sa.String(255), primary_key=True),
    sa.Column("name", sa.String(80), primary_key=True),
    sa.Column("revision", sa.Integer, nullable=False),
    sa.Column("value", sa.Text, nullable=False),
)


@dataclass(frozen=True)
class Database:
    """The database, as a model sees it. Each call is one transaction.

    Attributes
    ----------
    engine : Engine
        SQLAlchemy's.
    model : str
        The registered model.
    """

    engine: sa.Engine
    model: str

    def rows(self, query: sa.Select[Any]) -> Sequence[Any]:
        """Return those rows of a query of one table that are the model's."""
        with self.engine.connect() as connection:
            return connection.execute(query.where(sa.column("model") == self.model)).all()

    def first(self, table: sa.Table, *conditions: sa.ColumnElement[bool]) -> sa.Row[Any] | None:
        """Return the first of the model's rows that meet the conditions, if any."""
        return next(iter(self.rows(table.select().where(*conditions).limit(1))), None)

    def insert(self, table: sa.Table, **values: Any) -> bool:
        """Insert a row of the model; False if an index of the table does not allow it."""
        try:
            with self.engine.begin() as connection:
                connection.execute(table.insert().values(model=self.model, **values))
        except IntegrityError:
            return False
        return True

    def update(self, table: sa.Table, *conditions: sa.ColumnElement[bool], **values: Any) -> bool:
        """Update the model's row that meets the conditions; return whether there was one."""
        change = table.update().where(table.c.model == self.model, *conditions).values(**values)
        with self.engine.begin() as connection:
            return bool(connection.execute(change).rowcount == 1)

    def delete(self, table: sa.Table, *conditions: sa.ColumnElement[bool]) -> None:
        """Delete the model's rows that meet the conditions."""
        with self.engine.begin() as connection:
            connection.execute(table.delete().where(table.c.model == self.model, *conditions))


def sqlite_file(engine: sa.Engine) -> Path | None:
    """Return the file of a SQLite database; None for any other, or one in memory."""
    name = engine.url.database
    named = engine.dialect.name == "sqlite" and name not in (None, "", ":memory:")
    return Path(str(name)) if named and not str(name).startswith("file:") else None


def open_database(url: str, model: str) -> Database:
    """Open the database, and bring its tables into the present form.

    Raises
    ------
    MonitorStoreError
        If it cannot be opened, or a newer version of this package wrote it.
    """
    options: dict[str, Any] = {"pool_pre_ping": True}  # a database may restart meanwhile
    if url == IN_MEMORY:
        # A single connection, which threads use in turn. If they shared it, the end of one
        # thread's transaction would roll back the other's.
        options = {"poolclass": QueuePool, "pool_size": 1, "max_overflow": 0}
        options["connect_args"] = {"check_same_thread": False}
    where = f" at {redact(url, url)}" if "://" in url else ""  # other texts may be a password
    try:
        engine = sa.create_engine(url, **options)
        file = sqlite_file(engine)
        if file is not None and file.parent.is_dir():
            create_private(file)
        upgrade(engine)
        return Database(engine, model)
    except NewerSchemaError as error:
        raise MonitorStoreError(
            f"The monitor's memory{where} has the form {one_line(error, 40)} of a newer fl-app, "
            f"this one knows forms up to {HEAD}; update fl-app, or restore the database from a "
            "backup of that time."
        ) from None
    except (SQLAlchemyError, OSError, ValueError, ModuleNotFoundError) as error:
        problem = type(error).__name__
        damage = one_line(getattr(error, "orig", None) or "") if is_damage(error) else ""
        if isinstance(error, ModuleNotFoundError):
            problem = f"{error.name} is not installed; {remedy(error.name or '')}"
    # Raised outside of the handler, whose exception may have the password in its text.
    if damage and (file := sqlite_file(engine)) is not None:
        raise MonitorStoreError(f"The monitor's memory cannot be opened. {advice(file, damage)}")
    raise MonitorStoreError(
        f"The monitor's memory{where} cannot be opened ({problem}); check its SQLAlchemy URL "
        "(monitor-database-url, --monitor), and that the database runs."
    )


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

    def _update(self, record: T, *conditions: sa.ColumnElement[bool]) -> bool:
        revision, value = NOTES.c.revision + 1, self._dump(record)
        named = NOTES.c.name == self._name
        return self._database.update(NOTES, named, *conditions, revision=revision, value=value)

    def _dump(self, record: T) -> str:
        return self._json.dump_json(record).decode()


@dataclass(frozen=True)
class Claim:
    """An idempotency key as it is stored.

    Attributes
    ----------
    id : str
        32 hexadecimal digits, the id of the request that is made under this key.
    mine : bool
        Whether the caller has to do the work and to store the answer.
    digest : str
        Digest of the first request under this key.
    status : int | None
        HTTP status of the answer; None while there is none.
    body : str
        Body of the answer.
    """

    id: str
    mine: bool
    digest: str
    status: int | None
    body: str


class KeyTable:
    """The idempotency keys of a model's API.

    Parameters
    ----------
    database : Database
        The model's rows.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def claim(
        self, key: str, digest: str, *, owner: str, now: datetime, retake: bool = True
    ) -> Claim:
        """Claim a key for ``owner``, or return the claim or the answer that there is.

        A claim of another process that never answered is taken over, if ``retake``.
        """
        database, this = self._database, KEYS.c.key == key
        database.delete(KEYS, KEYS.c.created < (now - LIFETIME).timestamp())
        new = {"key": key, "id": uuid.uuid4().hex, "digest": digest, "owner": owner}
        mine = database.insert(KEYS, **new, created=now.timestamp(), body="")
        if retake and not mine:
            # The same owner may be working on it; another process with no answer has crashed.
            lost = (this, KEYS.c.owner != owner, KEYS.c.status.is_(None), KEYS.c.digest == digest)
            mine = database.update(KEYS, *lost, owner=owner)
        stored = database.first(KEYS, this)
        if stored is None:  # its owner gave it up between the two transactions
            return self.claim(key, digest, owner=owner, now=now, retake=retake)
        return Claim(stored.id, mine, stored.digest, stored.status, stored.body)

    def answer(self, key: str, status: int | None, body: str = "") -> None:
        """Store the answer to a claimed key; with no status, give up the claim."""
        if status is None:
            self._database.delete(KEYS, KEYS.c.key == key)
        else:
            self._database.update(KEYS, KEYS.c.key == key, status=status, body=body)
