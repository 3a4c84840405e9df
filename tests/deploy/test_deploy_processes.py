# SPDX-License-Identifier: Apache-2.0
"""Processes of a deployment: kept up, told of, and all of them gone at the end."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from signal import SIGKILL, SIGTERM

import psutil
import pytest

from fl_app.deploy import supervisor as module
from fl_app.deploy.errors import DeploymentError
from fl_app.deploy.folder import Layout
from fl_app.deploy.services import Service, environment
from fl_app.deploy.supervisor import Processes, StoppedError, end, find

CHILD = "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', 'import time; \
time.sleep(60)'], start_new_session=True); time.sleep(60)"
DEAF = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', \
flush=True); time.sleep(60)"


class Stage:
    """Processes, what they have told, and the event that ends them."""

    def __init__(self, folder: Path) -> None:
        self.layout = Layout(folder)
        self.layout.prepare()
        self.said: list[str] = []
        self.ended = threading.Event()
        self.processes = Processes(self.layout, self.said.append, self.ended)

    def service(self, name: str, code: str, well: Callable[[], bool] = lambda: True) -> Service:
        command = [sys.executable, "-c", code]
        return Service(name, command, well, environment({}), again_after=0.1)

    def count(self, service: str = "*") -> int:
        return len(find(self.layout.folder, service))


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    monkeypatch.setattr(module, "_LOOK", 0.02)
    monkeypatch.setattr(module, "_ASK", 0.05)
    stage = Stage(tmp_path / "deployment")
    yield stage
    end(find(stage.layout.folder), SIGKILL)


def until(true: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def watched(stage: Stage) -> threading.Thread:
    thread = threading.Thread(target=stage.processes.watch)
    thread.start()
    return thread


def test_the_end_leaves_nothing_of_what_was_started(stage: Stage) -> None:
    for name in ("first", "second"):
        stage.processes.start(stage.service(name, CHILD))
    until(lambda: stage.count() == 4)
    assert [stage.count(name) for name in ("first", "f*", "nothing")] == [2, 2, 0]
    assert len(find(stage.layout.folder, program="python*")) == 4
    assert stage.layout.log("first").stat().st_mode & 0o777 == 0o600
    stage.processes.stop()
    assert stage.count() == 0


def test_those_started_last_end_first_unless_they_end_together(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[set[str]] = []

    def seen(found: list[psutil.Process], signal: object) -> None:
        asked.append({process.environ()[module.SERVICE_VARIABLE] for process in found})

    for name, group in (("link", ""), ("node-1", "nodes"), ("node-2", "nodes")):
        stage.processes.start(replace(stage.service(name, CHILD), ends_with=group))
    until(lambda: stage.count() == 6)
    with monkeypatch.context() as patched:
        patched.setattr(module, "end", seen)
        stage.processes.stop()
    assert asked == [set(), {"node-1", "node-2"}, {"link"}]


def test_what_does_not_listen_is_killed(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "GRACE", 0.2)
    stage.processes.start(stage.service("deaf", DEAF))
    until(lambda: "deaf" in stage.layout.log("deaf").read_text())
    stage.processes.stop()
    assert stage.count() == 0


def test_what_a_killed_start_has_left_is_found_by_its_folder(stage: Stage, tmp_path: Path) -> None:
    other = Stage(tmp_path / "other")
    for one in (stage, other):
        one.processes.start(one.service("mlflow", CHILD))
        until(lambda one=one: one.count() == 2)
    (parent, *_) = [p for p in find(stage.layout.folder) if p.ppid() == os.getpid()]
    parent.send_signal(SIGKILL)
    until(lambda: stage.count() == 1)
    end(find(stage.layout.folder), SIGTERM)
    assert (stage.count(), other.count()) == (0, 2)
    other.processes.stop()


def test_what_is_killed_is_started_again_after_all_it_had_started_has_ended(stage: Stage) -> None:
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


def test_what_a_killed_process_leaves_behind_is_ended_before_the_pause(stage: Stage) -> None:
    stage.processes.start(replace(stage.service("node-1", CHILD), again_after=65.0))
    until(lambda: stage.count() == 2)
    (parent, *_) = [p for p in find(stage.layout.folder) if p.ppid() == os.getpid()]
    thread = watched(stage)
    parent.send_signal(SIGKILL)
    until(lambda: stage.said)
    assert stage.count() == 0
    stage.ended.set()
    thread.join()


def test_what_no_longer_answers_is_told_and_so_is_that_it_does(
    stage: Stage, tmp_path: Path
) -> None:
    mark = tmp_path / "well"
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
    assert stage.said == [f"mlflow does not answer; {log} may tell.", "mlflow answers again."]
    stage.processes.stop()


def test_what_cannot_be_kept_up_is_told_with_the_end_of_its_log(stage: Stage) -> None:
    code = "print('first'); raise SystemExit('no such table')"
    stage.processes.start(stage.service("mlflow", code, lambda: False))
    with pytest.raises(
        DeploymentError, match=r"mlflow did not come up\. .*mlflow\.log ends with: "
    ):
        stage.processes.wait_for(["mlflow"], 20)
    assert stage.layout.log("mlflow").read_text().count("no such table") == 2
    stage.processes.stop()


def test_what_takes_too_long_is_told(stage: Stage) -> None:
    stage.processes.start(stage.service("link", CHILD, lambda: False))
    with pytest.raises(DeploymentError, match="link did not come up"):
        stage.processes.wait_for(["link"], 0.1)
    stage.processes.stop()


def test_a_program_that_is_not_there_is_told(stage: Stage) -> None:
    service = Service("link", ["/nothing/flower-superlink"], lambda: True, environment({}))
    with pytest.raises(DeploymentError, match="link cannot be started"):
        stage.processes.start(service)


def test_waiting_ends_when_all_is_to_end(stage: Stage) -> None:
    stage.processes.start(stage.service("link", CHILD, lambda: False))
    stage.ended.set()
    with pytest.raises(StoppedError):
        stage.processes.wait_for(["link"], 20)
    stage.processes.stop()


def test_processes_are_told_no_database(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FL_APP_DATABASE_URL", "postgresql://ada:open-sesame@host/db")
    told = environment({"OWN": "value"})
    assert "open-sesame" not in str(told)
    assert told["OWN"] == "value"
    assert told["PATH"].startswith(str(Path(sys.executable).parent))


def test_what_is_told_of_a_long_pause_is_how_long_it_is(stage: Stage) -> None:
    node = replace(stage.service("node-1", "pass"), again_after=65.0)
    stage.processes.start(node)
    thread = watched(stage)
    until(lambda: stage.said)
    stage.ended.set()
    thread.join(20)
    assert stage.said == ["node-1 ended with status 0. It is started again in 65 s."]
