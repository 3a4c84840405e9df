# SPDX-License-Identifier: Apache-2.0
"""What the lifecycle adds to a round: the same federation by bare FedAvg and by LifecycleStrategy.

Ten clients that answer at once with a 12 MB model, so that the server's own work is all there is;
and clients that train for a second each, so that the worker has time beside them. Both sides run in
turn in this process; each figure is a median.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

# This folder last: else `registry` would be the benchmark of that name.
sys.path.sort(key=lambda folder: Path(folder).resolve() == Path(__file__).resolve().parent)

import numpy as np
from flwr.app import ArrayRecord, Message, RecordDict
from flwr.serverapp.strategy import FedAvg, Strategy
from flwr.supercore.task_identity import TaskIdentity
from local_grid import LocalGrid, reply

from fl_app.strategy import LifecycleStrategy
from registry import FederatedLearningTracker, ModelManager

CLIENTS, ROUNDS, REPEATS = 10, 5, 5
FLOATS = 3_000_000


def client(seconds: float) -> Callable[[int, Message], RecordDict]:
    """A client that takes ``seconds`` for a whole round's training and returns what it got."""

    def answer(node_id: int, message: Message) -> RecordDict:
        if message.metadata.message_type == "train":
            time.sleep(seconds / CLIENTS)
            return reply(message.content["arrays"], loss=1.0)
        return reply(accuracy=0.5)

    return answer


def seconds_per_round(strategy: Strategy, work: float) -> float:
    """Wall seconds of a round of ``strategy``."""
    rng = np.random.default_rng(0)
    arrays = ArrayRecord([rng.random(FLOATS // 30, dtype=np.float32) for _ in range(30)])
    grid = LocalGrid(client(work), node_ids=range(11, 11 + CLIENTS))
    began = time.perf_counter()
    strategy.start(grid, arrays, num_rounds=ROUNDS)
    return (time.perf_counter() - began) / ROUNDS


def measure(work: float, *, pipeline: bool, home: Path) -> tuple[float, float]:
    """Medians of a round's seconds, wrapped and bare, taken in turn."""
    wrapped, bare = [], []
    for _ in range(REPEATS):
        strategy = LifecycleStrategy(
            FedAvg(),
            metric="accuracy",
            store=ModelManager(home=home),
            tracker=FederatedLearningTracker(home=home),
            home=home,
            pipeline=pipeline,
        )
        wrapped.append(seconds_per_round(strategy, work))
        bare.append(seconds_per_round(FedAvg(), work))
    return statistics.median(wrapped), statistics.median(bare)


def main() -> None:
    """Print the table, and write its rows where ``--json`` says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    target = parser.parse_args().json
    logging.disable(logging.WARNING)
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 7, 1
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        measure(0, pipeline=True, home=Path(folder))  # imports and the first tables are not a round
        for work in (0.0, 1.0):
            for pipeline in (True, False):
                ours, peer = measure(work, pipeline=pipeline, home=Path(folder))
                how = "pipelined" if pipeline else "inline"
                rows.append(
                    {
                        "row": f"a round, clients train {work:g} s, {how}",
                        "ours": ours,
                        "peer": "bare FedAvg",
                        "peer_value": peer,
                        "ratio": ours / peer,
                        "goal": None,
                        "met": None,
                    }
                )
    for row in rows:
        print(
            f"{row['row']:45} {row['ours']:8.3f} s {row['peer_value']:8.3f} s {row['ratio']:6.2f}"
        )
    if target:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
