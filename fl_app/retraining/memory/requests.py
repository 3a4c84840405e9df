# SPDX-License-Identifier: Apache-2.0
"""The requests for retraining in the monitor's memory, and which of them is being served."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from typing import Any

from sqlalchemy import Engine, Row, RowMapping, Select, func, select
from sqlalchemy.exc import IntegrityError

from fl_app.retraining.memory.request_lock import RequestLock
from fl_app.retraining.memory.tables import REQUESTS
from fl_app.retraining.requests import Outcome, RetrainRequest, TriggerKind


class RequestTable:
    """A model's requests. At most one is pending and one is running: an index ensures it.

    Parameters
    ----------
    engine : Engine
        The database.
    model : str
        The registered model.
    """

    def __init__(self, engine: Engine, model: str) -> None:
        self._engine = engine
        self._model = model
        self._mine = REQUESTS.c.model == model
        self._lock = RequestLock(engine, model)

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
                connection.execute(REQUESTS.insert().values(row))
        except IntegrityError:
            if self.get(request.id) is not None:
                return request
            pending = self.find(Outcome.PENDING)
            if pending is None:
                raise
            self.add(request, Outcome.JOINED, f"request {pending.id} is pending already")
            return pending
        return None

    def find(self, outcome: Outcome) -> RetrainRequest | None:
        """Return the newest request with this outcome, if any."""
        query = REQUESTS.select().where(self._mine, REQUESTS.c.outcome == str(outcome))
        with self._engine.connect() as connection:
            row = connection.execute(query.order_by(REQUESTS.c.number.desc()).limit(1)).first()
        return _request(row) if row is not None else None

    def get(self, request_id: str) -> dict[str, Any] | None:
        """Return the row of the request with this id, if any, as ``history`` does."""
        query = REQUESTS.select().where(self._mine, REQUESTS.c.id == request_id)
        with self._engine.connect() as connection:
            row = connection.execute(query).mappings().first()
        return None if row is None else _entry(row)

    def take(self, now: datetime) -> RetrainRequest | None:
        """Change the pending request to running, and return it to one caller.

        A running request that no live process serves, since its server crashed, is returned first
        and with the same id. Whoever gets a request is the only server until it calls ``finish`` or
        ``abandon``.
        """
        if not (self.find(Outcome.RUNNING) or self.find(Outcome.PENDING)):
            return None
        if not self._lock.acquire():
            return None
        taken = None
        try:
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
        query = REQUESTS.select().where(self._mine)
        if before:
            number = select(REQUESTS.c.number).where(REQUESTS.c.id == before).scalar_subquery()
            query = query.where(REQUESTS.c.number < number)
        newest = query.order_by(REQUESTS.c.number.desc()).limit(limit)
        with self._engine.connect() as connection:
            rows = connection.execute(newest).mappings().all()
        return [_entry(row) for row in reversed(rows)]

    def counts(self) -> dict[Outcome, int]:
        """Return how many requests have each outcome."""
        outcome = REQUESTS.c.outcome
        query = select(outcome, func.count()).where(self._mine).group_by(outcome)
        with self._engine.connect() as connection:
            counted = {Outcome(name): count for name, count in connection.execute(query)}
        return {outcome: counted.get(outcome, 0) for outcome in Outcome}

    def taken_since(self, when: datetime) -> int:
        """Return how many automatic requests were taken at or after ``when``."""
        return int(
            self._scalar(
                select(func.count()).where(
                    REQUESTS.c.started >= when.isoformat(),
                    REQUESTS.c.kind != str(TriggerKind.MANUAL),
                )
            )
        )

    def last_taken(self) -> datetime | None:
        """Return when a request was last taken; None before the first."""
        text = self._scalar(select(func.max(REQUESTS.c.started)))
        return None if text is None else datetime.fromisoformat(text)

    def _scalar(self, query: Select[Any]) -> Any:
        with self._engine.connect() as connection:
            return connection.execute(query.where(self._mine)).scalar_one()

    def _change(
        self, request_id: str, before: Outcome, after: Outcome, **values: str | None
    ) -> bool:
        change = (
            REQUESTS.update()
            .where(REQUESTS.c.id == request_id, REQUESTS.c.outcome == str(before))
            .values(outcome=str(after), **values)
        )
        with self._engine.begin() as connection:
            return bool(connection.execute(change).rowcount == 1)


def _request(row: Row[Any]) -> RetrainRequest:
    created = datetime.fromisoformat(row.created)
    return RetrainRequest(TriggerKind(row.kind), row.reason, id=row.id, created=created)


def _entry(row: RowMapping) -> dict[str, Any]:
    return {k: v for k, v in row.items() if k not in ("number", "model")}
