# SPDX-License-Identifier: Apache-2.0
"""A hook that posts each event to a URL, signed, with retries, and to allowed hosts only.

It blocks while it retries; call it through ``Hooks`` where that matters.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import ipaddress
import json
import logging
import os
import random
import re
import socket
import ssl
import time
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit

from fl_app.events import Event, as_json

if TYPE_CHECKING:
    import urllib3

logger = logging.getLogger("flwr.fl_app")

SECRET_VARIABLE = "FL_APP_WEBHOOK_SECRET"  # noqa: S105 - a name, no secret
PAUSES = (1.0, 5.0, 20.0, 60.0)
"""Seconds between the attempts for one event, varied by up to a fifth."""
MAX_PAUSE = 300.0
"""Longest pause in seconds that a ``Retry-After`` header can request."""
TRY_AGAIN = (408, 425, 429, 500, 502, 503, 504)
_MIN_KEY = 24
_PREFIX = "whsec_"
_HOST = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?", re.ASCII)
# The translation prefixes of RFC 6052 and RFC 8215, and the compatible form of RFC 4291.
_IPV4_INSIDE = tuple(map(ipaddress.IPv6Network, ("64:ff9b::/96", "64:ff9b:1::/48", "::/96")))
# Documentation (RFC 9637), which Python before 3.13 takes for public.
_NOT_GLOBAL = ipaddress.IPv6Network("3fff::/20")
_GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")
_PORTS = {"http": 80, "https": 443}
_EXAMPLE = "expected one such as https://hooks.example.org/fl-app"


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
        self._pauses = pauses
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
            failure = self._post(event.id, body, number)
            if failure is None:
                return
            if pause is None or failure.final:
                why = failure.reason
                logger.warning(
                    "%r: %s is dropped after attempt %d: %s", self, event.id, number, why
                )
                return
            time.sleep(max(pause * self._chance.uniform(0.8, 1.2), failure.pause))

    def _post(self, event_id: str, body: bytes, number: int) -> _Failure | None:
        """Make an attempt; return why it failed."""
        from urllib3.exceptions import HTTPError

        try:
            # Resolved and checked here, for each attempt: a name may lead to a private address, and
            # to another one a moment later. `requests` would resolve it again after the check,
            # follow redirects and use a proxy.
            addresses = self._target.addresses()
            answer = self._send(addresses[number % len(addresses)], event_id, body)
        except ForbiddenAddressError as error:
            return _Failure(str(error), final=True)
        except (HTTPError, OSError) as error:
            return _Failure(f"{type(error).__name__}: {error}")
        if 200 <= answer.status < 300:
            return None
        if 300 <= answer.status < 400:
            return _Failure(f"it redirects ({answer.status}), which is not followed", final=True)
        return _Failure(
            f"it answers {answer.status}",
            final=answer.status not in TRY_AGAIN,
            pause=_seconds(answer.headers.get("Retry-After", "")),
        )

    def _send(self, address: str, event_id: str, body: bytes) -> urllib3.BaseHTTPResponse:
        """Return the answer, of which only status and headers are read."""
        import urllib3  # a tenth of the import of `fl_app.strategy`

        target, timestamp = self._target, int(time.time())
        headers = {
            "Host": target.authority,
            "Content-Type": "application/json",
            "User-Agent": "fl-app",
            "webhook-id": event_id,
            "webhook-timestamp": str(timestamp),
            "webhook-signature": sign(self._key, event_id, timestamp, body),
        }
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
            return answer


class _Failure(NamedTuple):
    """Why an attempt failed, whether it was the last, and the pause that the receiver requests."""

    reason: str
    final: bool = False
    pause: float = 0.0


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
    import urllib3
    from urllib3.exceptions import InvalidHeader

    try:
        return max(0.0, min(urllib3.Retry().parse_retry_after(retry_after), MAX_PAUSE))
    except (InvalidHeader, ValueError, OverflowError, LookupError, TypeError):
        return 0.0  # the last two of Python's own parser of dates


class ForbiddenAddressError(ValueError):
    """A host resolves to an address that webhooks may not be sent to."""


@dataclass(frozen=True)
class Target:
    """A checked URL.

    Attributes
    ----------
    scheme, host, port, path : str, str, int, str
        Parts of the URL; the path includes the query.
    named : bool
        Whether the host was allowed by name.
    """

    scheme: str
    host: str
    port: int
    path: str
    named: bool

    @classmethod
    def of(cls, url: str, hosts: Collection[str] = ()) -> Target:
        """Check a URL.

        Parameters
        ----------
        url : str
            ``https://host/path``.
        hosts : Collection[str]
            Allowed hosts, which may be private and use plain http. Empty: every public host is
            allowed, by https.

        Raises
        ------
        ValueError
            The URL or a host cannot be used.
        """
        allowed = {name.strip("[]").rstrip(".").lower() for name in hosts}
        for name in allowed:
            if not _is_host(name):
                raise ValueError(
                    f"{name!r} in webhook-hosts is not a host; expected names with commas, such as "
                    "'hooks.example.org,localhost'."
                )
        # No message repeats the URL, since its path may be a secret.
        if not url.isascii() or not url.isprintable() or " " in url:
            raise ValueError(
                f"The webhook's URL has characters that are not allowed in URLs; {_EXAMPLE}."
            )
        try:
            parts = urlsplit(url)
            port = parts.port or _PORTS.get(parts.scheme, 0)
        except ValueError:
            raise ValueError(f"The webhook's URL cannot be read; {_EXAMPLE}.") from None
        host = (parts.hostname or "").rstrip(".")
        problems = {
            f"'s URL starts with {parts.scheme!r}; {_EXAMPLE}": parts.scheme not in _PORTS,
            f"'s URL names no host; {_EXAMPLE}": not _is_host(host),
            "'s URL holds a user or password; leave them out": "@" in parts.netloc,
            f"'s host {host!r} is not among the allowed ones, {sorted(allowed)}; add it to "
            "webhook-hosts, or change webhook-url": allowed and host not in allowed,
            f" would go to {host!r} by plain http, for all on the way to read; use https, or name "
            "the host in webhook-hosts": parts.scheme == "http" and not allowed,
        }
        for problem, is_there in problems.items():
            if is_there:
                raise ValueError(f"The webhook{problem}.")
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        target = cls(parts.scheme, host, port, path, bool(allowed))
        if _is_number(host):
            target.addresses()  # needs no name server
        return target

    @property
    def authority(self) -> str:
        """The value of the ``Host`` header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"

    def addresses(self) -> list[str]:
        """Resolve the host and return its addresses.

        Raises
        ------
        ForbiddenAddressError
            An address is not public, and the host is not allowed by name.
        OSError
            There is no such host.
        """
        try:
            entries = socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)
        except UnicodeError as error:
            raise OSError("it is not a host name") from error
        addresses = list(dict.fromkeys(str(entry[4][0]) for entry in entries))
        # A private address needs its host in the list. This guards only against mistakes and name
        # servers of others: whoever may change the settings may run code on the server as well.
        private = [each for each in addresses if not is_public(each)]
        if private and not self.named:
            raise ForbiddenAddressError(
                f"The webhook's host {self.host!r} is at {private[0]}, which is not a public "
                "address; name the host in webhook-hosts if that is right."
            )
        return addresses


def is_public(address: str) -> bool:
    """Return whether an address is public; an IPv4 address within an IPv6 one is checked too."""
    parsed = ipaddress.ip_address(address)
    if isinstance(parsed, ipaddress.IPv6Address):
        inner = parsed.ipv4_mapped or parsed.sixtofour or (parsed.teredo or (None, None))[1]
        if any(parsed in network for network in _IPV4_INSIDE):
            inner = ipaddress.IPv4Address(int(parsed) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(str(inner))
        if parsed not in _GLOBAL_UNICAST or parsed in _NOT_GLOBAL:
            return False
    return parsed.is_global and not parsed.is_multicast


def _is_host(text: str) -> bool:
    return bool(_HOST.fullmatch(text)) or _is_number(text)


def _is_number(host: str) -> bool:
    """Return whether a host is an address, in any of the forms that browsers accept."""
    try:
        socket.getaddrinfo(host, None, flags=socket.AI_NUMERICHOST)
    except (OSError, UnicodeError):
        return False
    return bool(host)
