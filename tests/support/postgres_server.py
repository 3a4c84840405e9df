# SPDX-License-Identifier: Apache-2.0
"""PostgreSQL for the tests of whatever keeps its memory there: one cluster for all of them."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def postgres_programs() -> Path | None:
    """Return the folder of PostgreSQL's programs, or None where they are not installed."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if found:
        return found[-1].parent
    path = shutil.which("initdb")
    return Path(path).parent if path else None


@contextlib.contextmanager
def postgres(programs: Path) -> Iterator[str]:
    """Run a PostgreSQL cluster of our own; yield the address of its database.

    It is not below the tests' own folders: those are closed to the user who must run it.
    """
    port = free_port()
    user = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
    with tempfile.TemporaryDirectory(prefix="fl-app-postgres-") as name:
        folder = Path(name)
        data = folder / "data"
        if user:
            shutil.chown(folder, "postgres")
        _run([*user, programs / "initdb", "-D", data, "-U", "postgres", "-A", "trust", "-N"])
        options = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1 -c fsync=off"
        control = [*user, programs / "pg_ctl", "-D", data, "-w"]
        _run([*control, "-l", folder / "postgres.log", "-o", options, "start"])
        try:
            yield f"postgresql://postgres@127.0.0.1:{port}/postgres"
        finally:
            _run([*control, "-m", "immediate", "stop"])


def _run(command: Sequence[str | Path]) -> None:
    # The cluster keeps whatever output it is given, so a pipe would never come to its end.
    with tempfile.TemporaryFile() as log:
        done = subprocess.run(command, check=False, cwd="/", stdout=log, stderr=log, timeout=90)
        log.seek(0)
        assert done.returncode == 0, log.read().decode()
