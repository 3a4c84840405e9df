# SPDX-License-Identifier: Apache-2.0
"""The requests for retraining in the monitor's memory, and which of them is being served."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from sqlalchemy import ColumnElement, Row, func, select
from sqlalchemy.exc import SQLAlchemyError

from fl_app.retraining.memory.database import REQUESTS, Database
from fl_app.retraining.requests import Outcome, RetrainRequest, TriggerKind


class RequestTable:
    """A model's requests. At most one is pending and one is running: an index ensures it.

    Parameters
    ----------
    database : Database
        The model's rows.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._lock = RequestLock(database)

    def add(
        self, request: RetrainRequest, outcome: Outcome, why: str = ""
    ) -> RetrainRequest | None:
        """Store a request, once.

        Returns
        -------
        RetrainRequest | None
            The request that is stored in its place: the pending one, if there is one and this
            should be pending too; or this one, if its id is stored already. None otherwise.
        """
        if self._database.insert(
            REQUESTS,
            id=request.id,
            kind=str(request.kind),
            reason=request.reason,
            created=request.created.isoformat(),
            outcome=str(outcome),
            why=why,
        ):
            return None
        # Either the id is stored already, or another request is pending.
        if self.get(request.id) is not None:
            return request
        pending = self.find(Outcome.PENDING)
        if pending is None:  # it was taken just now
            return self.add(request, outcome, why)
        self.add(request, Outcome.JOINED, f"request {pending.id} is pending already")
        return pending

    def find(self, outcome: Outcome) -> RetrainRequest | None:
        """Return the newest request with this outcome, if any."""
        for row in self._newest(1, REQUESTS.c.outcome == str(outcome)):
            created = datetime.fromisoformat(row.created)
            return RetrainRequest(TriggerKind(row.kind), row.reason, id=row.id, created=created)
        return None

    def get(self, request_id: str) -> dict[str, Any] | None:
        """Return the row of the request with this id, if any, as ``history`` does."""
        row = self._database.first(REQUESTS, REQUESTS.c.id == request_id)
        return None if row is None else _entry(row)

    def take(self, now: datetime) -> RetrainRequest | None:
        """Change the pending request to running, and return it to one caller.

        A running request that no live process serves, since its server crashed, is returned first
        and with the same id. The caller is the only server until it calls ``finish`` or
        ``abandon``.
        """
        if not (self.find(Outcome.RUNNING) or self.find(Outcome.PENDING)):
            return None
        # The table cannot show whether the server of a running request is alive; the lock does. A
        # heartbeat in the table would need a time-out, and clocks that agree.
        if not self._lock.acquire():
            return None
        taken = None
        try:
            # Read again: another server may have finished between the first look and the lock.
            lost = self.find(Outcome.RUNNING)
            request = lost or self.find(Outcome.PENDING)
            before = Outcome.PENDING if lost is None else Outcome.RUNNING
            started = now.isoformat()
            if request and self._change(request.id, before, Outcome.RUNNING, started=started):
                taken = replace(request, cut_short=lost is not None)
            return taken
        finally:
            if taken is None:
                self._lock.release()

    def finish(self, request_id: str, outcome: Outcome, now: datetime) -> None:
        """Store the outcome of the running request, and let other servers take one."""
        try:
            self._change(request_id, Outcome.RUNNING, outcome, ended=now.isoformat())
        finally:
            self._lock.release()

    def abandon(self) -> None:
        """Leave the running request to other servers, if this object serves it."""
        self._lock.release()

    def history(self, limit: int | None = None, before: str = "") -> list[dict[str, Any]]:
        """Return the rows of all requests, oldest first.

        Parameters
        ----------
        limit : int | None
            How many at most, the newest ones; None returns all.
        before : str
            Id of a request; only older ones are returned, and none if there is no such id.
        """
        older = []
        if before:
            number = select(REQUESTS.c.number).where(REQUESTS.c.id == before).scalar_subquery()
            older = [REQUESTS.c.number < number]
        return [_entry(row) for row in reversed(self._newest(limit, *older))]

    def counts(self) -> dict[Outcome, int]:
        """Return how many requests have each outcome."""
        outcome = REQUESTS.c.outcome
        rows = self._database.rows(select(outcome, func.count()).group_by(outcome))
        return {**dict.fromkeys(Outcome, 0), **{Outcome(name): count for name, count in rows}}

    def taken_since(self, when: datetime) -> int:
        """Return how many automatic requests were taken at or after ``when``."""
        automatic = REQUESTS.c.kind != str(TriggerKind.MANUAL)
        since = REQUESTS.c.started >= when.isoformat()
        count = select(func.count()).where(since, automatic)
        return int(self._database.rows(count)[0][0])

    def last_taken(self) -> datetime | None:
        """Return when a request was last taken; None before the first."""
        text = self._database.rows(select(func.max(REQUESTS.c.started)))[0][0]
        return None if text is None else datetime.fromisoformat(text)

    def _newest(self, limit: int | None, *conditions: ColumnElement[bool]) -> Sequence[Row[Any]]:
        newest_first = select(REQUESTS).order_by(REQUESTS.c.number.desc())
        return self._database.rows(newest_first.where(*conditions).limit(limit))

    def _change(
        self, request_id: str, before: Outcome, after: Outcome, **values: str | None
    ) -> bool:
        unchanged = (REQUESTS.c.id == request_id, REQUESTS.c.outcome == str(before))
        return self._database.update(REQUESTS, *unchanged, outcome=str(after), **values)


