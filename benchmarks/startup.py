# SPDX-License-Identifier: Apache-2.0
"""What it takes to begin: the imports, the first TRAIN message after a request, calls a round.

Imports are measured in fresh processes, in turn, and are compiled. For the first message the
shipped ServerApp waits for requests in this process, with its YOLO, its data set and a version in
Production, in front of nodes that answer at once. Each session starts from that version, whose
score on the holdout is remembered from the first. The calls are counted at a real MLflow server;
the peer logs and registers the model of each round with ``mlflow.pytorch.log_model``, as is usual.
"""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
import tomllib
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))

import numpy as np
import requests
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg
from flwr.supercore.task_identity import TaskIdentity
from support.local_grid import LocalGrid, reply
from support.registry_servers import mlflow_server

from benchmarks.table import Row, parser, report
from fl_app.strategy import LifecycleStrategy
from fl_registry import FederatedLearningTracker, ModelManager
from fl_registry.home import sqlite_address

ROOT = Path(__file__).resolve().parents[1]
REPEATS, FEW, MANY = 7, 2, 7
IMPORT_GOAL, CALLS_GOAL, MESSAGE_GOAL = 1.3, 17.0, 0.5
"""The first for the ratio, the others for our figure."""


def import_seconds(module: str) -> float:
    """Seconds that a fresh interpreter takes for one import."""
    code = f"import time; t = time.perf_counter(); import {module}; print(time.perf_counter() - t)"
    environment = {n: v for n, v in os.environ.items() if n != "PYTHONDONTWRITEBYTECODE"}
    words = [sys.executable, "-c", code]
    done = subprocess.run(
        words, cwd=ROOT, env=environment, capture_output=True, check=True, text=True
    )
    return float(done.stdout)


def imports() -> Iterator[Row]:
    """The import of the strategy beside that of Flower's strategies, in turn."""
    names = ("fl_app.strategy", "flwr.serverapp.strategy")
    for name in names:
        import_seconds(name)  # so that both are compiled
    times = [[import_seconds(name) for name in names] for _ in range(REPEATS)]
    ours, peer = zip(*times, strict=True)
    yield Row("import fl_app.strategy, s", ours, names[1], peer, IMPORT_GOAL)


class Watched(LocalGrid):
    """Nodes that answer at once; notes when the first TRAIN message of a session comes."""

    def __init__(self) -> None:
        super().__init__(self._reply, node_ids=(11, 12))
        self.first = threading.Event()
        self.at = 0.0

    def _reply(self, node_id: int, message: Message) -> RecordDict:
        if message.metadata.message_type == "train":
            return reply(message.content["arrays"], loss=1.0)
        return reply(mAP50=0.5)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        asked = list(messages)
        trains = any(message.metadata.message_type == "train" for message in asked)
        if trains and not self.first.is_set():
            self.at = time.perf_counter()
            self.first.set()
        return super().send_and_receive(asked, timeout=timeout)


def free_port() -> int:
    """A port that nobody listens at."""
    with socket.create_server(("127.0.0.1", 0)) as one:
        return int(one.getsockname()[1])


def ask(port: int, path: str, body: dict[str, Any] | None = None) -> Any:
    """Ask the ServerApp's API."""
    address = f"http://127.0.0.1:{port}{path}"
    told = requests.get(address, timeout=30) if body is None else _post(address, body)
    told.raise_for_status()
    return told.json()


def _post(address: str, body: dict[str, Any]) -> requests.Response:
    return requests.post(address, json=body, timeout=30)


def until_idle(port: int, sessions: int) -> None:
    """Wait until so many requests were served and the ServerApp waits for another."""
    while True:
        try:
            history = ask(port, "/trigger_history")
            done = [one for one in history if one["outcome"] == "done"]
            if len(done) >= sessions:
                time.sleep(1.0)
                return
        except OSError:
            pass
        time.sleep(0.2)


