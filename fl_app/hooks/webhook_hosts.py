# SPDX-License-Identifier: Apache-2.0
"""Where a webhook may go: hosts by name, and the addresses that these names lead to."""

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
    """A host leads to an address that webhooks may not be sent to."""


@dataclass(frozen=True)
class Target:
    """A URL that was checked.

    Attributes
    ----------
    scheme, host, port, path : str, str, int, str
        Its parts; the path with its query.
    named : bool
        Whether the host is one that was allowed by name.
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
            The hosts it may name. Without any it may name any public one, by https; those that are
            named may be private, and be asked by plain http.

        Raises
        ------
        ValueError
            One sentence on what is wrong with either.
        """
        parts, port = _split(url)
        host, allowed = _host(parts), _names(hosts)
        if allowed and host not in allowed:
            raise ValueError(
                f"The webhook's host {host!r} is not among those allowed, {sorted(allowed)}; add "
                "it to webhook-hosts, or change webhook-url."
            )
        if parts.scheme == "http" and not allowed:
            raise ValueError(
                f"The webhook would go to {host!r} by plain http, for all on the way to read; use "
                "https, or name the host in webhook-hosts."
            )
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        target = cls(parts.scheme, host, port, path, bool(allowed))
        if _is_number(host):
            target.addresses()  # takes no name server
        return target

    @property
    def authority(self) -> str:
        """The host as a ``Host`` header has it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"

    def addresses(self) -> list[str]:
        """Look the host up and return where it is.

        Raises
        ------
        ForbiddenAddressError
            If any address is not public and the host is not allowed by name.
        OSError
            If there is no such host.
        """
        try:
            found = socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)
        except UnicodeError as error:
            raise OSError("it is no name of a host") from error
        addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
        private = [each for each in addresses if not is_public(each)]
        if private and not self.named:
            raise ForbiddenAddressError(
                f"The webhook's host {self.host!r} is at {private[0]}, which is not a public "
                "address; name the host in webhook-hosts if that is right."
            )
        return addresses


def is_public(address: str) -> bool:
    """Return whether an address is one of the public internet, also where it is written as IPv6."""
    found = ipaddress.ip_address(address)
    if isinstance(found, ipaddress.IPv6Address):
        inner = found.ipv4_mapped or found.sixtofour or (found.teredo or (None, None))[1]
        if found in _NAT64:
            inner = ipaddress.IPv4Address(int(found) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(str(inner))
    return found.is_global and not found.is_multicast


def _split(url: str) -> tuple[SplitResult, int]:
    """Take a URL apart; no message repeats it, since its path may be a secret."""
    example = "expected one such as https://hooks.example.org/fl-app"
    if not url.isascii() or not url.isprintable() or " " in url:
        raise ValueError(f"The webhook's URL has characters that no URL has; {example}.")
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
                f"{name!r} in webhook-hosts is no host; expected names with commas, such as "
                "'hooks.example.org,localhost'."
            )
    return names


def _host(parts: SplitResult) -> str:
    return (parts.hostname or "").rstrip(".")


def _is_host(text: str) -> bool:
    return bool(_HOST.fullmatch(text)) or _is_number(text)


def _is_number(host: str) -> bool:
    """Whether a host is an address, which any of the forms that browsers know is."""
    try:
        socket.getaddrinfo(host, None, flags=socket.AI_NUMERICHOST)
    except (OSError, UnicodeError):
        return False
    return bool(host)
