# SPDX-License-Identifier: Apache-2.0
"""Messages of a SuperNode run by forks: with the same results as by processes of their own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# What a fork runs in place of flwr-clientapp.
ENTRY = """
import os, random, sys, time
import numpy as np

def main():
    print("args", sys.argv, flush=True)
    print("loaded", "json.tool" in sys.modules, "fl_app" in sys.modules)
    print("drawn", random.random(), np.random.random())
    print("environment", os.environ.get("GIVEN"), os.getcwd(), file=sys.stderr)
    if "sleep" in sys.argv:
        time.sleep(60)
    if "raise" in sys.argv:
        raise ValueError("no")
    sys.exit(7)
"""
RUN = """
import sys
from fl_app.deploy.fork_server import run_supernode
sys.exit(run_supernode(sys.argv[1:], preload=("json.tool", "numpy", "no_such"), entry="entry:main"))
"""


def run(folder: Path, script: str) -> subprocess.CompletedProcess[str]:
    """Run a shell script as the SuperNode."""
    (folder / "entry.py").write_text(ENTRY)
    environment = {
        "PATH": "/usr/bin:/bin",
        "PYTHONPATH": f"{ROOT}:{folder}",
        "FL_APP_HOME": str(folder),
    }
    return subprocess.run(
        [sys.executable, "-c", RUN, "/bin/sh", "-c", script],
        capture_output=True,
        text=True,
        cwd=folder,
        env=environment,
        timeout=60,
        check=False,
    )


def test_a_fork_behaves_as_the_program(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    script = "cd other; GIVEN='a b' flwr-clientapp --token \"x y\"; echo code $?; exit 3"
    done = run(tmp_path, script)
    lines = done.stdout.splitlines()
    assert lines[0] == "args ['flwr-clientapp', '--token', 'x y']"
    assert lines[1] == "loaded True False"  # preloaded, and nothing of an app
    assert lines[-1] == "code 7"
    assert done.stderr.splitlines() == [f"environment a b {tmp_path / 'other'}"]
    assert done.returncode == 3  # the SuperNode's own


def test_forks_draw_different_numbers_and_an_error_ends_only_one(tmp_path: Path) -> None:
    done = run(tmp_path, "flwr-clientapp raise; echo code $?; flwr-clientapp; echo code $?")
    drawn = [line for line in done.stdout.splitlines() if line.startswith("drawn")]
    assert len({word for line in drawn for word in line.split()[1:]}) == 4
    assert [line for line in done.stdout.splitlines() if "code" in line] == ["code 1", "code 7"]
    assert "ValueError: no" in done.stderr


def test_many_messages_run_at_once_and_one_can_be_ended(tmp_path: Path) -> None:
    script = """
for one in 1 2 3 4 5 6; do flwr-clientapp $one & done
flwr-clientapp sleep > asleep & sleeper=$!
until grep -q drawn asleep 2>/dev/null || [ -n "$(cat asleep)" ]; do sleep 0.05; done
kill $sleeper; wait $sleeper; echo ended $?
wait
"""
    began = time.monotonic()
    done = run(tmp_path, script)
    assert "ended 1" in done.stdout, done.stderr
    assert sum(line.startswith("args") for line in done.stdout.splitlines()) == 6
    assert time.monotonic() - began < 50


def test_the_program_runs_itself_if_the_server_has_ended(tmp_path: Path) -> None:
    real = Path(sys.executable).with_name("flwr-clientapp")
    if not real.exists():
        pytest.skip("flwr-clientapp is not beside this Python")
    done = run(tmp_path, "kill -9 $PPID; sleep 0.2; flwr-clientapp --help")
    assert done.returncode == -signal.SIGKILL
    assert "Run a Flower ClientApp" in done.stdout


def test_only_this_user_may_enter_the_socket_s_folder_which_is_removed_at_the_end(
    tmp_path: Path,
) -> None:
    script = "place=$(dirname $(command -v flwr-clientapp)); stat -c %a $place; echo $place"
    mode, place = run(tmp_path, script).stdout.split()
    assert mode == "700"
    assert not os.path.exists(place)  # noqa: PTH110 - a path from a shell


def test_a_missing_command_is_reported_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "entry.py").write_text(ENTRY)
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(tmp_path / "none")],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert "DeploymentError: " in done.stderr
    assert "cannot be started with preloaded modules" in done.stderr
