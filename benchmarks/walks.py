# SPDX-License-Identifier: Apache-2.0
"""How far one reads to follow a datum through the code: files, functions, moves between files.

Each walk runs once for real, traced with `sys.setprofile`. A move is a call whose function stands
in another file than the function called before it. Lambdas and comprehensions are not counted.
"""

from __future__ import annotations

import sys
import tempfile
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg
from flwr.supercore.task_identity import TaskIdentity
from support.local_grid import LocalGrid, add_one, model

from benchmarks.table import Row, parser, report
from fl_app.api import create_trigger_api
from fl_app.retraining import MonitorStore, RetrainingManager
from fl_app.strategy import LifecycleStrategy, RoundSettings
from fl_registry import FederatedLearningTracker, InMemoryModelStore, ModelManager
from fl_registry.files.weights import save_weights

ROOT = Path(__file__).resolve().parents[1]
PRODUCT = tuple(f"{ROOT / name}/" for name in ("fl_app", "registry", "models"))
TOKEN = "a-token-of-the-benchmark"  # noqa: S105 - not a secret


class Walk:
    """The calls of the product's functions while it is on, in order, by thread."""

    def __init__(self) -> None:
        self.on = False
        self.calls: dict[int, list[tuple[str, str]]] = defaultdict(list)
        self.steps: list[str] = []

    def profile(self, frame: FrameType, event: str, _: Any) -> None:
        """Note a call; what `sys.setprofile` takes."""
        code, caller = frame.f_code, frame.f_back
        if not self.on or event != "call" or not code.co_filename.startswith(PRODUCT):
            return
        if not code.co_name.startswith("<"):
            self.calls[threading.get_ident()].append((code.co_filename, code.co_qualname))
            if caller is not None and caller.f_code.co_qualname == FINISH:
                self.steps.append(code.co_filename)

    @contextmanager
    def traced(self, *, on: bool = True) -> Iterator[None]:
        """Trace this thread and those that it starts; without ``on``, from a later moment."""
        self.on = on
        threading.setprofile(self.profile)
        sys.setprofile(self.profile)
        try:
            yield
        finally:
            sys.setprofile(None)
            threading.setprofile(None)  # type: ignore[arg-type]  # its documented off switch
            self.on = False

    @property
    def _all(self) -> list[tuple[str, str]]:
        return [call for calls in self.calls.values() for call in calls]

    @property
    def files(self) -> int:
        """How many files it passes."""
        return len({file for file, _ in self._all})

    @property
    def functions(self) -> int:
        """How many functions it passes."""
        return len(set(self._all))

    @property
    def moves(self) -> int:
        """How often the next function stands in another file."""
        return sum(a != b for calls in self.calls.values() for (a, _), (b, _) in pairwise(calls))

    @property
    def returns(self) -> int:
        """How often the steps of a round's finish go back to a file that they had left."""
        stays = [file for i, file in enumerate(self.steps) if i == 0 or file != self.steps[i - 1]]
        return len(stays) - len(set(stays))


FINISH = "Finisher.finish"
"""The function that finishes a round."""


def promotion(store: ModelManager | InMemoryModelStore, folder: Path) -> Walk:
    """A version from Staging to Production, where another one is there already."""
    weights = folder / "weights.safetensors"
    for number in range(2):
        save_weights({"w": np.full((4, 3), number, np.float32)}, weights)
        version = store.save_model_version(weights, metrics={"accuracy": 0.5 + number / 10})
        store.promote_to_staging(version)
        walk = Walk()
        with walk.traced():
            store.promote_to_production(version)
    return walk


class Watched(LifecycleStrategy):
    """Turns a walk on with the replies of round ``number``, and off where a round begins."""

    walk: Walk
    number = 2

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """The round begins."""
        self.walk.on = False
        return super().configure_train(server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """The replies are there."""
        self.walk.on = server_round == self.number
        return super().aggregate_train(server_round, replies)


def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:
    """A score that rises."""
    return MetricRecord({"accuracy": 0.5 + server_round / 100})


def strategy(folder: Path, walk: Walk) -> Watched:
    """FedAvg inside, MLflow over SQLite, evaluated and registered inline."""
    watched = Watched(
        FedAvg(),
        metric="accuracy",
        approval="auto",
        store=ModelManager(home=folder),
        tracker=FederatedLearningTracker(home=folder),
        home=folder,
        rounds=RoundSettings(pipeline=False),
    )
    watched.walk = walk
    return watched


def round_until_staged(folder: Path) -> Walk:
    """The replies of round 2 until its version is staged, and round 3 begins."""
    walk = Walk()
    with walk.traced(on=False):
        strategy(folder, walk).start(LocalGrid(add_one), model(), 3, evaluate_fn=evaluate)
    return walk


def resumed(folder: Path) -> Walk:
    """A session that was cut short in its second round, until that round goes on."""

    def cut_short(node: int, message: Message) -> Any:
        if len(grid.sent) > 2 * len(grid.node_ids) + 1:
            raise SystemExit
        return add_one(node, message)

    grid = LocalGrid(cut_short)
    with suppress(SystemExit):
        strategy(folder, Walk()).start(grid, model(), 3, evaluate_fn=evaluate)
    walk = Walk()
    again = strategy(folder, walk)
    again.number = 0
    with walk.traced():
        again.start(LocalGrid(add_one), model(), 3, evaluate_fn=evaluate)
    return walk


def request(folder: Path) -> Walk:
    """A request over the API, until it is answered with 202."""
    store = MonitorStore(f"sqlite:///{folder / 'monitor.db'}")
    api = create_trigger_api(RetrainingManager(store=store), token=TOKEN).test_client()
    headers = {"Authorization": f"Bearer {TOKEN}", "Idempotency-Key": "one"}
    walk = Walk()
    with walk.traced():
        answer = api.post("/trigger_retrain", json={"reason": "new data"}, headers=headers)
    if answer.status_code != 202:
        raise RuntimeError(answer.get_data(as_text=True))
    return walk


GOALS: dict[str, tuple[Callable[[Path], Walk], int | None, int | None]] = {
    "replies to staged version, MLflow": (round_until_staged, 40, 200),
    "promote_to_production, MLflow": (lambda f: promotion(ModelManager(home=f), f), 11, 40),
    "promote_to_production, in memory": (lambda f: promotion(InMemoryModelStore(), f), 6, 15),
    "POST /trigger_retrain to 202": (request, None, None),
    "cut short to resumed": (resumed, None, None),
}
"""Each walk with the most files and moves that it should have."""


def rows() -> Iterator[Row]:
    """Files, moves and functions of each walk, and the returns of a round's finish."""
    for name, (walked, files, moves) in GOALS.items():
        with tempfile.TemporaryDirectory() as folder:
            walk = walked(Path(folder))
        yield counted(f"{name}: files", walk.files, files)
        yield counted(f"{name}: moves between files", walk.moves, moves)
        yield counted(f"{name}: functions", walk.functions, None)
        if walk.steps:
            yield counted("finish of a round: returns to a file", walk.returns, 4)


def counted(row: str, count: int, goal: int | None) -> Row:
    """A count beside its goal."""
    return Row(row, count, goal=goal, met=None if goal is None else count <= goal)


if __name__ == "__main__":
    arguments = parser(__doc__).parse_args()
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 7, 1
    report(list(rows()), arguments.json)
