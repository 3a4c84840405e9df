# SPDX-License-Identifier: Apache-2.0
"""Flower's local SuperLink, the one that `flwr run` uses if no other is named: start and stop it.

Flower gives it 15 seconds to start and kills it after that, also in the middle of a migration of
its database, which then can never be opened again. Here it may take minutes, and is never killed.
"""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import sysconfig
import tempfile
import time
import tomllib
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from alembic.util import CommandError
from sqlalchemy.exc import SQLAlchemyError

from fl_app.deploy.errors import DeploymentError
from fl_app.deploy.processes import HOST, answers, end, environment, last_lines, program
from fl_app.flower_internals import flower_home, open_state
from fl_registry.redaction import one_line

if TYPE_CHECKING:
    import psutil

PORT_VARIABLE, CONTROL_PORT_VARIABLE = (
    "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT",
    "FLWR_LOCAL_CONTROL_API_PORT",
)
OWN_ENVIRONMENT = "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION"
"""Set in a SuperLink whose runs use its own environment; else Flower builds one for each run."""
_POLLING = {"FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.1"}
"""Seconds until Flower sees that a run waits, 1 by default."""
_LOCAL_ADDRESSES = (":local:", ":local-in-memory:")
_GRACE_SECONDS = 20.0


@dataclass(frozen=True)
class LocalSuperLink:
    """The local SuperLink of this account.

    Parameters
    ----------
    port, control_port : int
        Its ports on this machine.
    folder : Path
        Where its database and its logs are.
    start_seconds : float
        Seconds that it may take to start.
    """

    port: int
    control_port: int
    folder: Path
    start_seconds: float = 300.0

    @classmethod
    def of_this_account(cls) -> LocalSuperLink:
        """Return the one that Flower's environment variables name, or its default."""
        ports = {PORT_VARIABLE: "39091", CONTROL_PORT_VARIABLE: "39093"}
        ports |= {name: os.environ[name] for name in ports if name in os.environ}
        for name, text in ports.items():
            if not text.isdecimal():
                raise DeploymentError(f"{name} is {text!r}, expected the number of a port.")
        port, control_port = map(int, ports.values())
        return cls(port, control_port, flower_home() / "local-superlink")

    @property
    def database(self) -> Path:
        """Flower's state: runs, nodes, messages."""
        return self.folder / "state.db"

    @property
    def start_log(self) -> Path:
        """What it printed at its start; Flower's own log has nothing of a failed one."""
        return self.folder / "start.log"

    @property
    def foreign(self) -> str:
        """What to say if `answers` and there is no `process`."""
        return (
            f"What answers on port {self.port} belongs to another account, so a run would use that "
            f"account's environment and home; set {PORT_VARIABLE} and {CONTROL_PORT_VARIABLE} to "
            "two free ports."
        )

    def database_problem(self) -> str:
        """Return why this Flower cannot open the state database; '' if it can, or there is none.

        An older revision is tried on a copy, since only that shows one that was left half-made.
        """
        if not self.database.is_file():
            return ""
        remedy = (
            f"move its folder away (`mv {self.folder} {self.folder}.old`: Flower's list of past "
            "runs starts anew, models and versions stay)"
        )
        try:
            with tempfile.TemporaryDirectory() as folder:
                copy = Path(folder) / "state.db"
                address = f"{self.database.as_uri()}?mode=ro"
                with (
                    closing(sqlite3.connect(address, uri=True)) as old,
                    closing(sqlite3.connect(copy)) as new,
                ):
                    old.backup(new)
                open_state(copy)
        except CommandError as error:
            newer = f"is of a newer Flower than {version('flwr')} ({one_line(error)})"
            return f"{self.database} {newer}; install that, or {remedy}."
        except (SQLAlchemyError, sqlite3.Error) as error:
            why = one_line(error.__cause__ or error, 200)
            return f"{self.database} is half-made or damaged ({why}); {remedy}."
        return ""

    def answers(self) -> bool:
        """Whether a SuperLink, of whatever account, answers on the port."""
        return answers(f"http://{HOST}:{self.port}/health")

    def process(self) -> psutil.Process | None:
        """Return its process; None if none of this account runs on the port."""
        import psutil

        for process in psutil.process_iter():
            if "flower-superlink" in _names(process):
                with suppress(psutil.Error):  # it has ended meanwhile
                    mine = process.uids().real == os.getuid()
                    if mine and str(self.port) in process.cmdline():
                        return process
        return None

    def ensure(self, say: Callable[[str], object]) -> None:
        """Have one that runs apps in this Python environment.

        Parameters
        ----------
        say : Callable[[str], object]
            Takes one line for the user.

        Raises
        ------
        DeploymentError
            It belongs to another account, is busy with a run of another environment, or does not
            start.
        """
        process = self.process()
        if process is None and self.answers():
            raise DeploymentError(self.foreign)
        if process is not None and not runs_this_environment(process):
            if has_runs(process):
                raise DeploymentError(
                    f"The SuperLink on port {self.port} (process {process.pid}) is busy with a run "
                    "of another environment; wait for it, or end both with `fl-app stop --force`."
                )
            say(
                f"The SuperLink on port {self.port} was started for another environment and has "
                "nothing to do; it is replaced."
            )
            self.stop(process)
            process = None
        if process is None:
            self._start(say)

    def stop(self, process: psutil.Process) -> None:
        """End it with all that it has started, by SIGKILL after 20 seconds."""
        started = process.children(recursive=True)
        end([process], _GRACE_SECONDS)  # it ends its own; what is left has lost its parent
        end(started, _GRACE_SECONDS)

    def _start(self, say: Callable[[str], object]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        command = [program("flower-superlink"), "--insecure"]
        command += ["--simulation", "--isolation", "subprocess", "--host", HOST]
        command += ["--control-api-address", f"{HOST}:{self.control_port}"]
        command += ["--port", str(self.port), "--database", str(self.database)]
        command += ["--log-file", str(self.folder / "superlink.log")]
        command += ["--log-rotation-interval-hours", "24", "--log-rotation-backup-count", "7"]
        say(
            f"Starting Flower's local SuperLink on port {self.port}: seconds as a rule, up to a "
            "minute the first time. `fl-app stop` ends it."
        )
        began = time.monotonic()
        with self.start_log.open("wb") as log:
            process = subprocess.Popen(
                command,
                env=environment({OWN_ENVIRONMENT: "1", **_POLLING}),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # it stays when this command ends
            )
        next_line = 15.0
        while not self.answers():
            waited = time.monotonic() - began
            if process.poll() is not None or waited > self.start_seconds:
                raise DeploymentError(self._failure(process.poll()))
            if waited > next_line:
                say(f"It has been starting for {waited:.0f} s ...")
                next_line += 15.0
            time.sleep(0.2)

    def _failure(self, code: int | None) -> str:
        if code and (problem := self.database_problem()):
            return problem
        what = f"ended with status {code}; `fl-app doctor` checks its database and port"
        if code is None:
            what = (
                f"did not answer within {self.start_seconds:.0f} s and goes on starting; try again"
            )
        log = self.start_log
        return f"The local SuperLink {what}. {log} ends with: {last_lines(log)}."


def runs_this_environment(process: psutil.Process) -> bool:
    """Whether a SuperLink runs apps in this Python environment, as it is now."""
    here = Path(process.cmdline()[0]).parent == Path(sys.executable).parent
    itself = process.environ().get(OWN_ENVIRONMENT) == "1"
    return here and itself and process.create_time() > newest_package()[1].timestamp()


def flower_of(process: psutil.Process) -> str:
    """Return the version of Flower in a SuperLink's environment; '' if it cannot be seen."""
    environment = Path(process.cmdline()[0]).parents[1]
    found = environment.glob("lib/python*/site-packages/flwr-*.dist-info")
    return next((folder.name.split("-")[1].removesuffix(".dist") for folder in found), "")


def newest_package() -> tuple[str, datetime]:
    """Return which package of this environment was installed last, and when."""
    folders = Path(sysconfig.get_path("purelib")).glob("*.dist-info")
    installed = {folder: folder.stat().st_mtime for folder in folders}
    newest = max(installed, key=lambda folder: installed[folder])
    name = newest.name.partition("-")[0].replace("_", "-")
    return name, datetime.fromtimestamp(installed[newest], UTC)


def has_runs(process: psutil.Process, seconds: float = 10.0) -> bool:
    """Whether a SuperLink is busy with a run, whose program may take seconds to end after it."""
    programs = {"flwr-simulation", "flwr-serverapp", "flwr-agentapp"}
    deadline = time.monotonic() + seconds
    while any(programs & _names(child) for child in process.children(recursive=True)):
        if time.monotonic() > deadline:
            return True
        time.sleep(0.2)
    return False


def _names(process: psutil.Process) -> set[str]:
    """The names of a process's program and of the script that it runs; empty if it has ended."""
    import psutil

    with suppress(psutil.Error):
        return {Path(word).name for word in process.cmdline()[:2]}
    return set()


def is_local(superlink: str | None) -> bool:
    """Whether a connection in Flower's configuration is the local SuperLink.

    Parameters
    ----------
    superlink : str | None
        The connection's name; None for the default one.
    """
    file = flower_home() / "config.toml"
    if not file.is_file():
        return superlink in {None, "local"}
    try:
        connections = tomllib.loads(file.read_text("utf-8")).get("superlink", {})
    except (tomllib.TOMLDecodeError, UnicodeDecodeError):
        return False  # `flwr` says what is wrong with it
    chosen = connections.get(superlink or connections.get("default", ""), {})
    return isinstance(chosen, dict) and chosen.get("address") in _LOCAL_ADDRESSES
