# SPDX-License-Identifier: Apache-2.0
"""Aggregating replies of the size of YOLOv8n: StreamingFedAvg beside Flower's FedAvg.

The same 12 MB replies (355 arrays) are averaged by both, in turn, and so are the bytes copied by
numpy, which is what memory allows. Screening, which looks at every value of a reply, has rows of
its own. Memory is what a process holds at most beyond the replies, told by tracemalloc.
"""

from __future__ import annotations

import logging
import statistics
import time
import tracemalloc
from collections.abc import Callable, Iterator

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
SPEED_GOAL, MEMORY_GOAL, BANDWIDTH_GOAL = 0.1, 3.0, 2.0
WIDTHS = (16, 32, 32, 64, 64, 128, 128, 256, 256)
"""Channels whose 3x3 convolutions, with four vectors and a counter each, make up such a model."""


def model(seed: int, megabytes: float = 12.0) -> ArrayRecord:
    """Arrays in the shapes of a convolutional network, 12 MB in 355 arrays."""
    rng = np.random.default_rng(seed)
    shapes: list[tuple[int, ...]] = []
    for number in range(57):
        width = WIDTHS[number % len(WIDTHS)]
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


def peak_megabytes(work: Callable[[], object]) -> float:
    """What a call holds at most, beyond what there was before."""
    tracemalloc.start()
    work()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return peak / 1e6


def measure(count: int, models: list[ArrayRecord]) -> Iterator[Row]:
    """Rows of one number of replies; times are milliseconds for each reply."""
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

    ways: dict[str, Callable[[], object]] = {
        "ours": lambda: ours.aggregate_train(1, replies(models, count)),
        "flower": lambda: flower.aggregate_train(1, list(replies(models, count))),
        "screened": screened,
        "copy": copied,
    }
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(REPEATS):
        for name, work in ways.items():
            taken[name].append(milliseconds(work) / count)
    took = {name: statistics.median(times) for name, times in taken.items()}
    size = sum(len(array.data) for array in models[0].values()) / 1e6
    told = f"{count} replies"
    yield Row(f"{told} (ms each)", took["ours"], "FedAvg", took["flower"], SPEED_GOAL)
    yield Row(f"{told} (ms each)", took["ours"], "copied by numpy", took["copy"], BANDWIDTH_GOAL)
    yield Row(f"{told}, screened (ms each)", took["screened"], "FedAvg", took["flower"])
    yield Row(f"{told}, peak (MB)", peak_megabytes(ways["ours"]), "a model", size, MEMORY_GOAL)


def main() -> None:
    """Print the table, and write its rows where ``--json`` says."""
    given = parser(__doc__).parse_args()
    logging.disable(logging.WARNING)
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 7, 1
    models = [model(seed) for seed in range(10)]
    list(measure(2, models))  # imports are not an aggregation
    report((row for count in REPLIES for row in measure(count, models)), given.json)


if __name__ == "__main__":
    main()
