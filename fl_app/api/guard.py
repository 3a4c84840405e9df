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

FAILURES = 20.0
"""Requests without the right token that a client may send at once, and then one a second."""
CLIENTS_FAILING = 10
"""How many times as many all clients may send together."""

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
    """The checks before every route: host, origin, token and rate.

    Parameters
    ----------
    token : str | None
        What ``Authorization: Bearer`` must hold; None requires nothing.
    hosts : Collection[str]
        Names that clients may call this server by; ``*`` allows any.
    limit : RateLimit
        For requests that change something.
    proxies : Collection[str]
        Addresses or networks whose ``X-Forwarded-For`` names the client.
    people : People | None
        People with tokens of their own.
    failures_at_once : float
        How many requests without the right token a client may send at once.

    Raises
    ------
    ValueError
        If the token can be guessed, any host is allowed without one, or a proxy is no address.
    """

    def __init__(
        self,
        token: str | None,
        hosts: Collection[str],
        limit: RateLimit,
        *,
        proxies: Collection[str] = (),
        people: People | None = None,
        failures_at_once: float = FAILURES,
    ) -> None:
        if token is not None and not _TOKEN.match(token):
            raise ValueError(
                "The API's token must be 16 to 512 visible ASCII characters; make one with "
                "`openssl rand -hex 32`."
            )
        self.token = token
        self._hosts = {name.strip("[]").rstrip(".").lower() for name in hosts}
        self._limit = limit
        self._failed = RateLimit(1.0, failures_at_once)
        self._failed_in_all = RateLimit(CLIENTS_FAILING, CLIENTS_FAILING * failures_at_once)
        self._proxies = [network(name) for name in proxies]
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
            403, 401 or 429.
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
        person = Person()
        if not bearer:
            return person
        if self.needs_token and request.path not in OPEN_PATHS:
            scheme, _, given = request.headers.get("Authorization", "").partition(" ")
            found = self.person_of(given.strip()) if scheme.lower() == "bearer" else None
            if found is None:
                self.count_failure(request)
                detail = "The token is missing or wrong; send 'Authorization: Bearer <token>'."
                raise ApiError(401, detail, WWW_Authenticate="Bearer")
            person = found
        self.count_change(request)
        if request.method not in SAFE_METHODS:
            require_decide(person)
        return person

    def count_failure(self, request: Request) -> None:
        """Count a request without the right token; raise ApiError 429 if there are too many.

        They have limits of their own, for each client and for all together. The right token is
        always accepted, so that nobody can shut others out: it is too long to be guessed.
        """
        # Of the client first: what is rejected there must not use up what all have together.
        wait = self._failed.wait(self.client(request)) or self._failed_in_all.wait("")
        _require_no_wait(wait, "Too many requests without the right token")

    def count_change(self, request: Request) -> None:
        """Count a request that changes something; raise ApiError 429 if there are too many."""
        if request.method not in SAFE_METHODS:
            _require_no_wait(self._limit.wait(self.client(request)), "Too many requests")

    def client(self, request: Request) -> str:
        """Return who sends a request: an address, or the network of one of IPv6.

        ``X-Forwarded-For`` counts only if a trusted proxy sends it, and in it the last address that
        is not of another one: what stands before is what the client itself has sent.
        """
        sender = request.remote_addr or ""
        for hop in reversed(request.headers.get("X-Forwarded-For", "").split(",")):
            if not self._is_proxy(sender):
                break
            named = hop.strip()
            if (match := _HOST.match(named)) is not None:  # some proxies add the port
                named = match[1] or match[2]
            if _address(named) is None:
                break
            sender = named
        address = _address(sender)
        # A client of IPv6 has a network of 2**64 addresses.
        if isinstance(address, ipaddress.IPv6Address):
            return str(ipaddress.ip_network((int(address), 64), strict=False))
        return sender

    def _is_proxy(self, sender: str) -> bool:
        address = _address(sender)
        return address is not None and any(address in each for each in self._proxies)


def _require_no_wait(seconds: float, what: str) -> None:
    if wait := math.ceil(seconds):
        raise ApiError(429, f"{what}; try again in {wait} s.", Retry_After=str(wait))


def network(name: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    """Return the address or network of a proxy.

    Raises
    ------
    ValueError
        It is none.
    """
    try:
        return ipaddress.ip_network(name.strip())
    except ValueError:
        raise ValueError(
            f"{name!r} is not the address of a proxy; expected one such as 10.0.0.7 or 10.0.0.0/8."
        ) from None


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    with suppress(ValueError):
        address = ipaddress.ip_address(text.partition("%")[0])
        inner = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
        return inner or address
    return None


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
