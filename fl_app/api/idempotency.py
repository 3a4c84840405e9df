# SPDX-License-Identifier: Apache-2.0
"""How the API answers: as JSON, and once for each ``Idempotency-Key``."""

from __future__ import annotations

import hashlib
import json
import re
import uuid
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from flask import Response

from fl_app.api.parsing import ApiError
from fl_app.retraining.memory.store import MonitorStore

Answer = tuple[int, Mapping[str, Any]]
KEY = r'^("[!#-\[\]-~]{1,255}"|[!#-\[\]-~]{1,255})$'


class Once:
    """Does the work of an ``Idempotency-Key`` once, and repeats its answer for 24 hours.

    The claim and the answer are on disk, so they outlive the process.
    """

    def __init__(self, memory: MonitorStore) -> None:
        self._memory = memory
        self._owner = uuid.uuid4().hex

    def __call__(
        self,
        key: str,
        path: str,
        content: object,
        work: Callable[[str], Answer],
        *,
        repeatable: bool = True,
    ) -> tuple[int, Mapping[str, Any], Mapping[str, str]]:
        """Do the work of a request, unless it was done.

        Parameters
        ----------
        key : str
            The key.
        path, content
            The request, which must be the same for the same key; the content as JSON can hold it.
        work : Callable[[str], Answer]
            Takes 32 hexadecimal digits that stay the same for the same key.
        repeatable : bool
            Whether it may be done again where a crash left open whether it was done.

        Returns
        -------
        tuple[int, Mapping[str, Any], Mapping[str, str]]
            Status, answer and headers; those of the first time where it was refused then.

        Raises
        ------
        ApiError
            409 or 422 if the key is in use; a 5xx of the work, which may be tried again.
        """
        request = f"{path}\n{json.dumps(content, sort_keys=True)}"
        digest = hashlib.sha256(request.encode()).hexdigest()
        # Only the digest is stored: a request may hold what should not be kept.
        now = datetime.now(UTC)
        claim = self._memory.keys.claim(key, digest, owner=self._owner, now=now, retake=repeatable)
        if claim.digest != digest:
            raise ApiError(422, "This Idempotency-Key was used for another request; use a new one.")
        if claim.mine:
            return self._first(key, claim.id, work)
        if claim.status is None:
            raise ApiError(
                409,
                "A request with this Idempotency-Key is running, or a crash ended it; try again, "
                "and if it stays so, check what was done and use a new key.",
                Retry_After="1",
            )
        return claim.status, json.loads(claim.body), {"Idempotency-Replayed": "true"}

    def _first(
        self, key: str, new_id: str, work: Callable[[str], Answer]
    ) -> tuple[int, Mapping[str, Any], Mapping[str, str]]:
        status, answer, headers = None, dict[str, Any](), dict[str, str]()
        try:
            status, body = work(new_id)
            answer = dict(body)
        except ApiError as error:
            if error.status >= 500:  # an outage: the same key may succeed later
                raise
            status, answer, headers = error.status, error.answer, error.headers
        finally:  # without a status the key is free again
            self._memory.keys.answer(key, status, json.dumps(answer))
        return status, answer, headers


def idempotency_key(header: str | None) -> str | None:
    """Return the value of an ``Idempotency-Key`` header, quoted or not; None without one.

    Raises
    ------
    ApiError
        400 if it cannot be a key.
    """
    if header is not None and not re.fullmatch(KEY.strip("^$"), header):
        raise ApiError(400, "Idempotency-Key must be 1 to 255 visible ASCII characters.")
    return None if header is None else header.strip('"')


def reply(status: int, answer: object, headers: Mapping[str, str] | None = None) -> Response:
    """Return an answer as JSON; underscores in the names of headers become hyphens."""
    response = Response(json.dumps(answer), status, mimetype="application/json")
    for name, value in (headers or {}).items():
        response.headers[name.replace("_", "-")] = value
    return response
