# SPDX-License-Identifier: Apache-2.0
"""What the lifecycle adds to a round, beside the same strategy alone and the usual way of doing it.

Clients answer in this process with a model of 355 arrays, at once or after a second of training in
which the machine is idle. A node scores each round better than the one before, so each version is
staged. A round lasts from its first message to the first message of the next one; a figure is the
median of a session's rounds but the first. The sides run in turn, in five sessions each, whose
median and spread a row has. Whole sessions, with start and end, have rows of their own. The usual
way is what Flower's and MLflow's examples show: a loop of one's own that logs the model in every
round, as a file, or by ``mlflow.pytorch.log_model`` as a registered one. The floors are what any
lifecycle of these promises takes: each reply read once, the model on disk before a node sees it,
and MLflow's calls for a version that is logged, registered and staged, in an idle process.
"""

from __future__ import annotations

import logging
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg
from flwr.supercore.task_identity import TaskIdentity
from support.local_grid import LocalGrid, reply

from benchmarks.aggregation import model
from benchmarks.table import Row, parser, report
from fl_app.strategy import LifecycleStrategy, RoundSettings, StreamingFedAvg
from fl_registry import FederatedLearningTracker, ModelManager

ROUNDS, REPEATS = 6, 5
RATIO_GOAL, ADDED_GOAL, EVALUATED_GOAL = 1.02, 0.05, 1.05
WORK = 1.0
"""Seconds of a round's training."""


@dataclass(frozen=True)
class Case:
    """So many clients, which send so many megabytes and train for so many seconds together."""

    megabytes: float
    clients: int
    work: float

    def __str__(self) -> str:
        train = f"train {self.work:g} s" if self.work else "answer at once"
        return f"{self.megabytes:g} MB, {self.clients} clients that {train}"


INSTANT = [Case(megabytes, clients, 0.0) for megabytes in (1, 12) for clients in (2, 10)]
TRAINING = Case(12, 10, WORK)

Side = Callable[[Case, Path], list[float]]
"""Runs a session; returns when each of its rounds began, after its start and before its end."""


@cache
def first_arrays(megabytes: float) -> ArrayRecord:
    """A model of 355 arrays."""
    return model(0, megabytes)


def grid_of(case: Case, began: list[float]) -> LocalGrid:
    """Clients that return what they got, and score each model better than the last one."""

    def answer(node_id: int, message: Message) -> RecordDict:
        if message.metadata.message_type == "train":
            time.sleep(case.work / case.clients)
            return reply(message.content["arrays"], loss=1.0)
        return reply(accuracy=len(began) / 100)

    class Timed(LocalGrid):
        def send_and_receive(
            self, messages: Iterable[Message], *, timeout: float | None = None
        ) -> Iterable[Message]:
            sent = list(messages)
            if sent and sent[0].metadata.message_type == "train":
                began.append(time.perf_counter())
            return super().send_and_receive(sent, timeout=timeout)

    return Timed(answer, node_ids=range(11, 11 + case.clients))


def bare(strategy: type[FedAvg]) -> Side:
    """Flower's own loop with a strategy."""

    def run(case: Case, home: Path) -> list[float]:
        began = [time.perf_counter()]
        arrays = first_arrays(case.megabytes)
        strategy().start(grid_of(case, began), arrays, num_rounds=ROUNDS)
        return [*began, time.perf_counter()]

    return run


def wrapped(inner: type[FedAvg], *, pipeline: bool = True, evaluation: float = 0.0) -> Side:
    """The lifecycle around a strategy; ``evaluation`` is how long the holdout computes."""

    def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        matrix, until = np.ones((300, 300), np.float32), time.thread_time() + evaluation
        while time.thread_time() < until:
            matrix = matrix @ matrix / 300
        return MetricRecord({"accuracy": server_round / 100})

    def run(case: Case, home: Path) -> list[float]:
        began = [time.perf_counter()]
        strategy = LifecycleStrategy(
            inner(),
            metric="accuracy",
            store=ModelManager(home=home),
            tracker=FederatedLearningTracker(home=home),
            home=home,
            rounds=RoundSettings(pipeline=pipeline),
        )
        evaluate_fn = evaluate if evaluation else None
        arrays, grid = first_arrays(case.megabytes), grid_of(case, began)
        strategy.start(grid, arrays, num_rounds=ROUNDS, evaluate_fn=evaluate_fn)
        return [*began, time.perf_counter()]

    return run


