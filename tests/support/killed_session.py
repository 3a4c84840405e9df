# SPDX-License-Identifier: Apache-2.0
"""A session in a process of its own, which may be killed at any point, and is then run again.

Points are before and after each call of the registry, and each time that the app has the disk do
something: fsync, rename, delete.
"""

from __future__ import annotations

import logging
import math
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import (
    DifferentialPrivacyServerSideAdaptiveClipping,
    DifferentialPrivacyServerSideFixedClipping,
    FedAdam,
    FedAvg,
    FedAvgM,
    Strategy,
)
from flwr.supercore.privacy_accounting import (
    GaussianPrivacyEvent,
    NeighboringRelation,
    PrivacyConfig,
    PrivacySpent,
    SamplingMethod,
)
from flwr.supercore.task_identity import TaskIdentity

from fl_app import LifecycleStrategy
from fl_registry.files.weights import save_weights
from support.disk_store import DiskStore, DiskTracker
from support.local_grid import LocalGrid, reply

ROUNDS = 10
NODES = (11, 12, 13)


class Accountant:
    """Counts releases as Flower's accountant does, without the package that computes epsilon."""

    def __init__(self) -> None:
        self.config = PrivacyConfig(
            1e-5, 100, NeighboringRelation.ADD_OR_REMOVE_ONE, SamplingMethod.NO_AMPLIFICATION
        )
        self.events: list[float] = []

    @property
    def num_releases(self) -> int:
        return len(self.events)

    def compose(self, event: GaussianPrivacyEvent, count: int = 1) -> None:
        self.events += [event.noise_multiplier] * count

    def get_privacy_spent(self, delta: float | None = None) -> PrivacySpent:
        return PrivacySpent(float(len(self.events)), 1e-5, len(self.events), "count")

    def state_dict(self) -> dict[str, object]:
        return {"events": list(self.events)}

    def load_state_dict(self, state: dict[str, object]) -> None:
        self.events = list(state["events"])  # type: ignore[call-overload]


def adaptive() -> Strategy:
    return DifferentialPrivacyServerSideAdaptiveClipping(
        FedAvgM(server_momentum=0.9, server_learning_rate=0.7),
        noise_multiplier=0.5,
        num_sampled_clients=len(NODES),
        clipped_count_stddev=0.3,
    )


def accounted() -> Strategy:
    return DifferentialPrivacyServerSideFixedClipping(
        FedAvg(), 0.5, 1.0, len(NODES), accountant=Accountant()
    )


STRATEGIES: dict[str, Callable[[], Strategy]] = {
    "fedadam": lambda: FedAdam(eta=0.2),
    "adaptive": adaptive,
    "accounted": accounted,
}


class OrderedGrid(LocalGrid):
    """Brings replies in the order of node ids: float sums depend on the order of their terms."""

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        ordered = sorted(messages, key=lambda message: message.metadata.dst_node_id)
        return super().send_and_receive(ordered, timeout=timeout)


def first_arrays() -> ArrayRecord:
    return ArrayRecord([np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4), np.array(0)])


def holdout(server_round: int, arrays: ArrayRecord) -> MetricRecord:
    return MetricRecord({"accuracy": float(np.tanh(arrays.to_numpy_ndarrays()[0]).mean())})


def nodes(note: Callable[[str], None]) -> Callable[[int, Message], RecordDict]:
    """Nodes whose answers follow from what they are sent; each round is noted once a phase.

    The noise of a round follows from its number. In earnest it must not: the same noise on other
    data would give both away, which is why a session never keeps the state of random numbers.
    """

    def answer(node_id: int, message: Message) -> RecordDict:
        server_round = int(message.content["config"]["server-round"])
        matrix, counter = message.content["arrays"].to_numpy_ndarrays()
        phase = message.metadata.message_type
        if node_id == NODES[0]:
            note(f"{phase} {server_round}")
            np.random.seed(server_round)
        if phase != "train":
            return reply(accuracy=float(matrix.mean()) + node_id / 100)
        pull = np.float32(math.sin(node_id * server_round))
        trained = (matrix * np.float32(0.9) + pull).astype(np.float32)
        return reply(ArrayRecord([trained, np.asarray(counter + 1)]), loss=float(pull) ** 2)

    return answer


def run(folder: Path, kind: str, die_at: int, registry: str = "disk") -> None:
    """Run or resume the session; die before the point of that number, if it is not 0.

    SIGTERM is a `SystemExit` in the main thread, as Flower has it. A registry that is ``silent``
    answers no more once the fourth round is trained.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 7, 1
    logging.getLogger("flwr").setLevel(logging.ERROR)
    point = dying(die_at, folder / "points")
    journal = (folder / "notes").open("a", buffering=1)
    strategy = STRATEGIES[kind]()
    lifecycle = LifecycleStrategy(
        strategy,
        metric="accuracy",
        artifacts=[],
        home=folder / "home",
        **parts(folder, point, registry),
    )
    result = lifecycle.start(
        OrderedGrid(nodes(lambda line: print(line, file=journal)), NODES),
        first_arrays(),
        num_rounds=ROUNDS,
        evaluate_fn=holdout,
    )
    save_weights({k: a.numpy() for k, a in result.arrays.items()}, folder / "end.safetensors")
    accountant = getattr(strategy, "accountant", None)
    if accountant is not None:
        (folder / "releases").write_text(str(accountant.num_releases))


def parts(folder: Path, point: Callable[[], None], registry: str) -> dict[str, Any]:
    """Registry and tracking: files of our own, or MLflow's."""
    if registry == "mlflow":
        return {}
    if registry == "silent":
        point = silent_after(folder / "notes", "train 4")
    return {
        "store": DiskStore(folder / "store", point),
        "tracker": DiskTracker(folder / "store", point),
    }


def silent_after(notes: Path, line: str) -> Callable[[], None]:
    """Return what waits for ever once there is a line in the notes."""

    def point() -> None:
        if line in notes.read_text().splitlines():
            threading.Event().wait()

    return point


def dying(die_at: int, counted: Path) -> Callable[[], None]:
    """Return what counts a point, and dies before the one of that number; 0 only counts."""
    passed, lock = [0], threading.Lock()

    def point() -> None:
        with lock:
            passed[0] += 1
            if passed[0] == die_at:
                os.kill(os.getpid(), signal.SIGKILL)
            if die_at == 0:
                counted.write_text(str(passed[0]))

    for name in ("fsync", "replace", "unlink"):
        setattr(os, name, around(getattr(os, name), point))
    return point


def around(call: Callable[..., Any], point: Callable[[], None]) -> Callable[..., Any]:
    def through(*arguments: Any, **named: Any) -> Any:
        point()
        result = call(*arguments, **named)
        point()
        return result

    return through


def outcome(folder: Path) -> dict[str, Any]:
    """What a session has left in the registry, in the journal and in tracking.

    A run that had only just been opened when its process died is ended, and another one is opened.
    """
    store = DiskStore(folder / "store")
    rows = sorted(store.list_all_versions(), key=lambda row: int(row["version"]))
    return {
        "versions": [
            (r["tags"]["round"], r["sha256"], r["stage"], r["tags"]["approval"]) for r in rows
        ],
        "journal": [(str(e.op), e.version) for e in store.history() if e.op != "lease"],
        "runs": [
            (run.status, {name: sorted(points) for name, points in run.metrics.items()})
            for run in DiskTracker(folder / "store").runs
            if run.metrics or run.status != "KILLED"
        ],
    }
