# SPDX-License-Identifier: Apache-2.0
"""The monitor's memory: requests, schedules and rule state in one SQL database, by SQLAlchemy.

SQLite by default, PostgreSQL where several servers share it. What the numbers mean is decided
elsewhere; here each step is one transaction that a crash leaves done or undone.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fl_app.retraining.triggers import Outcome, RetrainRequest, TriggerKind

if TYPE_CHECKING:
    from sqlalchemy import ColumnElement, Connection, Row, Table

IN_MEMORY = "sqlite://"


def default_url(home: Path) -> str:
    """SQLite in the app's home."""
    return f"sqlite:///{home / 'monitor.db'}"


class MonitorStore:
    """Requests, schedules and state that survive the process.

    At most one request waits and at most one runs: the database refuses a second, whoever asks.

    Parameters
    ----------
    url : str
        SQLAlchemy URL, for instance ``sqlite:////home/me/.fl-app/monitor.db``; by default a
        database in memory, which lasts as long as this object.
    model : str
        The registered model that it is about; each has requests and schedules of its own.
    """

    def __init__(self, url: str = IN_MEMORY, model: str = "fl-global-model") -> None:
        from sqlalchemy import create_engine
        from sqlalchemy.pool import StaticPool

        memory = {"poolclass": StaticPool, "connect_args": {"check_same_thread": False}}
        self._model = model
        self._engine = create_engine(url, **(memory if url == IN_MEMORY else {}))
        self._requests, self._schedules, self._state = _tables()
        self._requests.metadata.create_all(self._engine)

    def add(
        self, request: RetrainRequest, outcome: Outcome, why: str = ""
    ) -> RetrainRequest | None:
        """Write a request down; if it should wait but another does, return that one instead."""
        from sqlalchemy.exc import IntegrityError

        row = {
            "model": self._model,
            "id": request.id,
            "kind": str(request.kind),
            "reason": request.reason,
            "created": request.created.isoformat(),
            "outcome": str(outcome),
            "why": why,
        }
        try:
            with self._engine.begin() as connection:
                connection.execute(self._requests.insert().values(row))
        except IntegrityError:
            waiting = self.find(Outcome.PENDING)
            if waiting is None:
                raise
            self.add(request, Outcome.JOINED, f"it joins request {waiting.id}, which waits already")
            return waiting
        return None

    def find(self, outcome: Outcome) -> RetrainRequest | None:
        """The newest request with this outcome, if any."""
        table = self._requests
        mine = table.c.model == self._model
        query = table.select().where(mine, table.c.outcome == str(outcome))
        with self._engine.connect() as connection:
            row = connection.execute(query.order_by(table.c.number.desc()).limit(1)).first()
        return _request(row) if row is not None else None

    def take(self, now: datetime) -> RetrainRequest | None:
        """Turn the request that waits into the one that runs, and return it, once."""
        from sqlalchemy.exc import IntegrityError

        waiting = self.find(Outcome.PENDING)
        if waiting is None or self.find(Outcome.RUNNING) is not None:
            return None
        try:
            won = self._turn(waiting.id, Outcome.PENDING, Outcome.RUNNING, started=now.isoformat())
        except IntegrityError:
            return None  # another process has just taken one
        return waiting if won else None

    def finish(self, request_id: str, outcome: Outcome, now: datetime) -> None:
        """Say how the request that runs ended."""
        self._turn(request_id, Outcome.RUNNING, outcome, ended=now.isoformat())

    def recover(self) -> RetrainRequest | None:
        """After a crash: what ran is to be served again, and what waits meanwhile joins it.

        Only the one server of this database may call it, and before it takes requests.
        """
        lost = self.find(Outcome.RUNNING)
        if lost is None:
            return None
        waiting = self.find(Outcome.PENDING)
        if waiting is not None:
            self._turn(
                waiting.id,
                Outcome.PENDING,
                Outcome.JOINED,
                why=f"it joins request {lost.id}, which a crash cut short",
            )
        self._turn(lost.id, Outcome.RUNNING, Outcome.PENDING, started=None)
        return lost

    def history(self, limit: int | None = None) -> list[dict[str, Any]]:
        """All requests, or the last ``limit``, oldest first."""
        table = self._requests
        mine = table.c.model == self._model
        query = table.select().where(mine).order_by(table.c.number.desc()).limit(limit)
        with self._engine.connect() as connection:
            rows = connection.execute(query).mappings().all()
        inner = ("number", "model")
        return [{k: v for k, v in row.items() if k not in inner} for row in reversed(rows)]

    def taken_since(self, when: datetime) -> int:
        """How many automatic requests were taken at or after ``when``."""
        from sqlalchemy import func, select

        table = self._requests
        query = select(func.count()).where(
            table.c.model == self._model,
            table.c.started >= when.isoformat(),
            table.c.kind != str(TriggerKind.MANUAL),
        )
        with self._engine.connect() as connection:
            return int(connection.execute(query).scalar_one())

    def last_taken(self) -> datetime | None:
        """When a request was last taken."""
        from sqlalchemy import func, select

        table = self._requests
        query = select(func.max(table.c.started)).where(table.c.model == self._model)
        with self._engine.connect() as connection:
            text = connection.execute(query).scalar()
        return None if text is None else datetime.fromisoformat(text)

    def load_state(self) -> dict[str, Any]:
        """What ``save_state`` was last given; empty at first."""
        with self._engine.connect() as connection:
            mine = self._state.c.model == self._model
            row = connection.execute(self._state.select().where(mine)).first()
        return dict(json.loads(row.value)) if row is not None else {}

    def save_state(self, state: Mapping[str, Any]) -> None:
        """Keep the rules' state, whole."""
        value, table = json.dumps(state), self._state
        with self._writing() as connection:
            change = table.update().where(table.c.model == self._model).values(value=value)
            if connection.execute(change).rowcount == 0:
                connection.execute(table.insert().values(model=self._model, value=value))

    def set_schedule(self, name: str, due: datetime) -> None:
        """Set when ``name`` is due next, unless it has a due time already."""
        with self._writing() as connection:
            if self._due(connection, name) is None:
                row = {"model": self._model, "name": name, "due": due.timestamp()}
                connection.execute(self._schedules.insert().values(row))

    def due(self, name: str) -> datetime | None:
        """When ``name`` is due next."""
        with self._engine.connect() as connection:
            return self._due(connection, name)

    def claim_due(self, name: str, due: datetime, following: datetime) -> bool:
        """Move ``name`` on from ``due`` to ``following``; True for one caller for each due time."""
        table = self._schedules
        change = (
            table.update()
            .where(self._named(name), table.c.due == due.timestamp())
            .values(due=following.timestamp())
        )
        with self._engine.begin() as connection:
            return bool(connection.execute(change).rowcount == 1)

    def drop_schedule(self, name: str) -> None:
        """Forget ``name``."""
        table = self._schedules
        with self._engine.begin() as connection:
            connection.execute(table.delete().where(self._named(name)))

    def _due(self, connection: Connection, name: str) -> datetime | None:
        table = self._schedules
        row = connection.execute(table.select().where(self._named(name))).first()
        return None if row is None else datetime.fromtimestamp(row.due, UTC)

    def _named(self, name: str) -> ColumnElement[bool]:
        from sqlalchemy import and_

        return and_(self._schedules.c.model == self._model, self._schedules.c.name == name)

    @contextmanager
    def _writing(self) -> Iterator[Connection]:
        from sqlalchemy.exc import IntegrityError

        try:
            with self._engine.begin() as connection:
                yield connection
        except IntegrityError:
            return  # another process has just written the same row

    def _turn(self, request_id: str, before: Outcome, after: Outcome, **values: str | None) -> bool:
        table = self._requests
        change = (
            table.update()
            .where(table.c.id == request_id, table.c.outcome == str(before))
            .values(outcome=str(after), **values)
        )
        with self._engine.begin() as connection:
            return bool(connection.execute(change).rowcount == 1)


def _request(row: Row[Any]) -> RetrainRequest:
    request = RetrainRequest(TriggerKind(row.kind), row.reason, id=row.id)
    return replace(request, created=datetime.fromisoformat(row.created))


@lru_cache(maxsize=1)
def _tables() -> tuple[Table, Table, Table]:
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
    return requests, schedules, state