def usual(*, registered: bool) -> Side:
    """A copy of Flower's loop that logs each round before the next one, as a model or as a file."""

    def run(case: Case, home: Path) -> list[float]:
        import mlflow
        import torch

        began = [time.perf_counter()]
        mlflow.set_tracking_uri(f"sqlite:///{home}/usual.db")
        if mlflow.get_experiment_by_name("usual") is None:
            mlflow.create_experiment("usual", artifact_location=(home / "artifacts").as_uri())
        mlflow.set_experiment("usual")
        grid, strategy = grid_of(case, began), FedAvg()
        arrays, module = first_arrays(case.megabytes), torch.nn.Module()
        for number, array in enumerate(arrays.values()):
            module.register_buffer(f"p{number}", torch.tensor(array.numpy()))
        with mlflow.start_run():
            for number in range(1, ROUNDS + 1):
                config = ConfigRecord()
                sent = strategy.configure_train(number, arrays, config, grid)
                new, metrics = strategy.aggregate_train(number, grid.send_and_receive(sent))
                asked = strategy.configure_evaluate(number, new or arrays, config, grid)
                scores = strategy.aggregate_evaluate(number, grid.send_and_receive(asked))
                arrays = new or arrays
                mlflow.log_metrics(_numbers(metrics) | _numbers(scores), step=number)
                values = [torch.tensor(array.numpy()) for array in arrays.values()]
                state = {f"p{place}": value for place, value in enumerate(values)}
                if registered:
                    module.load_state_dict(state)
                    mlflow.pytorch.log_model(
                        module,
                        name=f"round-{number}",
                        registered_model_name="usual",
                        pip_requirements=["torch"],
                        serialization_format="pickle",
                    )
                else:
                    torch.save(state, home / f"round-{number}.pt")
                    mlflow.log_artifact(str(home / f"round-{number}.pt"))
        return [*began, time.perf_counter()]

    return run