def first_messages(home: Path) -> list[float]:
    """Seconds from the answer 202 to the first TRAIN message, in an idle ServerApp."""
    import fl_app.server_app as app

    defaults = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["flwr"]["app"]["config"]
    port, grid, took = free_port(), Watched(), list[float]()
    address = sqlite_address(home / "mlflow.db")  # MLflow's own functions leave theirs behind
    config = {
        **defaults,
        "home": str(home),
        "mlflow-tracking-uri": address,
        "continuous": True,
        "api-port": port,
        "num-server-rounds": 1,
        "min-nodes": 2,
    }
    context = Context(7, 0, {}, RecordDict(), config)
    threading.Thread(target=app.main, args=(grid, context), daemon=True).start()
    grid.first.wait()
    for number in range(REPEATS + 1):
        until_idle(port, number)
        if number == 0:
            time.sleep(3)
            ModelManager(address, home=home).promote_to_production("1")
        grid.first.clear()
        ask(port, "/trigger_retrain", {"reason": "a benchmark"})
        answered = time.perf_counter()
        grid.first.wait()
        took.append(max(0.0, grid.at - answered))
    return took[1:]


class Counted:
    """Counts the HTTP requests of a block."""

    def __enter__(self) -> Counted:
        self.calls, self._send = 0, requests.Session.send
        send = self._send

        def counting(session: requests.Session, request: Any, **how: Any) -> requests.Response:
            self.calls += 1
            return send(session, request, **how)

        requests.Session.send = counting  # type: ignore[method-assign]
        return self

    def __exit__(self, *_: object) -> None:
        requests.Session.send = self._send  # type: ignore[method-assign]


def per_round(run: Callable[[int], None]) -> float:
    """Calls of a round: those of many rounds less those of a few."""
    run(1)  # the first of all makes tables and experiments
    counts = []
    for rounds in (FEW, MANY):
        with Counted() as counted:
            run(rounds)
        counts.append(counted.calls)
    return (counts[1] - counts[0]) / (MANY - FEW)


def with_lifecycle(address: str, home: Path, rounds: int) -> None:
    """A session whose rounds are each better than the one before, so each is staged."""

    def better(server_round: int, scored: ArrayRecord) -> MetricRecord:
        return MetricRecord({"mAP50": 0.5 + 0.01 * server_round})

    name = f"benchmark-{rounds}"
    strategy = LifecycleStrategy(
        FedAvg(min_available_nodes=2),
        metric="mAP50",
        artifacts=[],
        store=ModelManager(address, name, home=home),
        tracker=FederatedLearningTracker(address, home=home),
        home=home,
    )
    model = ArrayRecord([np.zeros((10, 10), np.float32)])
    strategy.start(Watched(), model, num_rounds=rounds, evaluate_fn=better)


def the_usual_way(address: str, rounds: int) -> None:
    """Log metrics and the model of each round, and register it, with MLflow's own functions."""
    import mlflow
    import torch

    mlflow.set_tracking_uri(address)
    mlflow.set_experiment("the usual way")
    with mlflow.start_run():
        for number in range(rounds):
            mlflow.log_metrics({"mAP50": 0.5 + 0.01 * number}, step=number)
            mlflow.pytorch.log_model(
                torch.nn.Linear(10, 10),
                name="model",
                registered_model_name="the-usual-way",
                pip_requirements=["torch"],
                serialization_format="pickle",
            )


def calls() -> Iterator[Row]:
    """Calls of an MLflow server in a round: ours with lease, journal, stage and alias."""
    with tempfile.TemporaryDirectory() as name, mlflow_server(Path(name)) as address:
        ours = per_round(lambda rounds: with_lifecycle(address, Path(name), rounds))
        peer = per_round(lambda rounds: the_usual_way(address, rounds))
    what = "calls of MLflow's server in a round that is staged"
    usual = "log_metrics, log_model and register each round"
    yield Row(what, ours, usual, peer, CALLS_GOAL, met=ours <= CALLS_GOAL)


def messages() -> Iterator[Row]:
    """The first TRAIN message of an idle ServerApp, on MLflow in a SQLite file."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        took = first_messages(Path(name))
    what = "from the 202 to the first TRAIN message, YOLO, version in Production, s"
    yield Row(what, took, goal=MESSAGE_GOAL)


def main() -> None:
    """Print the table, and write its rows where ``--json`` says."""
    options = parser(__doc__)
    parts = {"imports": imports, "calls": calls, "messages": messages}
    options.add_argument("--part", choices=parts, action="append")
    given = options.parse_args()
    logging.disable(logging.CRITICAL)
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 7, 1
    chosen = [measure for name, measure in parts.items() if name in (given.part or parts)]
    report(chain.from_iterable(measure() for measure in chosen), given.json)
    os._exit(0)  # the ServerApp waits for requests for ever


if __name__ == "__main__":
    main()
