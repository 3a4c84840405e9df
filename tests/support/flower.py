# SPDX-License-Identifier: Apache-2.0
"""The real `flwr` command with a SuperLink of its own, stopped at the end."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
OWN_ENVIRONMENT = {"FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1"}
COLOURS = re.compile(r"\x1b\[\d+m")


@dataclass
class Flower:
    """Runs commands in an environment where nothing is shared with the user's own Flower.

    Parameters
    ----------
    folder : Path
        Home of this environment: HOME, FLWR_HOME and FL_APP_HOME are inside.
    variables : Mapping[str, str]
        Further environment variables; the SuperLink keeps those of the first command.
    """

    folder: Path
    variables: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.fl_app_home = self.folder / "fl-app"
        home = Path.home()
        self.environment = {
            **os.environ,
            "UV_CACHE_DIR": os.environ.get("UV_CACHE_DIR", str(home / ".cache" / "uv")),
            "HOME": str(self.folder),
            "FLWR_HOME": str(self.folder / "flwr"),
            "FL_APP_HOME": str(self.fl_app_home),
            "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": str(free_port()),
            "FLWR_LOCAL_CONTROL_API_PORT": str(free_port()),
            "FLWR_TELEMETRY_ENABLED": "0",
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
            **self.variables,
        }
        self.folder.mkdir(parents=True, exist_ok=True)

    def command(
        self, *words: str, cwd: Path, timeout: float = 540, ok: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end; with ``ok`` it must end with 0."""
        done = subprocess.run(
            words,
            cwd=cwd,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
            check=False,
        )
        done.stdout = COLOURS.sub("", done.stdout)
        if ok:
            assert done.returncode == 0, done.stdout[-4000:]
        return done

    def run(self, app: Path, config: str = "", *options: str, cwd: Path | None = None) -> str:
        """`flwr run APP --stream`: what it printed; the run must have completed."""
        chosen = ["--run-config", config] if config else []
        done = self.command(
            "flwr", "run", str(app), "--stream", *chosen, *options, cwd=cwd or self.folder
        )
        found = re.search(r"started run (\d+)", done.stdout)
        assert found, done.stdout[-4000:]
        listed = self.command("flwr", "list", "--run-id", found.group(1), cwd=self.folder)
        assert "finished:completed" in listed.stdout, listed.stdout + done.stdout[-6000:]
        return done.stdout

    def stop(self) -> None:
        """End the SuperLink and wait until its port is free."""
        port = self.environment["FLWR_LOCAL_SUPERLINK_HTTP_API_PORT"]
        for process in superlinks(port):
            os.kill(process, signal.SIGTERM)
        deadline = time.monotonic() + 20
        while superlinks(port) and time.monotonic() < deadline:
            time.sleep(0.2)
        for process in superlinks(port):
            os.kill(process, signal.SIGKILL)


def superlinks(port: str) -> list[int]:
    """Processes that are a SuperLink on ``port``."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue  # it ended meanwhile
        if any(w.endswith(b"flower-superlink") for w in words) and port.encode() in words:
            found.append(int(entry.name))
    return found


def free_port() -> int:
    """A TCP port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
