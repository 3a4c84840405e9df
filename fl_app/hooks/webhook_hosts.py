# SPDX-License-Identifier: Apache-2.0
"""Allowed targets of webhooks: hosts by name, and the addresses that these names resolve to."""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Collection
from dataclasses import dataclass
from urllib.parse import SplitResult, urlsplit

_HOST = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?", re.ASCII)
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_PORTS = {"http": 80, "https": 443}


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
        parts, port = _split(url)
        host, allowed = _host(parts), _names(hosts)
        if allowed and host not in allowed:
            raise ValueError(
                f"The webhook's host {host!r} is not among the allowed ones, {sorted(allowed)}; "
                "add it to webhook-hosts, or change webhook-url."
            )
        if parts.scheme == "http" and not allowed:
            raise ValueError(
                f"The webhook would go to {host!r} by plain http, for all on the way to read; use "
                "https, or name the host in webhook-hosts."
            )
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
        if parsed in _NAT64:
            inner = ipaddress.IPv4Address(int(parsed) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(str(inner))
    return parsed.is_global and not parsed.is_multicast


def _split(url: str) -> tuple[SplitResult, int]:
    """Split a URL; no message repeats it, since its path may be a secret."""
    example = "expected one such as https://hooks.example.org/fl-app"
    if not url.isascii() or not url.isprintable() or " " in url:
        raise ValueError(
            f"The webhook's URL has characters that are not allowed in URLs; {example}."
        )
    try:
        parts = urlsplit(url)
        port = parts.port or _PORTS.get(parts.scheme, 0)
    except ValueError:
        raise ValueError(f"The webhook's URL cannot be read; {example}.") from None
    if parts.scheme not in _PORTS:
        raise ValueError(f"The webhook's URL starts with {parts.scheme!r}; {example}.")
    if not _is_host(_host(parts)):
        raise ValueError(f"The webhook's URL names no host; {example}.")
    if "@" in parts.netloc:
        raise ValueError("The webhook's URL holds a user or password; leave them out.")
    return parts, port


def _names(hosts: Collection[str]) -> set[str]:
    names = {host.strip("[]").rstrip(".").lower() for host in hosts}
    for name in names:
        if not _is_host(name):
            raise ValueError(
                f"{name!r} in webhook-hosts is not a host; expected names with commas, such as "
                "'hooks.example.org,localhost'."
            )
    return names


def _host(parts: SplitResult) -> str:
    return (parts.hostname or "").rstrip(".")


def _is_host(text: str) -> bool:
    return bool(_HOST.fullmatch(text)) or _is_number(text)


def _is_number(host: str) -> bool:
    """Return whether a host is an address, in any of the forms that browsers accept."""
    try:
        socket.getaddrinfo(host, None, flags=socket.AI_NUMERICHOST)
    except (OSError, UnicodeError):
        return False
    return bool(host)
