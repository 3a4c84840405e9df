# SPDX-License-Identifier: Apache-2.0
"""The program `flwr-clientapp` of `fork_server`: requests a fork, and ends when the fork ends.

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


def launch(address: str, program: str, args: Sequence[str]) -> int:
    """Have a fork of the server run the program, or run the program if the server has ended.

    Parameters
    ----------
    address : str
        Path of the server's socket.
    program : str
        Path of the real program.
    args : Sequence[str]
        Its arguments.

    Returns
    -------
    int
        The fork's exit code.
    """
    with socket.socket(socket.AF_UNIX) as connection:
        try:
            connection.connect(address)
            socket.send_fds(connection, [b"\n"], [1, 2])
            request = {"args": args, "folder": str(Path.cwd()), "environment": dict(os.environ)}
            connection.sendall(json.dumps(request).encode() + b"\n")
            lines = connection.makefile("r", encoding="utf-8")
            fork = int(next(lines))
        except (OSError, ValueError, StopIteration):
            os.execv(program, [program, *args])  # noqa: S606 - the requested program itself

        def forward(number: int, frame: FrameType | None) -> None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(fork, number)

        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, forward)
        return int(next(lines, "1"))  # a fork that was killed sends no code


if __name__ == "__main__":
    sys.exit(launch(sys.argv[1], sys.argv[2], sys.argv[3:]))
