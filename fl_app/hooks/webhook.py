# SPDX-License-Identifier: Apache-2.0
"""A hook that posts each event to a URL, signed, with retries, and to allowed hosts only.

It blocks while it retries; call it through ``Hooks`` where that matters.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import logging
import os
import random
import ssl
import time
from collections.abc import Collection, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path

import urllib3
from urllib3.exceptions import HTTPError

from fl_app.events import Event, as_json
from fl_app.hooks.webhook_hosts import ForbiddenAddressError, Target

logger = logging.getLogger("flwr.fl_app")

SECRET_VARIABLE = "FL_APP_WEBHOOK_SECRET"  # noqa: S105 - a name, no secret
PAUSES = (1.0, 5.0, 20.0, 60.0)
"""Seconds between the attempts for one event, varied by up to a fifth."""
MAX_PAUSE = 300.0
"""Longest pause in seconds that a ``Retry-After`` header can request."""
TRY_AGAIN = (408, 425, 429, 500, 502, 503, 504)
_MIN_KEY = 24
_PREFIX = "whsec_"


class Webhook:
    """Posts each event as JSON, in the form and with the signature of Standard Webhooks.

    The headers are ``webhook-id``, the event's id, by which a receiver recognises repeats;
    ``webhook-timestamp``, the time of this attempt in seconds; and ``webhook-signature``, ``v1,``
    and the base64 of HMAC-SHA256 over ``id.timestamp.body``. The body is the event in the form of
    `as_json`, with the model's name. Source: https://www.standardwebhooks.com, version 1.0.

    An attempt is repeated if the connection fails, the answer is late, or its status is 408, 425,
    429 or 5xx. After the last attempt, or any other status but 2xx, the event is dropped with a
    warning. No redirect is followed and no proxy used. The host is resolved for each attempt, and
    the connection goes to the address that was checked, with the certificate checked for the host.

    Parameters
    ----------
    url : str
        ``https://…``; see `Target.of`.
    secret : str
        Key of the signature, at least 24 bytes; ``whsec_`` and base64, or any text.
    hosts : Collection[str]
        Allowed hosts, which may be private. Empty: every public host is allowed.
    model : str
        The registered model's name, sent with each event.
    timeout : float
        Seconds to connect, and to wait for an answer.
    pauses : Sequence[float]
        Seconds between attempts; there is one attempt more than pauses.

    Raises
    ------
    ValueError
        If the URL, the secret or a host cannot be used.
    """

    def __init__(
        self,
        url: str,
        secret: str,
        *,
        hosts: Collection[str] = (),
        model: str = "",
        timeout: float = 10.0,
        pauses: Sequence[float] = PAUSES,
    ) -> None:
        self._target = Target.of(url, hosts)
        self._key = read_key(secret)
        self._model = model
        self._timeout = timeout
        self._pauses = tuple(pauses)
        self._chance = random.Random()  # noqa: S311 - no secret
        self._tls = ssl.create_default_context()

    def __repr__(self) -> str:
        return f"Webhook to {self._target.host}"

    def check(self) -> None:
        """Resolve the host before there is an event to send.

        If that fails a warning is logged, since the host may exist later.

        Raises
        ------
        ValueError
            The host is at an address that is not allowed.
        """
        try:
            self._target.addresses()
        except OSError as error:
            logger.warning("%r: the host cannot be resolved (%s)", self, error)

    def __call__(self, event: Event) -> None:
        """Post an event, and return when it was accepted or dropped."""
        body = json.dumps({**as_json(event), "model": self._model}, allow_nan=False).encode()
        for number, pause in enumerate((*self._pauses, None), start=1):
            try:
                return self._post(event.id, body, number)
            except _FailedAttemptError as error:
                if pause is None or error.final:
                    logger.warning(
                        "%r: %s is dropped after attempt %d: %s", self, event.id, number, error
                    )
                    return None
                time.sleep(max(pause * self._chance.uniform(0.8, 1.2), error.after))

    def _post(self, event_id: str, body: bytes, number: int) -> None:
        try:
            # Resolved and checked here, for each attempt: a name may lead to a private address, and
            # to another one a moment later. `requests` would resolve it again after the check,
            # follow redirects and use a proxy.
            addresses = self._target.addresses()
            address = addresses[number % len(addresses)]
            answer = self._send(address, self._headers(event_id, body), body)
        except ForbiddenAddressError as error:
            raise _FailedAttemptError(str(error), final=True) from None
        except (HTTPError, OSError) as error:
            raise _FailedAttemptError(f"{type(error).__name__}: {error}") from None
        status, after = answer
        if 300 <= status < 400:
            raise _FailedAttemptError(f"it redirects ({status}), which is not followed", final=True)
        if not 200 <= status < 300:
            again = status in TRY_AGAIN
            raise _FailedAttemptError(
                f"it answers {status}", final=not again, after=_seconds(after)
            )

    def _send(self, address: str, headers: dict[str, str], body: bytes) -> tuple[int, str]:
        """Return the status of the answer, and its ``Retry-After``."""
        target = self._target
        pool: urllib3.HTTPConnectionPool
        if target.scheme == "https":
            pool = urllib3.HTTPSConnectionPool(
                address, target.port, ssl_context=self._tls, server_hostname=target.host
            )
        else:
            pool = urllib3.HTTPConnectionPool(address, target.port)
        with pool:
            answer = pool.urlopen(
                "POST",
                target.path,
                body=body,
                headers=headers,
                retries=False,
                redirect=False,
                timeout=urllib3.Timeout(self._timeout, read=self._timeout),
                preload_content=False,
            )
            answer.close()
            return answer.status, answer.headers.get("Retry-After", "")

    def _headers(self, event_id: str, body: bytes) -> dict[str, str]:
        timestamp = int(time.time())
        return {
            "Host": self._target.authority,
            "Content-Type": "application/json",
            "User-Agent": "fl-app",
            "webhook-id": event_id,
            "webhook-timestamp": str(timestamp),
            "webhook-signature": sign(self._key, event_id, timestamp, body),
        }


class _FailedAttemptError(Exception):
    """An attempt that failed; ``after`` is the pause in seconds that the receiver requests."""

    def __init__(self, reason: str, *, final: bool = False, after: float = 0.0) -> None:
        super().__init__(reason)
        self.final = final
        self.after = after


def sign(key: bytes, event_id: str, timestamp: int, body: bytes) -> str:
    """Return the value of ``webhook-signature``, as `Webhook` describes it."""
    signed = f"{event_id}.{timestamp}.".encode() + body
    digest = hmac.new(key, signed, hashlib.sha256).digest()
    return f"v1,{base64.b64encode(digest).decode()}"


def read_key(secret: str) -> bytes:
    """Return the key of a secret.

    Raises
    ------
    ValueError
        The secret is too short, or ``whsec_`` is not followed by base64.
    """
    key = secret.encode()
    if secret.startswith(_PREFIX):
        try:
            key = base64.b64decode(secret.removeprefix(_PREFIX), validate=True)
        except binascii.Error:
            raise ValueError(
                f"The webhook's secret starts with {_PREFIX}, but what follows is not base64; "
                "copy it again."
            ) from None
    if len(key) < _MIN_KEY:
        raise ValueError(
            f"The webhook's secret has {len(key)} bytes, expected at least {_MIN_KEY}; make one "
            "with `openssl rand -hex 32`."
        )
    return key


def read_secret(path: str | None = None) -> str:
    """Return the secret from a file, or without a path from ``FL_APP_WEBHOOK_SECRET``.

    Raises
    ------
    ValueError
        There is no secret, or the file cannot be read.
    """
    if not path:
        secret = os.environ.get(SECRET_VARIABLE, "").strip()
        if not secret:
            raise ValueError(
                "The webhook has no secret to sign with; put one into a file that "
                f"webhook-secret-file names, or into {SECRET_VARIABLE}."
            )
        return secret
    with suppress(OSError, UnicodeError, ValueError):
        return Path(path).read_text("utf-8").strip()
    # The message leaves the path out: it may be the secret itself, put in the wrong place.
    raise ValueError(
        "The webhook's secret file cannot be read; check the path in webhook-secret-file."
    )


def _seconds(retry_after: str) -> float:
    """Return the seconds that a ``Retry-After`` header requests; 0 if it cannot be read."""
    try:
        if retry_after.isascii() and retry_after.isdigit():
            wanted = float(retry_after)
        else:
            when = parsedate_to_datetime(retry_after)
            when = when.replace(tzinfo=UTC) if when.tzinfo is None else when
            wanted = (when - datetime.now(UTC)).total_seconds()
    except ValueError:
        return 0.0
    return min(max(wanted, 0.0), MAX_PAUSE)
