# SPDX-License-Identifier: Apache-2.0
"""Probation in a session: both versions are scored on its holdout, and the worse one goes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from flwr.app import ArrayRecord, MetricRecord
from flwr.serverapp.strategy import FedAvg
from support.local_grid import LocalGrid, add_one, model

from fl_app import LifecycleStrategy
from fl_app.retraining import Probation, ProbationSettings, RetrainingManager, TriggerKind
from fl_app.strategy.checkpoints.round_store import load_array_record
from fl_registry import InMemoryModelStore, InMemoryTracker


@pytest.fixture
def store() -> InMemoryModelStore:
    return InMemoryModelStore()


@pytest.fixture
def monitor() -> RetrainingManager:
    return RetrainingManager()


def session(
    store: InMemoryModelStore, monitor: RetrainingManager, *, sign: int = 1, **settings: Any
) -> list[float]:
    """Run one round; return what was scored, in order. With -1 the older model is the better."""
    scored: list[float] = []

    def holdout(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        scored.append(float(arrays.to_numpy_ndarrays()[0].mean()))
        return MetricRecord({"accuracy": 0.5 + sign * scored[-1] / 10})

    probation = Probation(store, monitor, ProbationSettings(metric="accuracy", **settings))
    strategy = LifecycleStrategy(
        FedAvg(),
        metric="accuracy",
        store=store,
        tracker=InMemoryTracker(),
        monitor=monitor,
        probation=probation,
    )
    latest = store.get_latest_version()
    arrays = model() if latest is None else load_array_record(store.weights_path(latest))
    strategy.start(LocalGrid(add_one), arrays, num_rounds=1, evaluate_fn=holdout)
    return scored


def two_promoted(store: InMemoryModelStore, monitor: RetrainingManager) -> None:
    for version in "12":
        session(store, monitor)
        store.promote_to_production(version, actor="Ada")


def test_a_session_on_new_data_brings_the_better_one_back(
    store: InMemoryModelStore, monitor: RetrainingManager
) -> None:
    two_promoted(store, monitor)
    session(store, monitor, sign=-1, drop=0.05)
    assert store.get_latest_version("Production") == "1"
    last = next(e for e in reversed(store.history()) if e.op == "rollback")
    assert last.actor == "probation"
    assert "on the same data version 1's accuracy 0.4000 beats production's 0.3000" in last.reason
    assert [row["kind"] for row in monitor.trigger_history] == ["probation"]


def test_a_session_that_finds_it_better_lets_it_be(
    store: InMemoryModelStore, monitor: RetrainingManager
) -> None:
    two_promoted(store, monitor)
    scored = session(store, monitor, hours=0)
    assert scored.count(1.0) == 1  # the rival, once
    assert store.get_latest_version("Production") == "2"
    assert store.get_version("2").tags["probation"] == "passed"
    assert session(store, monitor).count(1.0) == 0  # nothing is on probation any more


def test_a_rival_that_is_damaged_does_not_end_the_session(
    store: InMemoryModelStore, monitor: RetrainingManager, caplog: pytest.LogCaptureFixture
) -> None:
    two_promoted(store, monitor)
    store.weights_path("1").write_bytes(b"damaged")
    session(store, monitor)
    assert "version 1 cannot be scored" in caplog.text
    assert store.get_latest_version("Production") == "2"
    assert store.get_latest_version() == "3"


def test_drift_in_a_round_decides_where_it_is_watched(
    store: InMemoryModelStore, monitor: RetrainingManager, tmp_path: Path
) -> None:
    two_promoted(store, monitor)
    monitor.request(TriggerKind.DRIFT, "in round 1 the data moved")
    session(store, monitor)
    assert store.get_latest_version("Production") == "2"
    session(store, monitor, watch=["drift"])
    assert store.get_latest_version("Production") == "1"
