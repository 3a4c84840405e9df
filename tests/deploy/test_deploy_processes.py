# SPDX-License-Identifier: Apache-2.0
"""Processes of a deployment: restarted, reported, and all of them ended at the end."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from signal import SIGKILL

import psutil
import pytest

from fl_app.deploy.errors import DeploymentError
from fl_app.deploy.folder import Layout
from fl_app.deploy.processes import Processes, Service, StoppedError, end, environment, find

CHILD = "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', 'import time; \
time.sleep(60)'], start_new_session=True); time.sleep(60)"
DEAF = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', \
flush=True); time.sleep(60)"
# Writes its name into a file of all when SIGTERM comes.
NOTING = """
import os, pathlib, signal, sys, time
def note(*_):
    with pathlib.Path("ended").open("a") as file:
        file.write(os.environ["FL_APP_SERVICE"] + "\\n")
    sys.exit()
signal.signal(signal.SIGTERM, note)
print("ready", flush=True)
time.sleep(60)
"""


class Stage:
    """Processes, the lines that they print for the user, and the event that ends them."""

    def __init__(self, folder: Path) -> None:
        self.layout = Layout(folder)
        self.layout.prepare()
        self.said: list[str] = []
        self.ended = threading.Event()
        self.processes = Processes(
            self.layout,
            self.said.append,
            self.ended,
            poll_seconds=0.02,
            health_seconds=0.05,
            grace_seconds=5,
        )

    def service(self, name: str, code: str, healthy: Callable[[], bool] = lambda: True) -> Service:
        command = [sys.executable, "-c", code]
        return Service(name, command, healthy, environment({}), restart_after=0.1)

    def count(self, service: str = "*") -> int:
        return len(find(self.layout.folder, service))

    def printed(self, service: str, word: str) -> bool:
        return word in self.layout.log(service).read_text()


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    stage = Stage(tmp_path / "deployment")
    yield stage
    for process in find(stage.layout.folder):
        process.kill()


def until(true: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def watched(stage: Stage) -> threading.Thread:
    thread = threading.Thread(target=stage.processes.watch)
    thread.start()
    return thread


def test_the_end_leaves_no_process_that_was_started(stage: Stage) -> None:
    for name in ("first", "second"):
        stage.processes.start(stage.service(name, CHILD))
    until(lambda: stage.count() == 4)
    assert [stage.count(name) for name in ("first", "f*", "nothing")] == [2, 2, 0]
    assert len(find(stage.layout.folder, program="python*")) == 4
    assert stage.layout.log("first").stat().st_mode & 0o777 == 0o600
    stage.processes.stop()
    assert stage.count() == 0


def test_supernodes_end_first_and_mlflow_last(stage: Stage) -> None:
    names = ["mlflow", "superlink", "node-1", "node-2"]
    for name in names:
        stage.processes.start(stage.service(name, NOTING))
    until(lambda: all(stage.printed(name, "ready") for name in names))
    stage.processes.stop()
    *nodes, link, mlflow = (stage.layout.folder / "ended").read_text().split()
    assert (sorted(nodes), link, mlflow) == (["node-1", "node-2"], "superlink", "mlflow")


def test_a_process_that_ignores_the_signal_is_killed(stage: Stage) -> None:
    stage.processes.grace_seconds = 0.2
    stage.processes.start(stage.service("deaf", DEAF))
    until(lambda: stage.printed("deaf", "deaf"))
    stage.processes.stop()
    assert stage.count() == 0


def test_processes_of_a_killed_start_are_found_by_their_folder(
    stage: Stage, tmp_path: Path
) -> None:
    other = Stage(tmp_path / "other")
    for one in (stage, other):
        one.processes.start(one.service("mlflow", CHILD))
        until(lambda one=one: one.count() == 2)
    (parent, *_) = [p for p in find(stage.layout.folder) if p.ppid() == os.getpid()]
    parent.send_signal(SIGKILL)
    until(lambda: stage.count() == 1)
    end(find(stage.layout.folder), 5)
    assert (stage.count(), other.count()) == (0, 2)
    other.processes.stop()


def test_a_killed_process_is_restarted_after_all_that_it_had_started_has_ended(
    stage: Stage,
) -> None:
    stage.processes.start(stage.service("link", CHILD))
    until(lambda: stage.count() == 2)
    before = {process.pid for process in find(stage.layout.folder)}
    (parent, *_) = [p for p in find(stage.layout.folder) if p.ppid() == os.getpid()]
    thread = watched(stage)
    parent.send_signal(SIGKILL)
    until(lambda: stage.count() == 2 and parent.pid not in psutil.pids())
    stage.ended.set()
    thread.join()
    assert not before & {process.pid for process in find(stage.layout.folder)}
    assert stage.said[0] == "link was ended by SIGKILL. It is started again in 0 s."
    stage.processes.stop()


def test_what_a_killed_process_had_started_is_ended_before_the_pause(stage: Stage) -> None:
    stage.processes.start(replace(stage.service("node-1", CHILD), restart_after=65.0))
    until(lambda: stage.count() == 2)
    (parent, *_) = [p for p in find(stage.layout.folder) if p.ppid() == os.getpid()]
    thread = watched(stage)
    parent.send_signal(SIGKILL)
    until(lambda: stage.said)
    assert stage.count() == 0
    stage.ended.set()
    thread.join()


def test_a_process_that_does_not_answer_and_answers_again_is_reported(
    stage: Stage, tmp_path: Path
) -> None:
    mark = tmp_path / "healthy"
    mark.touch()
    stage.processes.start(stage.service("mlflow", CHILD, mark.exists))
    thread = watched(stage)
    mark.unlink()
    until(lambda: len(stage.said) == 1)
    mark.touch()
    until(lambda: len(stage.said) == 2)
    stage.ended.set()
    thread.join()
    log = stage.layout.log("mlflow")
    assert stage.said == [f"mlflow does not answer; see {log}.", "mlflow answers again."]
    stage.processes.stop()


def test_a_process_that_ends_twice_at_its_start_is_an_error_with_the_end_of_its_log(
    stage: Stage,
) -> None:
    code = "print('first'); raise SystemExit('no such table')"
    stage.processes.start(stage.service("mlflow", code, lambda: False))
    with pytest.raises(
        DeploymentError, match=r"mlflow did not come up\. .*mlflow\.log ends with: "
    ):
        stage.processes.wait_for(["mlflow"], 20)
    assert stage.layout.log("mlflow").read_text().count("no such table") == 2
    stage.processes.stop()


def test_a_start_that_takes_too_long_is_an_error(stage: Stage) -> None:
    stage.processes.start(stage.service("link", CHILD, lambda: False))
    with pytest.raises(DeploymentError, match="link did not come up"):
        stage.processes.wait_for(["link"], 0.1)
    stage.processes.stop()


def test_a_program_that_does_not_exist_is_an_error(stage: Stage) -> None:
    service = Service("link", ["/nothing/flower-superlink"], lambda: True, environment({}))
    with pytest.raises(DeploymentError, match="link cannot be started"):
        stage.processes.start(service)


def test_a_wait_ends_when_the_deployment_is_to_end(stage: Stage) -> None:
    stage.processes.start(stage.service("link", CHILD, lambda: False))
    stage.ended.set()
    with pytest.raises(StoppedError):
        stage.processes.wait_for(["link"], 20)
    stage.processes.stop()


def test_processes_do_not_inherit_the_database(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FL_APP_DATABASE_URL", "postgresql://ada:open-sesame@host/db")
    variables = environment({"OWN": "value"})
    assert "open-sesame" not in str(variables)
    assert variables["OWN"] == "value"
    assert variables["PATH"].startswith(str(Path(sys.executable).parent))


def test_a_long_pause_is_reported_with_its_length(stage: Stage) -> None:
    node = replace(stage.service("node-1", "pass"), restart_after=65.0)
    stage.processes.start(node)
    thread = watched(stage)
    until(lambda: stage.said)
    stage.ended.set()
    thread.join(20)
    assert stage.said == ["node-1 ended with status 0. It is started again in 65 s."]