def _entry(row: Row[Any]) -> dict[str, Any]:
    return {k: v for k, v in row._mapping.items() if k not in ("number", "model")}


class RequestLock:
    """The lock of the server that serves the running request, one for a database and a model.

    The database still has the request as running after its server crashed. This lock shows whether
    the server is alive, since the operating system, or the database, releases it.

    Parameters
    ----------
    database : Database
        The database and the model. For a SQLite file a file beside it is locked, for PostgreSQL it
        is an advisory lock; a database in memory belongs to this process alone.
    """

    def __init__(self, database: Database) -> None:
        self._engine = database.engine
        self._digest = hashlib.sha256(database.model.encode()).digest()
        self._mutex = threading.Lock()
        self._unlock: Callable[[], None] | None = None

    def acquire(self) -> bool:
        """Acquire the lock without waiting; False if any object, this one included, holds it."""
        with self._mutex:
            if self._unlock is not None:
                return False
            if self._engine.dialect.name == "postgresql":
                self._unlock = self._lock_postgresql()
            elif self._engine.url.database:
                self._unlock = self._lock_file(Path(self._engine.url.database))
            else:
                self._unlock = lambda: None
            return self._unlock is not None

    def release(self) -> None:
        """Release the lock, if this object holds it."""
        with self._mutex:
            if self._unlock is not None:
                self._unlock()
                self._unlock = None

    def _lock_file(self, database: Path) -> Callable[[], None] | None:
        path = database.with_name(f"{database.name}.{self._digest.hex()[:8]}.lock")
        lock = FileLock(path, thread_local=False)
        with suppress(Timeout):
            lock.acquire(timeout=0)
            return lock.release
        return None

    def _lock_postgresql(self) -> Callable[[], None] | None:
        key = int.from_bytes(self._digest[:8], "big", signed=True)
        connection = self._engine.connect().execution_options(isolation_level="AUTOCOMMIT")
        # A detached connection is closed at the end, not returned to the pool with its lock.
        connection.detach()
        if not connection.execute(select(func.pg_try_advisory_lock(key))).scalar_one():
            connection.close()
            return None

        def unlock() -> None:
            # PostgreSQL notices a closed connection late; an explicit unlock takes effect at once.
            # A lost connection has released the lock already.
            with connection, suppress(SQLAlchemyError):
                connection.execute(select(func.pg_advisory_unlock(key)))

        return unlock
