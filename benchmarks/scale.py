# SPDX-License-Identifier: Apache-2.0
"""Seconds of a round and server memory at 10, 100 and 1,000 simulated nodes, wrapped and bare.

Flower's own simulation (Ray) runs the nodes, which send a 12 MB model back after ``--work``
seconds; of 1,000 nodes each round asks 100. Each figure is the median of processes of their own,
in turn; the memory is the peak of the process in which the ServerApp runs, its share of Ray's
store included.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from benchmarks.table import Row, parser, report
from fl_app.strategy import LifecycleStrategy, StreamingFedAvg

NODES = (10, 100, 1000)
ASKED = 100
"""At most so many nodes train in a round."""
ROUNDS = 4
"""Measured ones; the first, in which Ray starts its workers, is left out."""
FLOATS, PARTS = 3_000_000, 30
TIME_GOAL, MEMORY_GOAL = 1.02, 1.1


class TimedFedAvg(FedAvg):
    """Notes when each round begins."""

    def __init__(self, **named: Any) -> None:
        super().__init__(**named)
        self.began: list[float] = []

    def configure_train(self, *args: Any, **named: Any) -> Iterable[Message]:
        """Note the time."""
        self.began.append(time.perf_counter())
        return super().configure_train(*args, **named)


class TimedStreaming(TimedFedAvg, StreamingFedAvg):
    """The same for the average that takes replies as they arrive."""


def client_app(work: float) -> ClientApp:
    """A node that takes a while and sends back what it got."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        time.sleep(work)
        metrics = MetricRecord({"num-examples": 10, "accuracy": 0.5})
        content = RecordDict({"arrays": message.content["arrays"], "metrics": metrics})
        return Message(content, reply_to=message)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        metrics = MetricRecord({"num-examples": 10, "accuracy": 0.5})
        return Message(RecordDict({"metrics": metrics}), reply_to=message)

    return app


def run_here(side: str, nodes: int, work: float) -> dict[str, float]:
    """Run the rounds in this process; seconds of a round (median), and the peak of memory in MB."""
    from flwr.simulation import run_simulation

    kind = TimedStreaming if side == "streaming" else TimedFedAvg
    inner = kind(fraction_train=min(1, ASKED / nodes), fraction_evaluate=0.0)
    server = ServerApp()

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        strategy: Any = inner
        if side != "bare":
            strategy = LifecycleStrategy(inner, metric="train/accuracy")
        rng = np.random.default_rng(0)
        parts = [rng.random(FLOATS // PARTS, dtype=np.float32) for _ in range(PARTS)]
        strategy.start(grid, ArrayRecord(parts), num_rounds=ROUNDS + 2)

    run_simulation(
        server, client_app(work), nodes, backend_config={"client_resources": {"num_cpus": 1}}
    )
    rounds = np.diff(inner.began)[1:]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"seconds": float(np.median(rounds)), "memory": peak}


def run(side: str, nodes: int, work: float) -> dict[str, float]:
    """Run the rounds in a process of its own, with a home of its own."""
    with tempfile.TemporaryDirectory() as home:
        told = Path(home) / "told.json"
        words = [sys.executable, "-m", "benchmarks.scale", "--work", str(work)]
        words += ["--one", side, str(nodes), str(told)]
        environment = {**os.environ, "FL_APP_HOME": home, "FLWR_HOME": f"{home}/flwr"}
        subprocess.run(words, env=environment, check=True, capture_output=True)
        return dict(json.loads(told.read_text()))


def measure(nodes: int, work: float, repeats: int) -> Iterator[Row]:
    """Rows of one number of nodes: time and memory, wrapped beside bare."""
    found: dict[str, list[dict[str, float]]] = {"wrapped": [], "streaming": [], "bare": []}
    for number in range(repeats):
        for side in sorted(found, reverse=bool(number % 2)):
            found[side].append(run(side, nodes, work))
    for side, how in (("wrapped", "around FedAvg"), ("streaming", "around StreamingFedAvg")):
        for what, unit, goal in (("seconds", "s", TIME_GOAL), ("memory", "MB", MEMORY_GOAL)):
            ours, peer = ([trial[what] for trial in found[one]] for one in (side, "bare"))
            yield Row(f"{nodes} nodes, {how}, {what} ({unit})", ours, "bare FedAvg", peer, goal)


def main() -> None:
    """Print the table, and write its rows where ``--json`` says."""
    options = parser(__doc__)
    options.add_argument("--nodes", type=int, nargs="*", default=NODES)
    options.add_argument("--work", type=float, default=0.25, help="seconds that a node takes")
    options.add_argument("--repeats", type=int, default=3)
    options.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    given = options.parse_args()
    if given.one:
        side, nodes, told = given.one
        logging.disable(logging.WARNING)
        Path(told).write_text(json.dumps(run_here(side, int(nodes), given.work)))
        return
    work, repeats = given.work, given.repeats
    report((row for nodes in given.nodes for row in measure(nodes, work, repeats)), given.json)


if __name__ == "__main__":
    main()
