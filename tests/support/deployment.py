# SPDX-License-Identifier: Apache-2.0
"""A SuperLink and SuperNodes as processes, and a run of a server that waits for requests."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fl_registry import ModelManager
from support.flower import BIN, Flower, free_port


def wait_until(true: Callable[[], Any], seconds: float, what: str) -> Any:
    """Wait until the condition holds, or is something; no connection is no yet."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            found = true()
        except OSError:
            found = None
        if found:
            return found
        assert time.monotonic() < deadline, f"{what} did not happen"
        time.sleep(0.05)


@dataclass(frozen=True)
class WaitingRun:
    """A run of a server that waits for requests.

    Attributes
    ----------
    flower : Flower
        Whose run it is.
    superlink : str
        Name of the SuperLink in its configuration.
    run_id : str
        Flower's.
    port : int
        Of the REST API.
    """

    flower: Flower
    superlink: str
    run_id: str
    port: int

    def get(self, path: str) -> Any:
        """Ask the API."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=5) as reply:
            return json.load(reply)

    def trigger(self, reason: str) -> tuple[dict[str, str], float]:
        """Ask for retraining; return the answer, and when it was there (seconds since 1970)."""
        body = json.dumps({"reason": reason}).encode()
        address = f"http://127.0.0.1:{self.port}/trigger_retrain"
        request = urllib.request.Request(address, body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=5) as reply:
            assert reply.status == 202
            return json.load(reply), time.time()

    def sessions(self, **tags: str) -> list[Any]:
        """MLflow's runs with these tags, oldest first."""
        client = ModelManager(home=self.flower.fl_app_home).client
        experiment = client.get_experiment_by_name("fl-app")
        if experiment is None:
            return []
        runs = client.search_runs([experiment.experiment_id], order_by=["start_time ASC"])
        return [run for run in runs if tags.items() <= run.data.tags.items()]

    def ended(self, **tags: str) -> bool:
        """Whether there is a session with these tags and all of them have ended well."""
        found = [run.info.status for run in self.sessions(**tags)]
        return bool(found) and set(found) == {"FINISHED"}

    def status(self) -> str:
        """What `flwr list` says of the run."""
        words = ("flwr", "list", self.superlink, "--run-id", self.run_id)
        return self.flower.command(*words, cwd=self.flower.folder).stdout

    def stop(self) -> None:
        """`flwr stop`."""
        self.flower.command("flwr", "stop", self.run_id, self.superlink, cwd=self.flower.folder)

    def log(self) -> str:
        """What the server has logged."""
        words = ("flwr", "log", self.run_id, self.superlink, "--show")
        return self.flower.command(*words, cwd=self.flower.folder, ok=False).stdout

    def processes(self) -> list[int]:
        """Processes that serve a run of this Flower."""
        return [
            process
            for process, words in commands()
            if any(w.endswith(("flwr-simulation", "flwr-serverapp")) for w in words)
            and f"FLWR_HOME={self.flower.environment['FLWR_HOME']}" in environment(process)
        ]


def commands() -> Iterator[tuple[int, list[str]]]:
    """All processes of this machine that can be read, with their words."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().decode("utf-8", "replace")
            except OSError:
                continue  # it ended meanwhile
            yield int(entry.name), words.split("\0")


def environment(process: int) -> list[str]:
    """A process's environment."""
    try:
        return Path(f"/proc/{process}/environ").read_bytes().decode("utf-8", "replace").split("\0")
    except OSError:
        return []


def start(flower: Flower, app: Path, config: str, superlink: str = "local") -> WaitingRun:
    """`flwr run` without waiting for anything."""
    port = free_port()
    words = ("flwr", "run", str(app), superlink, "--run-config", f"api-port={port} {config}")
    printed = flower.command(*words, cwd=flower.folder).stdout
    found = re.search(r"started run (\d+)", printed)
    assert found, printed
    return WaitingRun(flower, superlink, found.group(1), port)


def start_waiting(flower: Flower, app: Path, config: str, superlink: str = "local") -> WaitingRun:
    """`flwr run` of a server that waits, as soon as its first session has ended."""
    run = start(flower, app, f"continuous=true {config}", superlink)
    try:
        wait_until(lambda: run.get("/health"), 120, "the API")
        wait_until(lambda: run.ended(session="1"), 180, "the first session")
    except AssertionError as error:
        raise AssertionError(f"{error}\n{run.status()}\n{run.log()[-5000:]}") from error
    return run


@contextmanager
def process(flower: Flower, log: Path, words: Sequence[str]) -> Iterator[None]:
    """One of Flower's own processes, ended with the block."""
    with log.open("w") as file:
        child = subprocess.Popen(
            [str(BIN / words[0]), *words[1:]],
            cwd=flower.folder,
            env=flower.environment,
            stdout=file,
            stderr=file,
            start_new_session=True,
        )
    try:
        yield
        assert child.poll() is None, log.read_text()[-3000:]
    finally:
        child.terminate()
        try:
            child.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, 9)
            child.wait()


def accepts_connections(port: int) -> bool:
    """Whether somebody listens on a port of this machine."""
    with socket.create_connection(("127.0.0.1", port), timeout=5):
        return True


# As `fl-app supernode`, without torch: a message of an app in NumPy takes a fork, not seconds.
NUMPY_SUPERNODE = """
import sys
from fl_app.deploy.fork_server import run_supernode
modules = ("flwr.clientapp", "flwr.supernode.cli.flwr_clientapp", "numpy")
sys.exit(run_supernode(["flower-supernode", *sys.argv[1:]], preload=modules))
"""
SUPERNODES = {
    "plain": ("flower-supernode",),
    "torch": ("fl-app", "supernode"),
    "numpy": ("python", "-c", NUMPY_SUPERNODE),
}


@contextmanager
def deployment(flower: Flower, data: Sequence[Path], *, supernode: str = "plain") -> Iterator[str]:
    """A SuperLink and a SuperNode for each data set; yields the SuperLink's name.

    ``supernode`` says which modules a message finds loaded: a key of `SUPERNODES`.
    """
    port = free_port()
    address = f"127.0.0.1:{port}"
    config = Path(flower.environment["FLWR_HOME"]) / "config.toml"
    config.parent.mkdir(parents=True, exist_ok=True)
    config.write_text(
        f'[superlink]\ndefault = "dep"\n\n[superlink.dep]\naddress = "{address}"\ninsecure = true\n'
    )
    link = ("flower-superlink", "--insecure", "--host", "127.0.0.1", "--port", str(port))
    with ExitStack() as processes:
        processes.enter_context(process(flower, flower.folder / "superlink.log", link))
        wait_until(lambda: accepts_connections(port), 60, "the SuperLink")
        for number, path in enumerate(data):
            node = (
                *SUPERNODES[supernode],
                *("--insecure", "--superlink", address),
                *("--host", "127.0.0.1", "--port", str(free_port())),
                *("--node-config", f'data="{path}"'),
            )
            processes.enter_context(process(flower, flower.folder / f"node-{number}.log", node))
        yield "dep"
