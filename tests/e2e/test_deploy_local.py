# SPDX-License-Identifier: Apache-2.0
"""A deployment on this machine by its one command: training, keys, `kill -9`, the next start."""

from __future__ import annotations

import json
import os
import re
import signal
import sqlite3
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from support.deployed_app import NAME, ROUNDS
from support.deployment import start, wait_until
from support.flower import BIN, ROOT, Flower, free_port
from support.small_apps import small_app

from fl_app.client.data import data_digest
from fl_app.client.data_yaml import load_data_spec
from fl_app.deploy.folder import Layout
from fl_app.deploy.keys import make_keys
from fl_app.deploy.processes import answers, find
from fl_app.retraining import MonitorStore
from fl_app.retraining.memory.store import default_url
from fl_models.pictures import DataSpec
from fl_registry import ModelManager

pytestmark = pytest.mark.slow

LINK = "local-deployment"


@dataclass(frozen=True)
class Deployed:
    """A deployment, and a Flower whose configuration knows it."""

    flower: Flower
    layout: Layout
    port: int
    mlflow_port: int

    @property
    def mlflow(self) -> str:
        return f"http://127.0.0.1:{self.mlflow_port}"

    @property
    def options(self) -> tuple[str, ...]:
        ports = ("--port", str(self.port), "--mlflow-port", str(self.mlflow_port))
        return ("--folder", str(self.layout.folder), *ports)

    def store(self, name: str = "fl-global-model") -> ModelManager:
        return ModelManager(self.mlflow, name, home=self.flower.fl_app_home)

    def run(self, app: Path, *options: str) -> str:
        """`flwr run . local-deployment --stream` in the app's folder: what it printed."""
        words = ("flwr", "run", ".", LINK, "--stream", *options)
        printed = self.flower.command(*words, cwd=app).stdout
        found = re.search(r"started run (\d+)", printed)
        assert found, printed
        listed = self.flower.command("flwr", "list", LINK, "--run-id", found.group(1), cwd=app)
        assert "finished:completed" in listed.stdout, listed.stdout + printed[-6000:]
        return printed

    def processes(self, service: str, program: str) -> list[psutil.Process]:
        return find(self.layout.folder, service, program=program)


@pytest.fixture
def deployed(tmp_path: Path) -> Iterator[Deployed]:
    """A folder and ports for a deployment, which is ended with the test."""
    layout = Layout(tmp_path / "deployment")
    yield Deployed(Flower(tmp_path / "flower"), layout, free_port(), free_port())
    for process in find(layout.folder):
        process.kill()


