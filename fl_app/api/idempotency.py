# SPDX-License-Identifier: Apache-2.0
"""How the API answers: as JSON, and once for each ``Idempotency-Key``."""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from flask import Response, g, request

from fl_app.api.inputs import ApiError, idempotency_key
from fl_app.retraining.memory.store import MonitorStore

Answer = tuple[int, Mapping[str, Any]]


class Once:
    """Does the work of an ``Idempotency-Key`` once, and gives its answer again after that.

    The claim and the answer are on disk, so they outlive the process.
    """

    def __init__(self, memory: MonitorStore) -> None:
        self._memory = memory
        self._owner = uuid.uuid4().hex

    def __call__(self, work: Callable[[str], Answer], *, repeatable: bool = True) -> Response:
        """Answer the request at hand: do its work, unless it was done.

        Parameters
        ----------
        work : Callable[[str], Answer]
            Takes 32 hexadecimal digits that stay the same for the same key.
        repeatable : bool
            Whether it may be done again where a crash left open whether it was done.
        """
        key = idempotency_key(request.headers.get("Idempotency-Key"))
        if key is None:
            return reply(*work(uuid.uuid4().hex))
        asked = f"{request.path}\n{json.dumps(g.body, sort_keys=True)}"
        status, answer, headers = self.under(key, asked, work, repeatable=repeatable)
        return reply(status, answer, **headers)

    def under(
        self, key: str, asked: str, work: Callable[[str], Answer], *, repeatable: bool = True
    ) -> tuple[int, Mapping[str, Any], Mapping[str, str]]:
        """Return status, answer and headers of what is asked under a key.

        Raises
        ------
        ApiError
            409 or 422 if the key is in use; a 5xx of the work, which may be tried again.
        """
        digest = hashlib.sha256(asked.encode()).hexdigest()
        now = datetime.now(UTC)
        claim = self._memory.keys.claim(key, digest, owner=self._owner, now=now, retake=repeatable)
        if claim.digest != digest:
            raise ApiError(422, "This Idempotency-Key was used for another request; use a new one.")
        if claim.mine:
            return self._first(key, lambda: work(claim.id))
        if claim.status is None:
            raise ApiError(
                409,
                "A request with this Idempotency-Key is being worked on, or was cut short; "
                "try again, and if it stays so, look at what was done and use a new key.",
                Retry_After="1",
            )
        return claim.status, json.loads(claim.body), {"Idempotency-Replayed": "true"}

    def _first(
        self, key: str, work: Callable[[], Answer]
    ) -> tuple[int, Mapping[str, Any], Mapping[str, str]]:
        status, answer, headers = None, dict[str, Any](), dict[str, str]()
        try:
            status, body = work()
            answer = dict(body)
        except ApiError as error:
            if error.status >= 500:
                raise
            status, answer, headers = error.status, dict(error.answer), error.headers
        finally:
            self._memory.keys.answer(key, status, json.dumps(answer))
        return status, answer, headers


def reply(status: int, answer: object, **headers: str) -> Response:
    """Return an answer as JSON."""
    response = Response(json.dumps(answer), status, mimetype="application/json")
    for name, value in headers.items():
        response.headers[name.replace("_", "-")] = value
    return response
