# SPDX-License-Identifier: Apache-2.0
"""Start, check, restart and end processes.

A process that ends is started again, after all that it had started has ended.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from signal import Signals
from threading import Event
from typing import TYPE_CHECKING

from fl_app.deploy.errors import DeploymentError
from fl_app.deploy.folder import Layout
from fl_app.deploy.services import END_ORDER, Service
from fl_registry.redaction import one_line

if TYPE_CHECKING:
    import psutil

# All processes inherit these two variables, and are identified by them, also after this program was
# killed. A process group would not do: Flower's SuperExec starts a session of its own. Nor would a
# file with the process id, which another process may have by then.
FOLDER_VARIABLE, SERVICE_VARIABLE = "FL_APP_DEPLOYMENT", "FL_APP_SERVICE"
_STABLE_SECONDS = 60.0  # a process that ran for longer has not failed at its start
_LONGEST_PAUSE = 60.0
_LOG_LINES = 5


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
                ends = "".join(f" {log} ends with: {_last_lines(log)}." for log in logs[:1])
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


def _last_lines(log: Path) -> str:
    try:
        lines = [line.strip() for line in log.read_text("utf-8", "replace").splitlines()]
    except OSError:
        lines = []
    return one_line(" / ".join([line for line in lines if line][-_LOG_LINES:]) or "nothing", 600)
