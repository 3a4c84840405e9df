# SPDX-License-Identifier: Apache-2.0
"""How many calls of an MLflow server a round takes, and that its steps share what they read."""

from __future__ import annotations

import threading
import uuid
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
from flwr.app import ArrayRecord, Message, MetricRecord
from flwr.supercore.task_identity import TaskIdentity
from support.local_grid import LocalGrid, reply

from fl_app import LifecycleStrategy
from fl_app.strategy import Retention, SessionSettings
from fl_registry import FederatedLearningTracker, InMemoryModelStore, LeaseLost, ModelManager
from fl_registry.memory import InMemoryJournal
from fl_registry.stages import Move

MakeWeights = Callable[[float], Path]
FEW, MANY = 2, 5
REMOVAL = 16
"""Calls by which a version is removed."""


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Count what is asked of any server, but for the signs of life of the lease."""
    counted: Counter[str] = Counter()
    send = requests.Session.send

    def counting(self: requests.Session, request: Any, **how: Any) -> requests.Response:
        counted[f"{request.method} {request.path_url.partition('?')[0]}"] += 1
        return send(self, request, **how)

    monkeypatch.setattr(requests.Session, "send", counting)
    return counted


def run_session(address: str, home: Path, *, rounds: int, better: bool, keep: int | None) -> None:
    """Run a session whose rounds are each better than the one before, or worse."""
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 7, 1
    name = f"calls-{uuid.uuid4().hex[:8]}"

    def respond(node_id: int, message: Message) -> Any:
        matrix = message.content["arrays"].to_numpy_ndarrays()[0]
        if message.metadata.message_type == "train":
            return reply(ArrayRecord([matrix + np.float32(1)]), loss=1.0)
        return reply(accuracy=0.5)

    def holdout(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        return MetricRecord({"accuracy": 0.5 + 0.01 * (server_round if better else -server_round)})

    strategy = LifecycleStrategy(
        metric="accuracy",
        artifacts=[],
        home=home,
        store=ModelManager(address, name, home=home, experiment_name=name),
        tracker=FederatedLearningTracker(address, name, home=home),
        session=SessionSettings(retention=Retention(keep_versions=keep)),
    )
    model = ArrayRecord([np.zeros((4, 5), np.float32)])
    strategy.start(LocalGrid(respond), model, num_rounds=rounds, evaluate_fn=holdout)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("better", "keep", "many", "most"),
    [(True, None, MANY, 15), (False, None, MANY, 7), (True, 1, 10, 15 + REMOVAL)],
    ids=["staged", "not staged", "retention"],
)
def test_a_round_takes_no_more_calls_than_the_usual_way(
    served_mlflow: str,
    home: Path,
    calls: Counter[str],
    *,
    better: bool,
    keep: int | None,
    many: int,
    most: int,
) -> None:
    totals = []
    for rounds in (FEW, many):
        calls.clear()
        run_session(served_mlflow, home / str(rounds), rounds=rounds, better=better, keep=keep)
        assert calls["POST /api/2.0/mlflow/model-versions/create"] == rounds
        removed = calls["DELETE /api/2.0/mlflow/model-versions/delete"]
        assert removed == (rounds - 1 if keep else 0)
        totals.append(calls.total())
    # A call of the lease each 15 s may come on top.
    assert totals[1] - totals[0] <= most * (many - FEW) + 2, calls


class Counting(InMemoryJournal):
    """Counts how often the journal is read."""

    readings = 0

    def page(self, *, fresh: bool) -> Any:
        self.readings += 1
        return super().page(fresh=fresh)


def test_steps_share_a_reading_until_one_of_them_moves_something(weights: MakeWeights) -> None:
    store, journal = InMemoryModelStore(), Counting()
    store.backend.journal = journal
    for number in (1, 2):
        store.save_model_version(weights(number))
    journal.readings = 0
    with store.one_reading():
        for _ in range(3):
            assert store.get_latest_version("Production") is None
            assert store.history() == ()
        assert journal.readings <= 4  # an empty journal is looked at from its start
        store.promote_to_production("1")
        journal.readings = 0
        assert store.get_latest_version("Production") == "1"
        assert [entry.op for entry in store.history()] == [Move.PROMOTE]
        assert journal.readings == 0
    assert store.get_latest_version("Production") == "1"
    assert journal.readings == 1


def test_a_move_on_an_old_reading_sees_what_others_moved(
    manager: ModelManager, weights: MakeWeights, home: Path
) -> None:
    other = ModelManager(home=home, registered_model_name=manager.registered_model_name)
    for number in (1, 2, 3):
        manager.save_model_version(weights(number))
    manager.promote_to_production("1")
    with manager.one_reading():
        assert manager.get_latest_version("Production") == "1"
        other.promote_to_production("2")
        manager.promote_to_production("3")
    assert [(entry.version, entry.displaced) for entry in manager.history()] == [
        ("1", ""),
        ("2", "1"),
        ("3", "2"),
    ]
    assert manager.verify() == 3
    assert manager.drift() == ()


def test_an_old_reading_moves_nothing_under_a_lease_that_was_lost(weights: MakeWeights) -> None:
    store = InMemoryModelStore()
    store.save_model_version(weights(1))
    with store.writer("the first") as first, store.one_reading():
        assert store.get_latest_version("Staging") is None
        store.take_lease("the second", over=first.lease)
        assert store.get_latest_version("Staging") is None
        with pytest.raises(LeaseLost):
            store.promote_to_staging("1", lease=first.lease)
    assert store.get_latest_version("Staging") is None


def test_a_thread_reads_for_itself(weights: MakeWeights) -> None:
    store = InMemoryModelStore()
    store.save_model_version(weights(1))
    with store.one_reading():
        assert store.get_latest_version("Production") is None
        mover = threading.Thread(target=store.promote_to_production, args=("1",))
        mover.start()
        mover.join()
        assert store.get_latest_version("Production") is None  # as it was read
    assert store.get_latest_version("Production") == "1"
