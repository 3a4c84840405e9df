# SPDX-License-Identifier: Apache-2.0
"""Idempotency keys of the API and the answers under them, in the monitor's memory."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from datetime import datetime, timedelta

from fl_app.retraining.memory.database import Database
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
        database, mine, fresh = self._database, KEYS.c.key == key, uuid.uuid4().hex
        created, body = now.timestamp(), ""
        database.delete(KEYS, KEYS.c.created < (now - LIFETIME).timestamp())
        row = {"key": key, "digest": digest, "owner": owner, "id": fresh}
        if database.insert(KEYS, **row, created=created, body=body):
            return Claim(fresh, True, digest, None, body)
        # The same owner may still be working on it; another process with no answer has crashed.
        orphan = (mine, KEYS.c.owner != owner, KEYS.c.status.is_(None), KEYS.c.digest == digest)
        taken = retake and database.update(KEYS, *orphan, owner=owner)
        stored = database.first(KEYS, mine)
        if stored is None:  # its owner gave it up between the two transactions
            return self.claim(key, digest, owner=owner, now=now, retake=retake)
        return Claim(stored.id, taken, stored.digest, stored.status, stored.body)

    def answer(self, key: str, status: int | None, body: str = "") -> None:
        """Store the answer to a claimed key; with no status, give up the claim."""
        if status is None:
            self._database.delete(KEYS, KEYS.c.key == key)
        else:
            self._database.update(KEYS, KEYS.c.key == key, status=status, body=body)
