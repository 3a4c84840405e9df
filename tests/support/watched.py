# SPDX-License-Identifier: Apache-2.0
"""An audit hook that refuses, and remembers, what a process must not do; it cannot be taken off."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import Any

PROGRAMS = (
    "subprocess.Popen",
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.spawn",
    "os.fork",
    "os.forkpty",
    "pty.spawn",
)
NETWORK = (
    "socket.connect",
    "socket.bind",
    "socket.getaddrinfo",
    "socket.gethostbyname",
    "socket.sendto",
    "urllib.Request",
)
CODE = ("exec", "ctypes.dlopen", "marshal.loads", "pickle.find_class")
CHANGES = ("os.mkdir", "os.rename", "os.link", "os.symlink", "os.remove", "os.rmdir", "os.truncate")
REBUILDS = (
    "collections.OrderedDict",
    "torch._utils._rebuild_tensor_v2",
    "torch._utils._rebuild_parameter",
    "torch.FloatStorage",
)
"""What a pickle may name: they make a tensor of a storage, and run nothing."""
TWO_PATHS = ("os.rename", "os.link", "os.symlink")


class Watch:
    """Refuses the events that are named, and files outside of a folder.

    Parameters
    ----------
    allowed : Path
        The folder in which files may be written, and with `reading` the only one to be read.
    never : Collection[str]
        Audit events.
    packages : Collection[str] | None
        What may be imported beside the standard library; None: anything.
    hidden : Collection[str]
        Files outside that not even may be read.
    """

    def __init__(
        self,
        allowed: Path,
        never: Collection[str],
        *,
        packages: Collection[str] | None = None,
        hidden: Collection[str] = (),
    ) -> None:
        self.allowed, self.never = str(allowed.resolve()), frozenset(never)
        self.packages, self.hidden = packages, tuple(hidden)
        self.hosts: frozenset[str] = frozenset()  # whom to look up and, in vain, to connect to
        self.tried: list[str] = []
        self.active = True
        sys.addaudithook(self._heard)

    def _heard(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.active:
            return
        if event == "socket.connect" and arguments[1][0] in self.hosts:
            raise ConnectionRefusedError("nobody is there")
        if self._is_bad(event, arguments):
            self.tried.append(f"{event} {arguments!r:.200}")
            raise PermissionError(f"{event} is refused")

    def _is_bad(self, event: str, arguments: tuple[Any, ...]) -> bool:
        rebuilds = event == "pickle.find_class" and ".".join(map(str, arguments)) in REBUILDS
        if event in self.never and not rebuilds:
            return event != "socket.getaddrinfo" or not self._may_look_up(str(arguments[0]))
        if event == "import" and self.packages is not None:
            package = str(arguments[0]).partition(".")[0]
            return package not in self.packages and package not in sys.stdlib_module_names
        if event == "sqlite3.connect":
            return str(arguments[0]) != ":memory:" and not self._is_allowed(arguments[0])
        if event == "open":
            return self._is_bad_open(arguments)
        if event not in CHANGES:
            return False
        changed = arguments[1] if event in TWO_PATHS else arguments[0]
        return not self._is_allowed(changed, arguments[1:])

    def _may_look_up(self, host: str) -> bool:
        """Whether a host is one that may be asked for, or is an address, which asks nobody."""
        if host in ("", *self.hosts) or ":" in host:
            return True
        with suppress(OSError, UnicodeError):
            return bool(socket.inet_aton(host))
        return False

    def _is_bad_open(self, arguments: tuple[Any, ...]) -> bool:
        path, writes = arguments[0], int(arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if isinstance(path, int):
            return False
        read_too = normal(os.fsdecode(path)).startswith(self.hidden)
        return bool(writes or read_too) and not self._is_allowed(path)

    def _is_allowed(self, path: Any, more: tuple[Any, ...] = ()) -> bool:
        if isinstance(path, int):
            return True
        text = os.fsdecode(path).removeprefix("file:").partition("?")[0]
        folder = next((n for n in more[-1:] if isinstance(n, int) and n >= 0), None)
        start = Path() if folder is None else Path(f"/proc/self/fd/{folder}").resolve()
        return normal(str((start / text).absolute())).startswith(self.allowed)


def normal(path: str) -> str:
    """Return a path without dots; two slashes at its start are one, as systems read them."""
    text = os.path.normpath(path)
    return f"/{text.lstrip('/')}" if text.startswith("/") else text
