# SPDX-License-Identifier: Apache-2.0
"""The user guide's snippets on retraining, run as they stand (guide_snippets.md)."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

import pytest
import yaml
from support.guide import Names, run, snippet

from fl_app.api import create_trigger_api, serve_api
from fl_app.retraining import MonitorStore, RetrainingManager
from fl_app.retraining.memory.store import default_url

ROOT = Path(__file__).parents[1]
needs_curl = pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not here")


def wait_until(true: Callable[[], object], seconds: float = 20) -> None:
    """Wait until the condition holds."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


@pytest.fixture
def names() -> Iterator[Names]:
    """Run the snippet that sets the manager up; stop what it started."""
    names = run("Setting Up Re-training Manager", {})
    yield names
    names["retrain_mgr"].stop_monitoring()


def test_the_manager_calls_back_with_the_reason(
    names: Names, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manager = names["retrain_mgr"]
    assert isinstance(manager, RetrainingManager)
    assert (manager.monitoring, manager.current_accuracy) == (True, 0.82)
    assert manager.check_interval == 300
    assert manager.store.note("every 7 days", datetime).read()[1] is not None
    manager.manual_trigger(reason="new pictures")
    wait_until(lambda: manager.trigger_history[-1]["outcome"] == "done")
    assert "Re-training triggered: new pictures\n" in capsys.readouterr().out
    # Its state outlives the process.
    later = RetrainingManager(store=MonitorStore(default_url(home)))
    assert [entry["reason"] for entry in later.trigger_history] == ["new pictures"]


def test_a_fall_of_the_score_calls_back(names: Names, capsys: pytest.CaptureFixture[str]) -> None:
    manager = names["retrain_mgr"]
    for number in range(50):
        manager.update_metrics(accuracy=0.82, round_num=16 + number)
    assert manager.trigger_history == []
    for number in range(3):
        manager.update_metrics(accuracy=0.6, round_num=66 + number)
    wait_until(lambda: manager.trigger_history)
    wait_until(lambda: manager.trigger_history[-1]["outcome"] == "done")
    assert "Re-training triggered: in round 6" in capsys.readouterr().out


def test_re_training_not_triggering(names: Names, capsys: pytest.CaptureFixture[str]) -> None:
    run("Monitoring is running", names)
    run("Check thresholds", names)
    assert (
        capsys.readouterr().out == "Monitoring: True\nBest: 0.82\nCurrent: 0.82\nThreshold: 0.05\n"
    )
    run("Callback is set", names)  # it is
    called: list[str] = []
    manager = RetrainingManager()
    given = {"retrain_mgr": manager, "your_function": lambda trigger: called.append(trigger.reason)}
    run("Callback is set", given)
    manager.start_monitoring()
    manager.manual_trigger()
    wait_until(lambda: called)
    manager.stop_monitoring()


def shell(lines: str) -> list[str]:
    """Run PowerShell's lines in bash; return what each curl printed."""
    lines = re.sub(r"`$", r"\\", lines, flags=re.MULTILINE)
    lines = lines.replace("curl ", r"curl -sS -w '\n' ")
    done = subprocess.run(["bash", "-ec", lines], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@needs_curl
def test_the_curl_lines_against_the_script(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])  # 5001 may be taken on this machine
    script = tmp_path / "app.py"
    script.write_text(snippet("Manual Trigger via API").replace("5001", port))
    lines = snippet("Trigger via HTTP", "powershell").replace("5001", port)
    with subprocess.Popen(
        [sys.executable, str(script)], cwd=ROOT, stderr=subprocess.DEVNULL
    ) as child:
        try:
            wait_until(lambda: listens(port), 60)
            answer, history, metrics = (json.loads(line) for line in shell(lines))
        finally:
            child.terminate()
    assert (answer["status"], answer["reason"]) == ("accepted", "Manual trigger for testing")
    assert [entry["id"] for entry in history] == [answer["request_id"]]
    assert (metrics["best_accuracy"], metrics["accuracy_threshold"]) == (None, 0.05)
    waits = RetrainingManager().take()  # it was on disk when it was answered
    assert waits is not None
    assert waits.id == answer["request_id"]


def listens(port: str) -> bool:
    try:
        socket.create_connection(("127.0.0.1", int(port)), timeout=1).close()
    except OSError:
        return False
    return True


@needs_curl
def test_the_cronjob_s_request() -> None:
    job = yaml.safe_load(snippet("Kubernetes CronJob", "yaml"))
    (container,) = job["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    manager = RetrainingManager()
    server = serve_api(create_trigger_api(manager, allowed_hosts=["fl-server"]), port=0)
    assert server is not None
    command = [word.replace(":5001", f":{server.port}") for word in container["command"]]
    command[1:1] = ["--resolve", f"fl-server:{server.port}:127.0.0.1"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    finally:
        server.close()
    assert json.loads(done.stdout)["status"] == "accepted"
    (entry,) = manager.trigger_history
    assert (entry["reason"], entry["outcome"]) == ("Scheduled weekly retraining", "pending")
