# SPDX-License-Identifier: Apache-2.0
"""Aggregating replies of the size of YOLOv8n: StreamingFedAvg beside Flower's FedAvg.

The same 12 MB replies (355 arrays) are averaged by both, in turn, and so are the bytes copied by
numpy, which is a floor: what memory allows. The rows with goals have screening on, as the default
is, which looks at every value of a reply. Memory is by how much the resident memory of a process
grows at most, beyond the ten models that all replies share.
"""

from __future__ import annotations

import argparse
import logging
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg
from flwr.supercore.task_identity import TaskIdentity

from benchmarks.table import Row, parser, report
from fl_app.strategy import Screening, StreamingFedAvg
from fl_app.strategy.round.screening import Needs, screen_train
from fl_app.wire.arrays import schema_of

REPLIES = (10, 50, 200)
REPEATS = 5
MEMORY_GOAL, BANDWIDTH_GOAL = 3.0, 2.5
WIDTHS = (16, 32, 32, 64, 64, 128, 128, 256, 256)
"""Channels whose 3x3 convolutions, with four vectors and a counter each, make up such a model."""


def model(seed: int, megabytes: float = 12.0) -> ArrayRecord:
    """Arrays in the shapes of a convolutional network, 355 of them."""
    rng, scale = np.random.default_rng(seed), (megabytes / 12) ** 0.5
    shapes: list[tuple[int, ...]] = []
    for number in range(57):
        width = max(1, round(WIDTHS[number % len(WIDTHS)] * scale))
        shapes += [(width, width, 3, 3)] if number % 3 == 0 else [(width, width)]
        shapes += [(width,)] * 4
    rest = megabytes * 1e6 / 4 - sum(int(np.prod(shape)) for shape in shapes)
    shapes += [(int(rest) // 13,)] * 13  # 298 arrays of floats, as YOLOv8n has them
    record = ArrayRecord()
    for number, shape in enumerate(shapes):
        record[f"model.{number}.weight"] = Array(rng.standard_normal(shape, dtype=np.float32))
    for number in range(57):
        record[f"model.{number}.num_batches_tracked"] = Array(np.asarray(seed, np.int64))
    return record


def replies(models: list[ArrayRecord], count: int) -> Iterator[Message]:
    """So many replies, of which each is made when it is asked for."""
    for number in range(count):
        metrics = MetricRecord({"num-examples": 100 + number, "loss": 1.0})
        content = RecordDict({"arrays": models[number % len(models)], "metrics": metrics})
        reply = Message(content, reply_to=Message(RecordDict(), number + 1, "train"))
        reply.metadata.__dict__["_src_node_id"] = number + 1
        yield reply


def milliseconds(work: Callable[[], object]) -> float:
    """Of one call."""
    began = time.perf_counter()
    work()
    return (time.perf_counter() - began) * 1e3


def ways(count: int, models: list[ArrayRecord]) -> dict[str, Callable[[], object]]:
    """The ways to go through so many replies."""
    flat = [np.frombuffer(b"".join(a.data for a in each.values()), np.uint8) for each in models]
    target = np.empty_like(flat[0])
    schema = schema_of(models[0])
    ours, flower = StreamingFedAvg(), FedAvg()  # one of each for all rounds, as in Flower's loop

    def screened() -> object:
        arriving = screen_train(
            replies(models, count), Screening(), needs=Needs(), model=models[0], schema=schema
        )
        return ours.aggregate_train(1, arriving)

    def copied() -> None:
        for number in range(count):
            np.copyto(target, flat[number % len(flat)])

    return {
        "screened": screened,
        "alone": lambda: ours.aggregate_train(1, replies(models, count)),
        "FedAvg": lambda: flower.aggregate_train(1, list(replies(models, count))),
        "copied": copied,
    }


def peak_megabytes(way: str, count: int) -> float:
    """By how much the resident memory of a fresh process grows at most; Linux only."""
    words = [sys.executable, "-m", "benchmarks.aggregation", "--peak", way, str(count)]
    return float(subprocess.run(words, check=True, capture_output=True, text=True).stdout)


def peak_here(way: str, count: int) -> float:
    """The same of this process."""
    ways(2, [model(0, 0.2)])[way]()  # imports are not an aggregation
    work = ways(count, [model(seed) for seed in range(10)])[way]
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before = _resident("VmRSS")
    work()
    return _resident("VmHWM") - before


def _resident(what: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    (found,) = (line.split()[1] for line in lines if line.startswith(what))
    return int(found) * 1024 / 1e6


def measure(count: int, models: list[ArrayRecord]) -> Iterator[Row]:
    """Rows of one number of replies; times are milliseconds for each reply."""
    works = ways(count, models)
    took: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(REPEATS):
        for name, work in works.items():
            took[name].append(milliseconds(work) / count)
    told = f"{count} replies"
    for name, goal in ("screened", BANDWIDTH_GOAL), ("alone", None):
        row = f"{told}, {name} (ms each)"
        yield Row(row, took[name], "a floor: copied by numpy", took["copied"], goal)
        yield Row(row, took[name], "FedAvg, not screened", took["FedAvg"])


def memory(count: int) -> Iterator[Row]:
    """Rows of what an aggregation holds."""
    size = sum(len(array.data) for array in model(0).values()) / 1e6
    peak = {name: peak_megabytes(name, count) for name in ("screened", "FedAvg")}
    name = f"{count} replies, screened, peak of resident memory (MB)"
    yield Row(name, peak["screened"], "a model", size, MEMORY_GOAL)
    yield Row(name, peak["screened"], "FedAvg, not screened", peak["FedAvg"])


def main() -> None:
    """Print the table, and write its rows where ``--json`` says."""
    options = parser(__doc__)
    options.add_argument("--peak", nargs=2, help=argparse.SUPPRESS)
    given = options.parse_args()
    logging.disable(logging.WARNING)
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 7, 1
    if given.peak:
        print(peak_here(given.peak[0], int(given.peak[1])))
        return
    models = [model(seed) for seed in range(10)]
    list(measure(2, models))  # imports are not an aggregation
    rows = (row for count in REPLIES for row in (*measure(count, models), *memory(count)))
    report(rows, given.json)


if __name__ == "__main__":
    main()
