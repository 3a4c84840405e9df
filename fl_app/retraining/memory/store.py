# SPDX-License-Identifier: Apache-2.0
"""The monitor's memory: requests, schedules, answers and rule state in SQL, by SQLAlchemy.

SQLite by default, PostgreSQL where several servers share it. What the numbers mean is decided
elsewhere; here each step is one transaction that a crash leaves done or undone.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fl_app.retraining.memory.request_lock import Serving
from fl_app.retraining.memory.tables import open_database, tables
from fl_app.retraining.requests import Outcome, RetrainRequest, TriggerKind
from fl_registry.home import DEFAULT_MODEL_NAME

if TYPE_CHECKING:
    from sqlalchemy import ColumnElement, Connection, Row, RowMapping

IN_MEMORY = "sqlite://"
KEYS_LAST = timedelta(hours=24)
"""How long the answer to an idempotency key is kept."""


@dataclass(frozen=True)
class Claim:
    """What is known of an idempotency key.

    Attributes
    ----------
    id : str
        32 hexadecimal digits, for the request that is made under this key.
    mine : bool
        Whether the caller is the one to do the work and to keep the answer.
    digest : str
        Of what was first asked under this key.
    status : int | None
        HTTP status of the answer; None while there is none.
    body : str
        The answer.
    """

    id: str
    mine: bool
    digest: str
    status: int | None
    body: str


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

    def __init__(self, url: str = IN_MEMORY, model: str = DEFAULT_MODEL_NAME) -> None:
        from sqlalchemy.pool import QueuePool

        # One connection that threads use in turn: shared, one thread's end would undo another's.
        memory = {"poolclass": QueuePool, "pool_size": 1, "max_overflow": 0}
        memory["connect_args"] = {"check_same_thread": False}
        self._model = model
        lasting = {"pool_pre_ping": True}  # a database may start anew while a server waits
        self._engine = open_database(url, **(memory if url == IN_MEMORY else lasting))
        self._requests, self._schedules, self._state, self._answers, self._notes = tables()
        self._serving = Serving(self._engine, model)

    @property
    def model(self) -> str:
        """The registered model that it is about."""
        return self._model

    def add(
        self, request: RetrainRequest, outcome: Outcome, why: str = ""
    ) -> RetrainRequest | None:
        """Write a request down; if it should wait but another does, return that one instead.

        One that is written down already, by its id, is returned as it is.
        """
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
            if self.get(request.id) is not None:
                return request
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

    def get(self, request_id: str) -> dict[str, Any] | None:
        """The request with this id, as in the history, if any."""
        table = self._requests
        query = table.select().where(table.c.model == self._model, table.c.id == request_id)
        with self._engine.connect() as connection:
            row = connection.execute(query).mappings().first()
        return None if row is None else _entry(row)

    def take(self, now: datetime) -> RetrainRequest | None:
        """Turn the request that waits into the one that runs, and return it, once.

        One that a crash cut short, since nobody who lives serves it, comes first and is the same
        again. Whoever gets a request serves alone until ``finish`` or ``abandon``.
        """
        if not (self.find(Outcome.RUNNING) or self.find(Outcome.PENDING)):
            return None
        if not self._serving.acquire():
            return None
        taken = None
        try:
            lost = self.find(Outcome.RUNNING)
            found = lost or self.find(Outcome.PENDING)
            before = Outcome.PENDING if lost is None else Outcome.RUNNING
            started = now.isoformat()
            if found and self._turn(found.id, before, Outcome.RUNNING, started=started):
                taken = replace(found, cut_short=lost is not None)
            return taken
        finally:
            if taken is None:
                self._serving.release()

    def finish(self, request_id: str, outcome: Outcome, now: datetime) -> None:
        """Say how the request that runs ended, and let others serve."""
        try:
            self._turn(request_id, Outcome.RUNNING, outcome, ended=now.isoformat())
        finally:
            self._serving.release()

    def abandon(self) -> None:
        """Let others serve what this one was serving, if it was."""
        self._serving.release()

    def close(self) -> None:
        """Abandon what is being served, and give the connections back."""
        self.abandon()
        self._engine.dispose()

    def history(self, limit: int | None = None, before: str = "") -> list[dict[str, Any]]:
        """All requests, or the last ``limit`` of them (before the one with that id), oldest first.

        Where there is none with that id, there is nothing before it.
        """
        from sqlalchemy import select

        table = self._requests
        query = table.select().where(table.c.model == self._model)
        if before:
            number = select(table.c.number).where(table.c.id == before).scalar_subquery()
            query = query.where(table.c.number < number)
        with self._engine.connect() as connection:
            found = connection.execute(query.order_by(table.c.number.desc()).limit(limit))
            rows = found.mappings().all()
        return [_entry(row) for row in reversed(rows)]

    def counts(self) -> dict[Outcome, int]:
        """How many requests have each outcome."""
        from sqlalchemy import func, select

        table = self._requests
        mine = table.c.model == self._model
        query = select(table.c.outcome, func.count()).where(mine).group_by(table.c.outcome)
        with self._engine.connect() as connection:
            found = {Outcome(name): count for name, count in connection.execute(query)}
        return {outcome: found.get(outcome, 0) for outcome in Outcome}

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

    def read_note(self, name: str) -> tuple[int, dict[str, Any]]:
        """What processes keep in common under a name, and its revision; 0 and empty at first."""
        table = self._notes
        mine = table.select().where(table.c.model == self._model, table.c.name == name)
        with self._engine.connect() as connection:
            row = connection.execute(mine).first()
        return (0, {}) if row is None else (row.revision, dict(json.loads(row.value)))

    def swap_note(self, name: str, revision: int, value: Mapping[str, Any]) -> bool:
        """Write a note whose revision is still the one that was read; say whether it was."""
        from sqlalchemy.exc import IntegrityError

        table = self._notes
        new = {"revision": revision + 1, "value": json.dumps(value)}
        change = table.update().where(table.c.model == self._model, table.c.name == name)
        try:
            with self._engine.begin() as connection:
                if revision == 0:
                    first = {"model": self._model, "name": name, **new}
                    connection.execute(table.insert().values(first))
                    return True
                change = change.where(table.c.revision == revision).values(new)
                return bool(connection.execute(change).rowcount == 1)
        except IntegrityError:
            return False

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

    def id_of(self, name: str, due: datetime) -> str:
        """The id of the request that is made when ``name`` is due then, always the same."""
        text = f"fl-app {self._model} {name} {due.timestamp()!r}"
        return uuid.uuid5(uuid.NAMESPACE_OID, text).hex

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

    def claim_key(
        self, key: str, digest: str, *, owner: str, now: datetime, retake: bool = True
    ) -> Claim:
        """Claim an idempotency key for ``owner``, or hear who did and what the answer was.

        A claim whose owner is another process that never answered is taken over, if ``retake``.
        """
        from sqlalchemy.exc import IntegrityError

        table, mine = self._answers, self._keyed(key)
        fresh = uuid.uuid4().hex
        row = {"model": self._model, "key": key, "digest": digest, "owner": owner, "id": fresh}
        old = table.c.created < (now - KEYS_LAST).timestamp()
        try:
            with self._engine.begin() as connection:
                connection.execute(table.delete().where(old))
                connection.execute(
                    table.insert().values({**row, "created": now.timestamp(), "body": ""})
                )
            return Claim(fresh, True, digest, None, "")
        except IntegrityError:
            orphan = table.update().where(mine, table.c.owner != owner, table.c.status.is_(None))
            orphan = orphan.where(table.c.digest == digest).values(owner=owner)
            with self._engine.begin() as connection:
                taken = retake and connection.execute(orphan).rowcount == 1
                found = connection.execute(table.select().where(mine)).first()
        if found is None:  # it was given up just now
            return self.claim_key(key, digest, owner=owner, now=now, retake=retake)
        return Claim(found.id, taken, found.digest, found.status, found.body)

    def answer_key(self, key: str, status: int | None, body: str = "") -> None:
        """Keep the answer to a key that was claimed; with no status, give the claim up."""
        table, mine = self._answers, self._keyed(key)
        with self._engine.begin() as connection:
            if status is None:
                connection.execute(table.delete().where(mine))
            else:
                connection.execute(table.update().where(mine).values(status=status, body=body))

    def _keyed(self, key: str) -> ColumnElement[bool]:
        from sqlalchemy import and_

        return and_(self._answers.c.model == self._model, self._answers.c.key == key)

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


def _entry(row: RowMapping) -> dict[str, Any]:
    return {k: v for k, v in row.items() if k not in ("number", "model")}
