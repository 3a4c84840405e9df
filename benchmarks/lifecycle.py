# SPDX-License-Identifier: Apache-2.0
"""What the lifecycle adds to a round, beside bare FedAvg and beside the usual way of doing it.

Ten clients answer with a 12 MB model, at once or after a second of training in which the machine
is idle. A round lasts from its first message to the first message of the next one; each figure is
the median over the rounds of several sessions, in seconds; the sides run in turn. The usual way is
what Flower's and MLflow's examples show: a loop of one's own that logs the model by
``mlflow.pytorch.log_model`` and registers it in every round.
"""

from __future__ import annotations

import logging
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg
from flwr.supercore.task_identity import TaskIdentity
from support.local_grid import LocalGrid, reply

from benchmarks.table import Row, parser, report
from fl_app.strategy import LifecycleStrategy, RoundSettings, StreamingFedAvg
from fl_registry import FederatedLearningTracker, ModelManager

CLIENTS, ROUNDS, REPEATS = 10, 5, 5
FLOATS, PARTS = 3_000_000, 30
ADDED_GOAL, EVALUATED_GOAL = 1.02, 1.05
WORK = 1.0
"""Seconds of a round's training."""

Side = Callable[[float, Path], list[float]]
"""Runs a session whose clients train so many seconds; returns when each of its rounds began."""


def first_arrays() -> ArrayRecord:
    """A 12 MB model."""
    rng = np.random.default_rng(0)
    return ArrayRecord([rng.random(FLOATS // PARTS, dtype=np.float32) for _ in range(PARTS)])


def grid_of(seconds: float, began: list[float]) -> LocalGrid:
    """Clients that take ``seconds`` for a whole round's training and return what they got."""

    def answer(node_id: int, message: Message) -> RecordDict:
        if message.metadata.message_type == "train":
            time.sleep(seconds / CLIENTS)
            return reply(message.content["arrays"], loss=1.0)
        return reply(accuracy=0.5)

    class Timed(LocalGrid):
        def send_and_receive(
            self, messages: Iterable[Message], *, timeout: float | None = None
        ) -> Iterable[Message]:
            sent = list(messages)
            if sent and sent[0].metadata.message_type == "train":
                began.append(time.perf_counter())
            return super().send_and_receive(sent, timeout=timeout)

    return Timed(answer, node_ids=range(11, 11 + CLIENTS))


def bare(work: float, home: Path) -> list[float]:
    """Flower's own loop with FedAvg."""
    began: list[float] = []
    FedAvg().start(grid_of(work, began), first_arrays(), num_rounds=ROUNDS + 2)
    return began


def wrapped(inner: type[FedAvg], *, pipeline: bool = True, evaluation: float = 0.0) -> Side:
    """The lifecycle around a strategy; ``evaluation`` is how long the holdout takes."""

    def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        time.sleep(evaluation)
        return MetricRecord({"accuracy": 0.5})

    def run(work: float, home: Path) -> list[float]:
        began: list[float] = []
        strategy = LifecycleStrategy(
            inner(),
            metric="accuracy",
            store=ModelManager(home=home),
            tracker=FederatedLearningTracker(home=home),
            home=home,
            rounds=RoundSettings(pipeline=pipeline),
        )
        evaluate_fn = evaluate if evaluation else None
        arrays, grid = first_arrays(), grid_of(work, began)
        strategy.start(grid, arrays, num_rounds=ROUNDS + 2, evaluate_fn=evaluate_fn)
        return began

    return run


def usual(work: float, home: Path) -> list[float]:
    """A copy of Flower's loop that logs, stores and registers each round before the next one."""
    import mlflow
    import torch

    mlflow.set_tracking_uri(f"sqlite:///{home}/usual.db")
    if mlflow.get_experiment_by_name("usual") is None:
        mlflow.create_experiment("usual", artifact_location=(home / "artifacts").as_uri())
    mlflow.set_experiment("usual")
    began: list[float] = []
    grid, strategy, arrays = grid_of(work, began), FedAvg(), first_arrays()
    module = torch.nn.Module()
    for name, array in arrays.items():
        module.register_parameter(f"p{name}", torch.nn.Parameter(torch.tensor(array.numpy())))
    with mlflow.start_run():
        for number in range(1, ROUNDS + 3):
            config = ConfigRecord()
            sent = strategy.configure_train(number, arrays, config, grid)
            new, metrics = strategy.aggregate_train(number, grid.send_and_receive(sent))
            asked = strategy.configure_evaluate(number, new or arrays, config, grid)
            scores = strategy.aggregate_evaluate(number, grid.send_and_receive(asked))
            arrays = new or arrays
            mlflow.log_metrics(_numbers(metrics) | _numbers(scores), step=number)
            state = {f"p{name}": torch.tensor(array.numpy()) for name, array in arrays.items()}
            module.load_state_dict(state)
            mlflow.pytorch.log_model(
                module,
                name=f"round-{number}",
                registered_model_name="usual",
                pip_requirements=["torch"],
                serialization_format="pickle",
            )
    return began


def _numbers(metrics: MetricRecord | None) -> dict[str, float]:
    return {name: float(v) for name, v in (metrics or {}).items() if isinstance(v, int | float)}


def seconds_of(sides: dict[str, Side], work: float, home: Path) -> dict[str, float]:
    """Seconds of a round by side; medians over all rounds but the first one of each session."""
    taken: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(REPEATS):
        for name in sorted(sides, reverse=bool(number % 2)):
            taken[name] += list(np.diff(sides[name](work, home))[1:])
    return {name: statistics.median(rounds) for name, rounds in taken.items()}


def rows_of(home: Path) -> Iterator[Row]:
    """All rows of the table."""
    peer = "bare FedAvg"
    ours, kept = "around StreamingFedAvg", "around FedAvg"
    for work in (0.0, WORK):
        sides: dict[str, Side] = {
            "bare": bare,
            ours: wrapped(StreamingFedAvg),
            kept: wrapped(FedAvg),
            "the usual way": usual,
        }
        took = seconds_of(sides, work, home)
        told = f"a round, clients train {work:g} s"
        for name in (ours, kept, "the usual way"):
            goal = ADDED_GOAL if name == ours and work else None
            yield Row(f"{told}, {name}", took[name], peer, took["bare"], goal)
    sides = {"bare": bare}
    for pipeline in (True, False):
        named = "pipelined" if pipeline else "inline"
        sides[named] = wrapped(StreamingFedAvg, pipeline=pipeline, evaluation=WORK)
    took = seconds_of(sides, WORK, home)
    for named, goal in (("pipelined", EVALUATED_GOAL), ("inline", None)):
        name = f"a round, evaluation as long as training, {named}"
        yield Row(name, took[named], peer, took["bare"], goal)


def main() -> None:
    """Print the table, and write its rows where ``--json`` says."""
    given = parser(__doc__).parse_args()
    logging.disable(logging.WARNING)
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 7, 1
    with tempfile.TemporaryDirectory() as folder:
        for side in (wrapped(StreamingFedAvg), usual):  # imports and tables are not a round
            side(0.0, Path(folder))
        report(rows_of(Path(folder)), given.json)


if __name__ == "__main__":
    main()
