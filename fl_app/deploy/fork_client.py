# SPDX-License-Identifier: Apache-2.0
"""What `flwr-clientapp` leads to under `warm.py`: asks for a fork, and ends as the fork ends.

It is run as a file by a Python without site-packages, so that it starts in milliseconds.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import TextIO


def launch(address: str, program: str, args: Sequence[str]) -> int:
    """Have `args` served by a fork of the process at `address`; return the fork's exit code.

    If nobody is there any more, this process becomes `program` itself.
    """
    with socket.socket(socket.AF_UNIX) as connection:
        try:
            lines = _ask(connection, address, args)
            fork = int(next(lines))
        except (OSError, ValueError, StopIteration):
            os.execv(program, [program, *args])  # noqa: S606 - the very program that was asked for

        def hand_on(number: int, frame: FrameType | None) -> None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(fork, number)

        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, hand_on)
        return int(next(lines, "1"))  # killed, it says nothing


def _ask(connection: socket.socket, address: str, args: Sequence[str]) -> TextIO:
    connection.connect(address)
    socket.send_fds(connection, [b"\n"], [1, 2])
    order = {"args": list(args), "folder": str(Path.cwd()), "environment": dict(os.environ)}
    connection.sendall(json.dumps(order).encode() + b"\n")
    return connection.makefile("r", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(launch(sys.argv[1], sys.argv[2], sys.argv[3:]))
