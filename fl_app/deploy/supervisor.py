# SPDX-License-Identifier: Apache-2.0
"""Processes that are started, watched, started again where they end by themselves, and ended.

Flower's and MLflow's programs start others, some in sessions of their own. All of them inherit two
environment variables, by which they are found again, also by a start after this one was killed.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import groupby
from pathlib import Path
from signal import SIGTERM, Signals
from threading import Event
from typing import TYPE_CHECKING

from fl_app.deploy.errors import DeploymentError
from fl_app.deploy.folder import Layout
from fl_app.deploy.services import Service
from fl_registry.redaction import one_line

if TYPE_CHECKING:
    import psutil

FOLDER_VARIABLE, SERVICE_VARIABLE = "FL_APP_DEPLOYMENT", "FL_APP_SERVICE"
GRACE = 20.0
"""Seconds that processes have to end before they are killed."""
_LOOK, _ASK = 0.5, 10.0  # seconds between looks at processes, and at what they answer
_STEADY = 60.0  # seconds after which a process that ends does so for a new reason
_LONGEST = 60.0  # between tries to start what ends at once
_TOLD = 5  # last lines of a log in an error


@dataclass
class Running:
    """A process that should be there.

    Attributes
    ----------
    service : Service
        What it is.
    process : subprocess.Popen[bytes]
        The newest process.
    since : float
        When that was started, by `time.monotonic`.
    fails : int
        Times in a row that it has ended soon after its start.
    again : float | None
        When it is started again, if it has ended.
    well : bool
        Whether it answered when it was last asked.
    """

    service: Service
    process: subprocess.Popen[bytes]
    since: float
    fails: int = 0
    again: float | None = None
    well: bool = True


class Processes:
    """The processes of one deployment.

    Parameters
    ----------
    layout : Layout
        Where logs go, and by whose folder the processes are found again.
    say : Callable[[str], object]
        Takes one line for whoever looks on.
    ended : Event
        Set when all is to end; whatever waits here stops waiting.
    """

    def __init__(self, layout: Layout, say: Callable[[str], object], ended: Event) -> None:
        self._layout = layout
        self._say = say
        self._ended = ended
        self._running: list[Running] = []

    def start(self, service: Service) -> None:
        """Start a process; it ends with `stop`."""
        self._running.append(Running(service, self._spawn(service), time.monotonic()))

    def wait(self, ready: Callable[[], bool], seconds: float, what: str) -> None:
        """Wait until something holds, while what ends is started again.

        Raises
        ------
        DeploymentError
            It does not hold in time, or a process cannot be kept up; with the end of its log.
        StoppedError
            All is to end.
        """
        deadline = time.monotonic() + seconds
        while not ready():
            if self._ended.wait(_LOOK):
                raise StoppedError
            self._look()
            failed = [one for one in self._running if one.again is not None or not one.well]
            hopeless = [one for one in failed if one.fails > 1]
            if hopeless or time.monotonic() > deadline:
                raise DeploymentError(self._why(hopeless or failed, what))

    def wait_for(self, names: Sequence[str], seconds: float) -> None:
        """Wait until processes answer; raises as `wait` does."""
        chosen = [one for one in self._running if one.service.name in names]

        def ready() -> bool:
            for one in chosen:
                one.well = one.process.poll() is None and one.service.is_well()
            return all(one.well for one in chosen)

        self.wait(ready, seconds, " and ".join(names))

    def watch(self) -> None:
        """Keep all up until all is to end; tell what ends, and what no longer answers."""
        asked = time.monotonic()
        while not self._ended.wait(_LOOK):
            self._look()
            if time.monotonic() - asked >= _ASK:
                self._ask()
                asked = time.monotonic()

    def stop(self) -> None:
        """End all processes, those started last first, and whatever they have started."""
        end(find(self._layout.folder, program="flwr-serverapp"), SIGTERM)
        order = reversed([one.service for one in self._running])
        for _, together in groupby(order, key=lambda one: one.ends_with or one.name):
            services = list(together)
            found = [process for one in services for process in self._all_of(one)]
            end(found, services[0].stop_signal)
        self._running.clear()

    def _look(self) -> None:
        """See what has ended, and start again what is due."""
        now = time.monotonic()
        for one in self._running:
            code = one.process.poll()
            if code is not None and one.again is None:
                end(self._all_of(one.service), one.service.stop_signal)  # what it leaves behind
                one.fails = one.fails + 1 if now - one.since < _STEADY else 1
                longer = min(one.service.again_after * 2 ** (one.fails - 1), _LONGEST)
                pause = max(longer, one.service.again_after)
                one.again = time.monotonic() + pause
                self._say(f"{_ended_as(one, code)} It is started again in {pause:.0f} s.")
            elif one.again is not None and now >= one.again:
                one.process, one.since = self._spawn(one.service), time.monotonic()
                one.again, one.well = None, False

    def _ask(self) -> None:
        for one in self._running:
            was, one.well = one.well, one.again is None and one.service.is_well()
            if one.well and not was:
                self._say(f"{one.service.name} answers again.")
            elif was and not one.well and one.again is None:
                self._say(f"{one.service.name} does not answer; {self._log(one.service)} may tell.")

    def _spawn(self, service: Service) -> subprocess.Popen[bytes]:
        marks = {
            FOLDER_VARIABLE: str(self._layout.folder),
            SERVICE_VARIABLE: service.name,
        }
        handle = os.open(self._log(service), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            return subprocess.Popen(
                list(service.command),
                env={**service.environment, **marks},
                cwd="/" if service.account else self._layout.folder,
                stdin=subprocess.DEVNULL,
                stdout=handle,
                stderr=handle,
                start_new_session=True,  # Ctrl-C is for us alone: we end them in their order
                user=service.account,
                group=service.account,
                extra_groups=[] if service.account else None,
            )
        except OSError as error:
            raise DeploymentError(
                f"{service.name} cannot be started ({error.strerror}: {service.command[0]})."
            ) from error
        finally:
            os.close(handle)

    def _all_of(self, service: Service) -> list[psutil.Process]:
        return find(self._layout.folder, service.name)

    def _log(self, service: Service) -> Path:
        return self._layout.log(service.name)

    def _why(self, failed: Sequence[Running], what: str) -> str:
        named = [one.service for one in failed]
        told = " ".join(
            f"{self._log(service)} ends with: {_last_lines(self._log(service))}."
            for service in named[:1]
        )
        return f"{what} did not come up. {told}".strip()


class StoppedError(Exception):
    """All was to end while something was waited for."""


def find(folder: Path, service: str = "*", *, program: str = "*") -> list[psutil.Process]:
    """Return a deployment's processes, as their environment says.

    Parameters
    ----------
    folder : Path
        The deployment's.
    service : str
        Pattern of the service's name.
    program : str
        Pattern of what is run: a program's name, or that of a script of the interpreter.
    """
    import psutil

    found = []
    for process in psutil.process_iter():
        try:
            variables, words = process.environ(), process.cmdline()[:2]
        except (psutil.Error, OSError):
            continue  # another account's, or it has ended
        mine = variables.get(FOLDER_VARIABLE) == str(folder)
        if mine and fnmatchcase(variables.get(SERVICE_VARIABLE, ""), service):
            found += [process] if any(fnmatchcase(Path(w).name, program) for w in words) else []
    return [process for process in found if process.pid != os.getpid()]


def end(processes: Iterable[psutil.Process], signal: Signals) -> None:
    """Tell processes to end, and kill those that have not after a while."""
    import psutil

    alive = list(_sent(processes, signal))
    _, left = psutil.wait_procs(alive, timeout=GRACE)
    for process in left:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(left, timeout=GRACE)


def _sent(processes: Iterable[psutil.Process], signal: Signals) -> Iterator[psutil.Process]:
    import psutil

    for process in processes:
        try:
            process.send_signal(signal)
        except psutil.NoSuchProcess:
            continue
        yield process


def _ended_as(one: Running, code: int) -> str:
    if code < 0:
        return f"{one.service.name} was ended by {Signals(-code).name}."
    return f"{one.service.name} ended with status {code}."


def _last_lines(log: Path) -> str:
    try:
        lines = log.read_text("utf-8", "replace").splitlines()
    except OSError:
        return "nothing"
    kept = [line.strip() for line in lines if line.strip()][-_TOLD:]
    return one_line(" / ".join(kept) or "nothing", 600)
