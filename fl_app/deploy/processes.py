# SPDX-License-Identifier: Apache-2.0
"""The processes of a deployment: how each is started and checked, and what keeps them up.

A process that ends is started again, after all that it had started has ended.
"""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from signal import Signals
from threading import Event
from typing import TYPE_CHECKING

from fl_app.deploy.errors import DeploymentError, explained
from fl_app.deploy.folder import Layout
from fl_registry.redaction import one_line

if TYPE_CHECKING:
    import psutil

HOST = "127.0.0.1"
DATABASE_VARIABLE = "FL_APP_DATABASE_URL"
"""May hold the address of MLflow's database; other processes than MLflow do not get it."""
END_ORDER = ("node-*", "superlink", "mlflow", "*")
"""Patterns of names in the order in which services end: SuperNodes sign off at the SuperLink."""
_HEALTH_SECONDS = 3.0
# All processes inherit these two variables, and are identified by them, also after this program was
# killed. A process group would not do: Flower's SuperExec starts a session of its own. Nor would a
# file with the process id, which another process may have by then.
FOLDER_VARIABLE, SERVICE_VARIABLE = "FL_APP_DEPLOYMENT", "FL_APP_SERVICE"
_STABLE_SECONDS = 60.0  # a process that ran for longer has not failed at its start
_LONGEST_PAUSE = 60.0
_LOG_LINES = 5


@dataclass(frozen=True)
class Service:
    """One process of a deployment.

    Parameters
    ----------
    name : str
        Its name in messages, and of its log.
    command : Sequence[str]
        Program and arguments; no secrets, since every user of the machine may list them.
    is_healthy : Callable[[], bool]
        Whether it answers; takes a few seconds at most.
    environment : Mapping[str, str]
        All its environment variables.
    restart_after : float
        Seconds to wait before it is started again after it has ended.
    """

    name: str
    command: Sequence[str]
    is_healthy: Callable[[], bool]
    environment: Mapping[str, str] = field(repr=False)
    restart_after: float = 2.0


