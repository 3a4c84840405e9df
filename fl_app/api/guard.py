# SPDX-License-Identifier: Apache-2.0
"""Who may ask the API: host names, origins, the token, and how often. Not what they ask."""

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
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from fl_app.api.inputs import MAX_BODY, ApiError

if TYPE_CHECKING:
    from flask import Request

LOOPBACK = ("localhost", "127.0.0.1", "::1")
TOKEN_VARIABLE = "FL_APP_API_TOKEN"  # noqa: S105 - a name, no secret
SAFE_METHODS = ("GET", "HEAD", "OPTIONS", "TRACE")
OPEN_PATHS = ("/health",)
"""What needs no token, so that a probe needs none."""

_TOKEN = re.compile(r"\A[!-~]{16,512}\Z")
_HOST = re.compile(r"\A(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9._-]+))(?::[0-9]{1,5})?\Z", re.ASCII)


class RateLimit:
    """A bucket of tokens for each client: ``per_second`` are added, ``burst`` are the most.

    Parameters
    ----------
    per_second, burst : float
        More than 0, and at least 1.
    clock : Callable[[], float]
        Seconds that never go back.
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


@dataclass(frozen=True)
class Guard:
    """The checks that come before every route.

    Attributes
    ----------
    token : str | None
        What ``Authorization: Bearer`` must name; None asks for nothing.
    hosts : frozenset[str]
        Names that clients may call this server by; ``*`` allows any.
    limit : RateLimit
        For requests that change something.
    """

    token: str | None = field(repr=False)
    hosts: frozenset[str]
    limit: RateLimit

    @classmethod
    def of(cls, token: str | None, hosts: Collection[str], limit: RateLimit) -> Guard:
        """Check the settings of a guard.

        Raises
        ------
        ValueError
            If the token can be guessed, or any host is allowed without one.
        """
        if token is not None and not _TOKEN.match(token):
            raise ValueError(
                "The API's token must be 16 to 512 visible ASCII characters; make one with "
                "`openssl rand -hex 32`."
            )
        names = frozenset(name.strip("[]").rstrip(".").lower() for name in hosts)
        if "*" in names and token is None:
            raise ValueError(
                "allowed_hosts is '*' and there is no token, so any web page could ask; "
                "give a token, or name the hosts."
            )
        return cls(token, names, limit)

    def admit(self, request: Request) -> None:
        """Let a request through to the question of who asks, or refuse it.

        Raises
        ------
        ApiError
            403 or 429.
        """
        host = request.environ.get("HTTP_HOST", "")
        self._check_host(host)
        self._check_origin(request.headers.get("Origin"), host)
        if request.method not in SAFE_METHODS:
            seconds = self.limit.wait(request.remote_addr or "")
            if seconds:
                later = str(math.ceil(seconds))
                raise ApiError(
                    429, f"Too many requests; try again in {later} s.", Retry_After=later
                )

    def admit_bearer(self, request: Request) -> None:
        """Let whoever names the token through; without a token, and to what is open, anybody.

        Raises
        ------
        ApiError
            401.
        """
        if self.token is None or request.path in OPEN_PATHS:
            return
        scheme, _, given = request.headers.get("Authorization", "").partition(" ")
        if not (self.is_token(given.strip()) and scheme.lower() == "bearer"):
            raise ApiError(
                401,
                "The token is missing or wrong; send the header 'Authorization: Bearer <token>'.",
                WWW_Authenticate="Bearer",
            )

    def is_token(self, given: str) -> bool:
        """Whether a text is the token, in a time that does not depend on how much is right."""
        expected = (self.token or "").encode()
        same = hmac.compare_digest(given.encode("utf-8", "replace"), expected)
        return same and self.token is not None

    def _check_host(self, host: str) -> None:
        found = _HOST.match(host)
        name = (found.group(1) or found.group(2)).rstrip(".").lower() if found else ""
        if not found or not ("*" in self.hosts or name in self.hosts):
            raise ApiError(
                403, "The Host header names a host that is not allowed; add it to allowed_hosts."
            )

    def _check_origin(self, origin: str | None, host: str) -> None:
        own = (f"http://{host}".lower(), f"https://{host}".lower())
        if origin is not None and origin.lower() not in own:
            raise ApiError(403, "Web pages of another origin may not use this API.")


JSON = "application/json"
FORM = "application/x-www-form-urlencoded"


def read_body(request: Request, kind: str = JSON) -> bytes:
    """Return the body of a request that changes something, if it says that it is of that kind.

    Raises
    ------
    ApiError
        415 or 413.
    """
    charset = request.mimetype_params.get("charset", "utf-8").lower()
    coded = request.headers.get("Content-Encoding", "identity").lower() != "identity"
    if request.mimetype != kind or charset not in ("utf-8", "utf8") or coded:
        name = "JSON" if kind == JSON else "form fields"
        raise ApiError(
            415, f"The body must be plain {name} in UTF-8; send the header 'Content-Type: {kind}'."
        )
    length = request.content_length
    body = b"" if length is not None and length > MAX_BODY else request.get_data()
    if (length or 0) > MAX_BODY or len(body) > MAX_BODY:
        raise ApiError(413, f"The body is larger than {MAX_BODY // 1024} KiB; send a shorter one.")
    return body


def is_loopback(host: str) -> bool:
    """Return whether an address to listen on can be reached from this machine only."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def require_token(host: str, token: str | None) -> None:
    """Refuse to listen where others can reach it without a token.

    Raises
    ------
    ValueError
        If so.
    """
    if token is None and not is_loopback(host):
        raise ValueError(
            f"The API would listen on {host!r} without a token, for anybody to use; put a token "
            f"into {TOKEN_VARIABLE} or a file that `api-token-file` names, or use 127.0.0.1."
        )


def read_token(path: str | None = None) -> str | None:
    """Return the token from a file, else from ``FL_APP_API_TOKEN``; None without either.

    Raises
    ------
    ValueError
        If the file cannot be read or is empty.
    """
    if not path:
        return os.environ.get(TOKEN_VARIABLE, "").strip() or None
    token = None
    with suppress(OSError, UnicodeError, ValueError):
        token = Path(path).read_text("ascii").strip()
    if token is None:  # the path is not told: it may be the token itself, put in the wrong place
        raise ValueError("The API's token file cannot be read; check the path in api-token-file.")
    if not token:
        raise ValueError("The API's token file is empty; put the token into it.")
    return token
