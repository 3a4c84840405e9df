# SPDX-License-Identifier: Apache-2.0
"""Idempotency keys of the API and the answers under them, in the monitor's memory."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, Engine, and_
from sqlalchemy.exc import IntegrityError

from fl_app.retraining.memory.tables import KEYS

LIFETIME = timedelta(hours=24)
"""How long the answer to a key is stored."""


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
    engine : Engine
        The database.
    model : str
        The registered model.
    """

    def __init__(self, engine: Engine, model: str) -> None:
        self._engine = engine
        self._model = model

    def claim(
        self, key: str, digest: str, *, owner: str, now: datetime, retake: bool = True
    ) -> Claim:
        """Claim a key for ``owner``, or return the claim or the answer that there is.

        A claim of another process that never answered is taken over, if ``retake``.
        """
        mine, fresh = self._keyed(key), uuid.uuid4().hex
        row = {"model": self._model, "key": key, "digest": digest, "owner": owner, "id": fresh}
        created = {"created": now.timestamp(), "body": ""}
        try:
            with self._engine.begin() as connection:
                expired = KEYS.c.created < (now - LIFETIME).timestamp()
                connection.execute(KEYS.delete().where(expired))
                connection.execute(KEYS.insert().values({**row, **created}))
            return Claim(fresh, True, digest, None, "")
        except IntegrityError:
            orphan = KEYS.update().where(mine, KEYS.c.owner != owner, KEYS.c.status.is_(None))
            orphan = orphan.where(KEYS.c.digest == digest).values(owner=owner)
            with self._engine.begin() as connection:
                taken = retake and connection.execute(orphan).rowcount == 1
                stored = connection.execute(KEYS.select().where(mine)).first()
        if stored is None:  # its owner gave it up between the two transactions
            return self.claim(key, digest, owner=owner, now=now, retake=retake)
        return Claim(stored.id, taken, stored.digest, stored.status, stored.body)

    def answer(self, key: str, status: int | None, body: str = "") -> None:
        """Store the answer to a claimed key; with no status, give up the claim."""
        change = KEYS.delete() if status is None else KEYS.update().values(status=status, body=body)
        with self._engine.begin() as connection:
            connection.execute(change.where(self._keyed(key)))

    def _keyed(self, key: str) -> ColumnElement[bool]:
        return and_(KEYS.c.model == self._model, KEYS.c.key == key)