def mlflow_server(layout: Layout, port: int, *, database: str) -> Service:
    """MLflow's server: records in the database, files of versions and runs behind its proxy."""
    command = [sys.executable, "-m", "mlflow", "server", "--host", HOST, "--port", str(port)]
    command += ["--serve-artifacts", "--artifacts-destination", str(layout.artifacts)]
    command += ["--default-artifact-root", "mlflow-artifacts:/", "--workers", "1"]
    own = {
        "MLFLOW_BACKEND_STORE_URI": database,
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    address = f"http://{HOST}:{port}/health"
    return Service("mlflow", command, lambda: answers(address), environment(own))


def superlink(layout: Layout, port: int, *, mlflow: str) -> Service:
    """Flower's SuperLink with TLS, for registered SuperNodes only; it starts ServerApps.

    These run in the environment of this process: the one that Flower would build for each run would
    be the same, 20 seconds later.
    """
    keys = layout.keys
    command = [program("flower-superlink"), "--host", HOST, "--port", str(port)]
    command += ["--ssl-ca-certfile", str(keys.authority), "--ssl-certfile", str(keys.certificate)]
    command += ["--ssl-keyfile", str(keys.key), "--enable-supernode-auth"]
    command += [
        "--database",
        str(layout.folder / "superlink" / "state.db"),
        "--disable-runtime-dependency-installation",
    ]
    # MLflow's address is not in the run config, which shows all values: it may hold a password.
    own = {"FL_APP_HOME": str(layout.home), "FL_APP_MLFLOW_TRACKING_URI": mlflow}
    address = f"https://{HOST}:{port}/health"
    return Service("superlink", command, lambda: answers(address, keys.authority), environment(own))


def supernode(layout: Layout, number: int, *, superlink_port: int, data: str) -> Service:
    """A SuperNode with a key and data of its own; only its own processes use its port."""
    keys, port = layout.keys, free_port()
    command = [program("fl-app"), "supernode", "--superlink", f"{HOST}:{superlink_port}"]
    command += ["--root-certificates", str(keys.authority)]
    command += ["--auth-supernode-private-key", str(keys.node(number).private)]
    command += ["--node-config", f'data="{data}"', "--host", HOST, "--port", str(port)]
    address, home = f"http://{HOST}:{port}/health", str(layout.node(number) / "home")
    own = environment({"FL_APP_HOME": home})
    # Flower's SuperLink gives up a killed SuperNode after two missed heartbeats of 30 seconds.
    # Before that it refuses the key, and a node that came back at that very moment would have the
    # round wait for replies that the new process does not know of.
    return Service(f"node-{number}", command, lambda: answers(address), own, restart_after=65.0)


def environment(own: Mapping[str, str]) -> dict[str, str]:
    """Return this process's environment with `own`, and this Python's programs first in PATH."""
    inherited = {key: value for key, value in os.environ.items() if key != DATABASE_VARIABLE}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    return {**inherited, "PATH": path, "PYTHONUNBUFFERED": "1", **own}


def answers(address: str, authority: Path | None = None) -> bool:
    """Whether a server answers with status 200; with an authority, it must have its certificate."""
    try:
        trusted = ssl.create_default_context(cafile=authority) if authority else None
        with urllib.request.urlopen(address, timeout=_HEALTH_SECONDS, context=trusted) as reply:  # noqa: S310
            return bool(reply.status == 200)
    except OSError:
        return False


def require_free(port: int, option: str) -> None:
    """Raise `DeploymentError` if a port of this machine is in use."""
    what, advice = f"Port {port} of this machine cannot be used", f"name another with {option}"
    with explained(what, advice), socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((HOST, port))


def free_port() -> int:
    """Return a TCP port of this machine that is not in use."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def program(name: str) -> str:
    """Return the path of a program of this Python environment, which need not be on PATH."""
    return str(Path(sys.executable).with_name(name))


class StoppedError(Exception):
    """The deployment was asked to end during a wait."""


@dataclass
class _Running:
    """A service with its newest process; `restart_at` is set while the process has ended."""

    service: Service
    process: subprocess.Popen[bytes]
    started: float
    failures: int = 0
    restart_at: float | None = None
    healthy: bool = True

    def check(self) -> bool:
        """Whether it runs and answers now."""
        runs = self.restart_at is None and self.process.poll() is None
        self.healthy = runs and self.service.is_healthy()
        return self.healthy


@dataclass
class Processes:
    """The processes of one deployment.

    Parameters
    ----------
    layout : Layout
        The deployment's folder: for logs, and to identify the processes.
    say : Callable[[str], object]
        Takes one line for the user.
    ended : Event
        Set when the deployment is to end; ends every wait.
    poll_seconds : float
        Seconds between looks for ended processes.
    health_seconds : float
        Seconds between health checks.
    grace_seconds : float
        Seconds that a process has to end before it is killed.
    """

    layout: Layout
    say: Callable[[str], object]
    ended: Event
    poll_seconds: float = 0.5
    health_seconds: float = 10.0
    grace_seconds: float = 20.0
    _running: list[_Running] = field(default_factory=list, init=False)

    def start(self, service: Service) -> None:
        """Start a process.

        Raises
        ------
        DeploymentError
            The program cannot be run.
        """
        self._running.append(_Running(service, self._spawn(service), time.monotonic()))

    def wait(self, ready: Callable[[], bool], seconds: float, what: str) -> None:
        """Wait for a condition; meanwhile, processes that end are started again.

        Parameters
        ----------
        ready : Callable[[], bool]
            The condition.
        seconds : float
            How long to wait.
        what : str
            What is waited for, as the subject of an error.

        Raises
        ------
        DeploymentError
            Time is up, or a process has ended twice; with the end of its log.
        StoppedError
            The deployment is to end.
        """
        deadline = time.monotonic() + seconds
        while not ready():
            if self.ended.wait(self.poll_seconds):
                raise StoppedError
            self._restart()
            failed = [one for one in self._running if one.restart_at or not one.healthy]
            hopeless = [one for one in failed if one.failures > 1]
            if hopeless or time.monotonic() > deadline:
                logs = [self.layout.log(one.service.name) for one in hopeless or failed]
                ends = "".join(f" {log} ends with: {last_lines(log)}." for log in logs[:1])
                raise DeploymentError(f"{what} did not come up.{ends}")

    def wait_for(self, names: Sequence[str], seconds: float) -> None:
        """Wait until processes answer; raises as `wait` does."""
        chosen = [one for one in self._running if one.service.name in names]
        # All are checked each time, so that an error is about one that does not answer.
        self.wait(
            lambda: not [one for one in chosen if not one.check()], seconds, " and ".join(names)
        )

    def watch(self) -> None:
        """Restart what ends, and report what no longer answers, until the deployment is to end."""
        checked = time.monotonic()
        while not self.ended.wait(self.poll_seconds):
            self._restart()
            if time.monotonic() - checked >= self.health_seconds:
                self._report_health()
                checked = time.monotonic()

    def stop(self) -> None:
        """End all processes of the folder, and all that these have started.

        Those that an earlier start has left end as well.
        """
        # The ServerApp first, while all that it needs is there: its session can then be resumed.
        end(find(self.layout.folder, program="flwr-serverapp"), self.grace_seconds)
        for service in END_ORDER:
            end(find(self.layout.folder, service), self.grace_seconds)
        self._running.clear()

    def _restart(self) -> None:
        """Note which processes have ended, and start those again whose pause is over."""
        now = time.monotonic()
        for one in self._running:
            code = one.process.poll()
            if code is not None and one.restart_at is None:
                # A ServerApp outlives a killed SuperLink by seconds and would be a second writer.
                end(find(self.layout.folder, one.service.name), self.grace_seconds)
                one.failures = one.failures + 1 if now - one.started < _STABLE_SECONDS else 1
                longer = min(one.service.restart_after * 2 ** (one.failures - 1), _LONGEST_PAUSE)
                pause = max(longer, one.service.restart_after)
                one.restart_at = time.monotonic() + pause
                how = f"ended with status {code}"
                if code < 0:
                    how = f"was ended by {Signals(-code).name}"
                self.say(f"{one.service.name} {how}. It is started again in {pause:.0f} s.")
            elif one.restart_at is not None and now >= one.restart_at:
                one.process, one.started = self._spawn(one.service), time.monotonic()
                one.restart_at, one.healthy = None, False

    def _report_health(self) -> None:
        for one in self._running:
            before, now = one.healthy, one.check()
            if now and not before:
                self.say(f"{one.service.name} answers again.")
            elif before and not now and one.restart_at is None:
                log = self.layout.log(one.service.name)
                self.say(f"{one.service.name} does not answer; see {log}.")

    def _spawn(self, service: Service) -> subprocess.Popen[bytes]:
        marks = {FOLDER_VARIABLE: str(self.layout.folder), SERVICE_VARIABLE: service.name}
        log = os.open(
            self.layout.log(service.name), os.O_WRONLY | os.O_CREAT | os.O_APPEND, mode=0o600
        )
        try:
            return subprocess.Popen(
                list(service.command),
                env={**service.environment, **marks},
                cwd=self.layout.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C reaches this program alone, which ends the others
            )
        except OSError as error:
            raise DeploymentError(
                f"{service.name} cannot be started ({error.strerror}: {service.command[0]})."
            ) from error
        finally:
            os.close(log)


def find(folder: Path, service: str = "*", *, program: str = "*") -> list[psutil.Process]:
    """Return a deployment's processes.

    Parameters
    ----------
    folder : Path
        The deployment's.
    service : str
        Pattern of the service's name.
    program : str
        Pattern of the name of the program, or of the script that an interpreter runs.
    """
    import psutil

    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):  # of another account, or already ended
            variables, words = process.environ(), process.cmdline()[:2]
            if (
                process.pid != os.getpid()
                and variables.get(FOLDER_VARIABLE) == str(folder)
                and fnmatchcase(variables.get(SERVICE_VARIABLE, ""), service)
                and any(fnmatchcase(Path(word).name, program) for word in words)
            ):
                found.append(process)
    return found


def end(processes: Iterable[psutil.Process], grace_seconds: float) -> None:
    """End processes by SIGTERM, and by SIGKILL those that are still there after a while."""
    import psutil

    left = list(processes)
    for signal in (psutil.Process.terminate, psutil.Process.kill):
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                signal(process)
        _, left = psutil.wait_procs(left, timeout=grace_seconds)


def last_lines(log: Path) -> str:
    """Return the last five lines of a log in one, "nothing" if it has none."""
    text = log.read_text("utf-8", "replace") if log.exists() else ""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return one_line(" / ".join(lines[-_LOG_LINES:]) or "nothing", 600)