def read_and_written(case: Case, home: Path) -> float:
    """Seconds in which the replies are read once, and the model is written and synced."""
    values = np.ones(int(case.megabytes * 1e6) // 4, np.float32)
    began = time.perf_counter()
    for _ in range(case.clients):
        np.dot(values, values)
    with (home / "floor").open("wb") as file:
        file.write(values.data)
        os.fsync(file.fileno())
    return time.perf_counter() - began


def called(home: Path) -> list[float]:
    """Seconds of MLflow's calls for one version, of a session's rounds but the first."""
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModelStatus, Metric

    client = MlflowClient(f"sqlite:///{home}/floor.db")
    if client.get_experiment_by_name("floor") is None:
        client.create_experiment("floor", artifact_location=(home / "artifacts").as_uri())
        client.create_registered_model("floor")
    experiment = client.get_experiment_by_name("floor").experiment_id
    run, took = client.create_run(experiment).info.run_id, []
    for number in range(1, ROUNDS + 1):
        began, now = time.perf_counter(), int(time.time() * 1e3)
        names = ("train/loss", "client/accuracy", "accuracy", "nodes")
        client.log_batch(run, [Metric(name, 0.5, now, number) for name in names])
        model = client.create_logged_model(experiment, name="floor", source_run_id=run)
        client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
        version = client.create_model_version(
            "floor", model.artifact_location, run, tags={"round": str(number)}
        ).version
        client.set_model_version_tag("floor", version, "stage", "Staging")
        client.set_registered_model_alias("floor", "staging", version)
        with warnings.catch_warnings(action="ignore", category=FutureWarning):
            client.transition_model_version_stage("floor", version, "Staging", True)
        took.append(time.perf_counter() - began)
    return took[1:]


def floors(home: Path) -> Iterator[Row]:
    """What a round's promises take by themselves."""
    read_and_written(TRAINING, home)
    told = f"a floor: {TRAINING.clients} replies of {TRAINING.megabytes:g} MB read once, a model"
    yield Row(
        f"{told} written and synced, s", [read_and_written(TRAINING, home) for _ in range(REPEATS)]
    )
    told = "a floor: MLflow's calls for a version that is logged, registered and staged, s"
    yield Row(told, [statistics.median(called(home)) for _ in range(REPEATS)])


def _numbers(metrics: MetricRecord | None) -> dict[str, float]:
    return {name: float(v) for name, v in (metrics or {}).items() if isinstance(v, int | float)}


@dataclass(frozen=True)
class Took:
    """Seconds of the sessions of a side: the median of the rounds of each, and each as a whole."""

    rounds: list[float]
    whole: list[float]

    def beyond(self, other: Took) -> Took:
        """Return the difference of each session, and that of each whole session by round."""
        pairs = (
            zip(self.rounds, other.rounds, strict=True),
            zip(self.whole, other.whole, strict=True),
        )
        rounds, whole = ([ours - theirs for ours, theirs in each] for each in pairs)
        return Took(rounds, [seconds / ROUNDS for seconds in whole])


def sessions(sides: dict[str, Side], case: Case, home: Path) -> dict[str, Took]:
    """Run the sessions of all sides in turn."""
    took = {name: Took([], []) for name in sides}
    for number in range(REPEATS):
        for name in sorted(sides, reverse=bool(number % 2)):
            moments = sides[name](case, home)
            took[name].rounds.append(statistics.median(np.diff(moments[2:-1]).tolist()))
            took[name].whole.append(moments[-1] - moments[0])
    return took


def rows_of(home: Path) -> Iterator[Row]:
    """All rows of the table."""
    kinds = {"FedAvg": FedAvg, "StreamingFedAvg": StreamingFedAvg}
    sides: dict[str, Side] = {name: bare(kind) for name, kind in kinds.items()}
    sides |= {f"around {name}": wrapped(kind) for name, kind in kinds.items()}
    hand = {"logged as a file": usual(registered=False), "log_model": usual(registered=True)}
    for case in (*INSTANT, TRAINING):
        took = sessions({**sides, **hand} if case.megabytes == 12 else sides, case, home)
        for name in kinds:
            ours, peer = took[f"around {name}"], took[name]
            what = f"{case}: a round around {name}"
            yield Row(
                f"{what}, s", ours.rounds, name, peer.rounds, RATIO_GOAL if case.work else None
            )
            added, goal = ours.beyond(peer), None if case.work else ADDED_GOAL
            yield Row(f"{what}, s more than {name} alone", added.rounds, goal=goal)
            yield Row(f"{what}, start and end counted, s more", added.whole)
        yield Row(
            f"{case}: a round of StreamingFedAvg alone, s",
            took["StreamingFedAvg"].rounds,
            "FedAvg",
            took["FedAvg"].rounds,
        )
        for name in hand.keys() & took.keys():
            yield Row(
                f"{case}: a round by hand, {name}, s",
                took[name].rounds,
                "FedAvg",
                took["FedAvg"].rounds,
            )
    yield from floors(home)
    sides = {"bare": bare(FedAvg)}
    for pipeline in (True, False):
        named = "pipelined" if pipeline else "inline"
        sides[named] = wrapped(FedAvg, pipeline=pipeline, evaluation=WORK)
    took = sessions(sides, TRAINING, home)
    for named, goal in (("pipelined", EVALUATED_GOAL), ("inline", None)):
        name = f"a round of a second, and a second of computed evaluation, {named}, s"
        yield Row(name, took[named].rounds, "FedAvg, not evaluated", took["bare"].rounds, goal)


def main() -> None:
    """Print the table, and write its rows where ``--json`` says."""
    given = parser(__doc__).parse_args()
    logging.disable(logging.WARNING)
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 7, 1
    with tempfile.TemporaryDirectory() as folder:
        # Imports and tables are not a round.
        for side in (wrapped(StreamingFedAvg), usual(registered=True), usual(registered=False)):
            side(INSTANT[0], Path(folder))
        report(rows_of(Path(folder)), given.json)


if __name__ == "__main__":
    main()
