# SPDX-License-Identifier: Apache-2.0
"""Who may use the API: host names, origins, the token, and how often."""

from __future__ import annotations

import hmac
import ipaddress
import math
import os
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from fl_app.api.parsing import MAX_BODY, ApiError
from fl_app.api.people import People, Person

if TYPE_CHECKING:
    from flask import Request

LOOPBACK = ("localhost", "127.0.0.1", "::1")
TOKEN_VARIABLE = "FL_APP_API_TOKEN"  # noqa: S105 - a name, no secret
SAFE_METHODS = ("GET", "HEAD", "OPTIONS", "TRACE")
OPEN_PATHS = ("/health",)
"""Paths without a token, so that a liveness probe needs none."""

_TOKEN = re.compile(r"\A[!-~]{16,512}\Z")
_HOST = re.compile(r"\A(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9._-]+))(?::[0-9]{1,5})?\Z", re.ASCII)


class RateLimit:
    """A token bucket for each client.

    Parameters
    ----------
    per_second, burst : float
        How many tokens are added, more than 0, and the most that a bucket holds, at least 1.
    clock : Callable[[], float]
        Monotonic time in seconds.

    Raises
    ------
    ValueError
        If a number is out of its range.
    """

    MOST_CLIENTS = 4096

    def __init__(
        self, per_second: float, burst: float, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        if not (math.isfinite(per_second) and per_second > 0 and burst >= 1):
            raise ValueError(
                f"The rate limit is {per_second} requests per second, {burst} at once; "
                "expected more than 0, and at least 1."
            )
        self._per_second = per_second
        self._burst = burst
        self._clock = clock
        self._lock = threading.Lock()
        self._clients: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def wait(self, client: str) -> float:
        """Take a token; return 0, or the seconds until there is one."""
        with self._lock:
            now = self._clock()
            left, then = self._clients.pop(client, (self._burst, now))
            left = min(self._burst, left + (now - then) * self._per_second)
            seconds = 0.0 if left >= 1 else (1 - left) / self._per_second
            self._clients[client] = (left if seconds else left - 1, now)
            while len(self._clients) > self.MOST_CLIENTS:
                self._clients.popitem(last=False)
            return seconds


class Guard:
    """The checks before every route: host, origin, rate and token.

    Parameters
    ----------
    token : str | None
        What ``Authorization: Bearer`` must hold; None requires nothing.
    hosts : Collection[str]
        Names that clients may call this server by; ``*`` allows any.
    limit : RateLimit
        For requests that change something.
    people : People | None
        People with tokens of their own.

    Raises
    ------
    ValueError
        If the token can be guessed, or any host is allowed without one.
    """

    def __init__(
        self,
        token: str | None,
        hosts: Collection[str],
        limit: RateLimit,
        people: People | None = None,
    ) -> None:
        if token is not None and not _TOKEN.match(token):
            raise ValueError(
                "The API's token must be 16 to 512 visible ASCII characters; make one with "
                "`openssl rand -hex 32`."
            )
        self.token = token
        self._hosts = {name.strip("[]").rstrip(".").lower() for name in hosts}
        self._limit = limit
        self.people = people
        if "*" in self._hosts and not self.needs_token:
            raise ValueError(
                "allowed_hosts is '*' and there is no token, so any web page could use the API; "
                "give a token, or name the hosts."
            )

    @property
    def needs_token(self) -> bool:
        """Whether requests need a token: there is a shared one, or people have their own."""
        return self.token is not None or (self.people is not None and self.people.exist)

    def person_of(self, token: str) -> Person | None:
        """Return whose token it is, without a name for the shared one; None for nobody's."""
        if is_secret(token, self.token):
            return Person()
        return self.people.find(token) if self.people is not None and token else None

    def still_knows(self, person: Person) -> bool:
        """Return whether a person's token was not revoked."""
        return not person.name or (self.people is not None and self.people.knows(person))

    def admit(self, request: Request, *, bearer: bool) -> Person:
        """Return who sends a request, if it may go on.

        Parameters
        ----------
        request : Request
            Flask's request.
        bearer : bool
            Whether it needs a token, if there is one and its path is not open to all.

        Raises
        ------
        ApiError
            403, 429 or 401.
        """
        host = request.environ.get("HTTP_HOST", "")
        # Flask's TRUSTED_HOSTS compares in upper and lower case and has no IPv6 addresses.
        match = _HOST.match(host)
        name = (match[1] or match[2]).rstrip(".").lower() if match else ""
        if not match or not self._hosts & {"*", name}:
            raise ApiError(403, "The Host header must name one of the API's allowed_hosts.")
        # A browser sends the Origin with each form and script of another site; programs send none.
        origin = request.headers.get("Origin", f"http://{host}").lower()
        if origin not in (f"http://{host}".lower(), f"https://{host}".lower()):
            raise ApiError(403, "Web pages of another origin may not use this API.")
        changes = request.method not in SAFE_METHODS
        if changes and (wait := math.ceil(self._limit.wait(request.remote_addr or ""))):
            raise ApiError(429, f"Too many requests; try again in {wait} s.", Retry_After=str(wait))
        if not bearer or not self.needs_token or request.path in OPEN_PATHS:
            return Person()
        scheme, _, given = request.headers.get("Authorization", "").partition(" ")
        person = self.person_of(given.strip()) if scheme.lower() == "bearer" else None
        if person is None:
            detail = "The token is missing or wrong; send 'Authorization: Bearer <token>'."
            raise ApiError(401, detail, WWW_Authenticate="Bearer")
        if changes:
            require_decide(person)
        return person


def require_decide(person: Person) -> None:
    """Raise a 403 for a person who may only read."""
    if person.role != "decide":
        raise ApiError(403, f"{person.name} may read and not decide; nothing was done.")


def is_secret(given: str, secret: str | None) -> bool:
    """Return whether a text is the secret, in a time that does not tell how much is right."""
    sent = given.encode("utf-8", "replace")
    return bool(secret) and hmac.compare_digest(sent, (secret or "").encode())


JSON = "application/json"
FORM = "application/x-www-form-urlencoded"


def read_body(request: Request, kind: str = JSON) -> bytes:
    """Return the body of a request that changes something, if it has the right content type.

    Raises
    ------
    ApiError
        415 or 413.
    """
    charset = request.mimetype_params.get("charset", "utf-8").lower()
    coded = request.headers.get("Content-Encoding", "identity").lower() != "identity"
    if request.mimetype != kind or charset not in ("utf-8", "utf8") or coded:
        raise ApiError(415, f"The body must be plain UTF-8; send 'Content-Type: {kind}'.")
    body = request.get_data()  # Flask rejects what is longer than MAX_CONTENT_LENGTH
    if len(body) > MAX_BODY:
        raise ApiError(413)
    return body


def require_token(host: str, has_token: bool) -> None:
    """Check that an address which others can reach has a token.

    Raises
    ------
    ValueError
        If it has none.
    """
    local = host.lower() == "localhost"
    with suppress(ValueError):
        local = ipaddress.ip_address(host.strip("[]")).is_loopback
    if not has_token and not local:
        raise ValueError(
            f"The API would listen on {host!r} without a token, for anybody to use; put a token "
            f"into {TOKEN_VARIABLE} or a file that `api-token-file` names, make some with "
            "`fl-app people add`, or use 127.0.0.1."
        )


def read_token(
    path: str | None = None, *, host: str = LOOPBACK[0], people: People | None = None
) -> str | None:
    """Return the shared token from a file, else from ``FL_APP_API_TOKEN``; None without either.

    Raises
    ------
    ValueError
        If the file cannot be read or is empty, or ``host`` is one that needs a token.
    """
    token: str | None = os.environ.get(TOKEN_VARIABLE, "").strip() or None
    if path:
        token = None
        with suppress(OSError, ValueError):
            token = Path(path).read_text("ascii").strip()
        if not token:  # the text does not repeat the path: it may be the token by mistake
            raise ValueError("The API's token file cannot be read or is empty; check its path.")
    require_token(host, token is not None or (people is not None and people.exist))
    return token