@contextmanager
def up(deployed: Deployed, command: Sequence[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The command, as soon as it reports that all is up; at its end no process may be left."""
    with log.open("w") as file:
        environment = deployed.flower.environment
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=file, stderr=file, start_new_session=True
        )
    try:
        wait_until(
            lambda: "The deployment is up" in log.read_text() or process.poll() is not None,
            240,
            "the deployment",
        )
        assert process.poll() is None, log.read_text()
        yield process
        assert find(deployed.layout.folder) == [], log.read_text()
        for port in (deployed.port, deployed.mlflow_port):
            assert str(port) not in listening()
    except BaseException as error:
        told = [log, *deployed.layout.log("any").parent.glob("*.log")]
        error.add_note("\n".join(f"{path}\n{path.read_text()[-3000:]}" for path in told))
        raise
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def listening() -> set[str]:
    """Ports of this machine that somebody listens on."""
    found = psutil.net_connections("tcp4")
    return {str(one.laddr.port) for one in found if one.status == psutil.CONN_LISTEN}


def test_it_trains_refuses_unregistered_nodes_and_resumes_after_kills(
    deployed: Deployed, tmp_path: Path
) -> None:
    first, second = tmp_path / "first.log", tmp_path / "second.log"
    command = ["make", "deploy-local", f"ARGS={' '.join(deployed.options)}"]
    with up(deployed, command, first) as process:
        secrets_are_for_their_owner(deployed.layout)
        strangers = unregistered_supernodes(deployed, tmp_path)
        the_shipped_model_is_trained_on_the_nodes_own_pictures(deployed)
        they_are_refused(deployed, strangers)
        app = small_app(
            tmp_path / "app",
            "deployed",
            server="deployed_app:server",
            client="deployed_app:client",
            config="api-port = 5001\ncontinuous = false",
        )
        kills_cost_a_reply_and_a_round(deployed, app, first)
        os.killpg(process.pid, signal.SIGINT)  # as Ctrl-C does
        process.wait(90)
    ids = node_ids(deployed)
    command = [str(BIN / "fl-app"), "deploy-local", "--folder", str(deployed.layout.folder)]
    with up(deployed, command, second) as process:
        what_is_printed_can_be_typed(deployed, second.read_text())
        assert node_ids(deployed) == ids
        process.send_signal(signal.SIGTERM)
        assert process.wait(90) == 0
    assert "Ending" in second.read_text()


def node_ids(deployed: Deployed) -> list[str]:
    return list(deployed.layout.settings().node_ids)


def secrets_are_for_their_owner(layout: Layout) -> None:
    for folder in ("", "keys", "mlflow", "server", "superlink", "logs", "nodes"):
        assert not (layout.folder / folder).stat().st_mode & 0o077, folder
    private = [layout.folder / "deployment.json", layout.keys.key, layout.keys.authority_key]
    for file in (*private, *(layout.keys.node(number).private for number in (1, 2))):
        assert file.stat().st_mode & 0o777 == 0o600, file


def unregistered_supernodes(
    deployed: Deployed, folder: Path
) -> dict[Path, subprocess.Popen[bytes]]:
    """Start one with a key that is not registered, and one without a key; by their logs."""
    make_keys(folder / "stranger", nodes=1)
    key = ["--auth-supernode-private-key", str(folder / "stranger" / "node-1")]
    started = {}
    for log, words in ((folder / "unknown.log", key), (folder / "keyless.log", [])):
        command = [str(BIN / "flower-supernode"), "--superlink", f"127.0.0.1:{deployed.port}"]
        command += ["--root-certificates", str(deployed.layout.keys.authority)]
        command += ["--port", str(free_port()), *words]
        with log.open("w") as file:
            started[log] = subprocess.Popen(
                command, env=deployed.flower.environment, stdout=file, stderr=file
            )
    return started


def they_are_refused(deployed: Deployed, strangers: dict[Path, subprocess.Popen[bytes]]) -> None:
    for log, stranger in strangers.items():
        assert stranger.wait(90) == 1
        assert "Failed to initialize the connection to the SuperLink" in log.read_text()
    listed = deployed.flower.command(
        *("flwr", "supernode", "list", LINK, "--format", "json"), cwd=deployed.flower.folder
    )
    nodes = json.loads(listed.stdout[listed.stdout.index("{") :])["nodes"]
    assert sorted(node["node-id"] for node in nodes) == sorted(node_ids(deployed))
    assert {node["status"] for node in nodes} == {"online"}


def the_shipped_model_is_trained_on_the_nodes_own_pictures(deployed: Deployed) -> None:
    few = "num-server-rounds=1 image-size=64 local-epochs=1 fraction-evaluate=0.0"
    few += " staging-threshold=0.0 batch-size=4 workers=1 cache='disk'"
    few += " update-compression='int8'"
    deployed.run(ROOT, "--run-config", few)
    for number in (1, 2):
        said = deployed.layout.log(f"node-{number}").read_text()
        (sent, plain) = re.findall(r"sends ([\d.]+) MB instead of ([\d.]+) MB", said)[-1]
        assert float(sent) < 0.3 * float(plain)
    (row,) = deployed.store().list_all_versions()
    assert row["stage"] == "Staging"
    nodes = {node["node_id"]: node["data_digest"] for node in json.loads(row["tags"]["nodes"])}
    assert nodes.keys() == set(node_ids(deployed))
    shares = [layout_data(deployed.layout, number) for number in (1, 2)]
    digests = {data_digest((*share.train, *share.val), share) for share in shares}
    assert set(nodes.values()) == digests
    with closing(sqlite3.connect(deployed.layout.database)) as database:
        rows = database.execute("SELECT name, version FROM model_versions").fetchall()
    assert rows == [("fl-global-model", 1)]
    weights = deployed.store().weights_path("1")  # by way of MLflow's server
    kept = list(deployed.layout.artifacts.rglob("*.safetensors"))
    assert [path.read_bytes() for path in kept] == [weights.read_bytes()]
    assert not (deployed.layout.home / "mlflow.db").exists()


def layout_data(layout: Layout, number: int) -> DataSpec:
    (file,) = layout.node(number).glob("*/data.yaml")
    return load_data_spec(file, 7)


def kills_cost_a_reply_and_a_round(deployed: Deployed, folder: Path, log: Path) -> None:
    run = start(deployed.flower, folder, "continuous=true", LINK)
    try:
        wait_until(lambda: [s.info.status for s in sessions(deployed)] == ["FINISHED"], 180, "S1")
        homes = [deployed.layout.node(number) / "home" for number in (1, 2)]
        in_second, in_first = homes[0] / f"hold-{ROUNDS}", homes[1] / "hold-1"
        in_second.touch()
        in_first.touch()
        answer, _ = run.trigger("new pictures")
        wait_until((homes[1] / "training").exists, 60, "the second session")
        kill(deployed.processes("node-2", "flower-supernode"))
        wait_until(lambda: len(versions(deployed)) == ROUNDS + 1, 120, "the round without a node")
        assert run.get("/health")
        tags = versions(deployed)[-1]["tags"]
        assert [node["node_id"] for node in json.loads(tags["nodes"])] == node_ids(deployed)[:1]
        assert node_ids(deployed)[1] in tags["rejected"]
        assert tags["trigger"] == "new pictures"
        wait_until((homes[0] / "training").exists, 60, "the next round")
        kill(deployed.processes("superlink", "flower-superlink"))
        wait_until(lambda: "superlink was ended by SIGKILL" in log.read_text(), 60, "the news")
        in_second.unlink()
        in_first.unlink()
        address = f"https://127.0.0.1:{deployed.port}/health"
        authority = deployed.layout.keys.authority
        wait_until(lambda: answers(address, authority), 120, "the SuperLink")
        printed = deployed.run(folder)
    except AssertionError as error:
        error.add_note(run.log()[-5000:])
        raise
    assert f"interrupted in round {ROUNDS} of {ROUNDS}" in printed
    rounds = [(row["tags"]["session"], row["tags"]["round"]) for row in versions(deployed)]
    assert rounds == [(s, str(n)) for s in "12" for n in range(1, ROUNDS + 1)]
    assert [session.info.status for session in sessions(deployed)] == ["FINISHED"] * 2
    (request,) = MonitorStore(default_url(deployed.layout.home), NAME).requests.history()
    assert (request["id"], request["outcome"]) == (answer["request_id"], "done")


def kill(processes: list[psutil.Process]) -> None:
    (process,) = processes
    process.send_signal(signal.SIGKILL)


def versions(deployed: Deployed) -> list[dict[str, Any]]:
    """The app's versions, oldest first."""
    return list(reversed(deployed.store(NAME).list_all_versions()))


def sessions(deployed: Deployed) -> list[Any]:
    """MLflow's runs of the app's sessions, oldest first."""
    client = deployed.store(NAME).client
    experiment = client.get_experiment_by_name(NAME)
    if experiment is None:
        return []
    return list(client.search_runs([experiment.experiment_id], order_by=["start_time ASC"]))


def what_is_printed_can_be_typed(deployed: Deployed, said: str) -> None:
    lines = [line.strip() for line in said.splitlines()]
    typed = [line for line in lines if line.startswith(("export ", "uv run fl-app", "fl-app"))]
    assert len(typed) == 3
    done = deployed.flower.command("bash", "-euc", "\n".join(typed), cwd=ROOT)
    assert "Production" in done.stdout
    script = "\n".join([*typed[:2], "fl-app versions --json"])
    done = deployed.flower.command("bash", "-euc", script, cwd=ROOT)
    assert [row["version"] for row in json.loads(done.stdout)] == ["1"]
