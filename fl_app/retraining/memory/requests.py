# SPDX-License-Identifier: Apache-2.0
"""The requests for retraining in the monitor's memory, and which of them is being served."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Row, Select, func, select

from fl_app.retraining.memory.database import Database
from fl_app.retraining.memory.request_lock import RequestLock
from fl_app.retraining.memory.tables import REQUESTS
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
        rows = self._newest(1, REQUESTS.c.outcome == str(outcome))
        return _request(rows[0]) if rows else None

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
        rows = self._rows(select(outcome, func.count()).group_by(outcome))
        counted = {Outcome(name): count for name, count in rows}
        return {outcome: counted.get(outcome, 0) for outcome in Outcome}

    def taken_since(self, when: datetime) -> int:
        """Return how many automatic requests were taken at or after ``when``."""
        automatic = REQUESTS.c.kind != str(TriggerKind.MANUAL)
        since = REQUESTS.c.started >= when.isoformat()
        return int(self._rows(select(func.count()).where(since, automatic))[0][0])

    def last_taken(self) -> datetime | None:
        """Return when a request was last taken; None before the first."""
        text = self._rows(select(func.max(REQUESTS.c.started)))[0][0]
        return None if text is None else datetime.fromisoformat(text)

    def _newest(self, limit: int | None, *conditions: ColumnElement[bool]) -> Sequence[Row[Any]]:
        newest_first = select(REQUESTS).order_by(REQUESTS.c.number.desc())
        return self._rows(newest_first.where(*conditions).limit(limit))

    def _rows(self, query: Select[Any]) -> Sequence[Any]:
        return self._database.rows(query.where(REQUESTS.c.model == self._database.model))

    def _change(
        self, request_id: str, before: Outcome, after: Outcome, **values: str | None
    ) -> bool:
        unchanged = (REQUESTS.c.id == request_id, REQUESTS.c.outcome == str(before))
        return self._database.update(REQUESTS, *unchanged, outcome=str(after), **values)


def _request(row: Row[Any]) -> RetrainRequest:
    created = datetime.fromisoformat(row.created)
    return RetrainRequest(TriggerKind(row.kind), row.reason, id=row.id, created=created)


def _entry(row: Row[Any]) -> dict[str, Any]:
    return {k: v for k, v in row._mapping.items() if k not in ("number", "model")}
