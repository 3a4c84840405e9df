# SPDX-License-Identifier: Apache-2.0
"""Old versions go in and after a session, and a slow worker slows the rounds at a limit."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from flwr.app import ArrayRecord, Message, MetricRecord
from flwr.serverapp.strategy import FedAvg
from support.local_grid import LocalGrid, reply

from fl_app.settings import SettingError
from fl_app.strategy import (
    LifecycleStrategy,
    Retention,
    RoundSettings,
    SessionSettings,
)
from fl_registry import InMemoryModelStore, InMemoryTracker, RegistryError, StoreUnavailable
from fl_registry.versions import PruneReport


def train(node_id: int, message: Message) -> Any:
    if message.metadata.message_type == "train":
        arrays = message.content["arrays"].to_numpy_ndarrays()
        return reply(ArrayRecord([a + 1 for a in arrays]), loss=1.0)
    return reply(accuracy=0.5)


def better(number: int, arrays: ArrayRecord) -> MetricRecord:
    return MetricRecord({"accuracy": 0.5 + number / 1000})


def session(
    store: InMemoryModelStore,
    home: Path,
    count: int,
    evaluate_fn: Callable[[int, ArrayRecord], MetricRecord] = better,
    **settings: Any,
) -> None:
    strategy = LifecycleStrategy(
        FedAvg(), store=store, tracker=InMemoryTracker(), home=home, **settings
    )
    strategy.start(
        LocalGrid(train),
        ArrayRecord([np.zeros(4, np.float32)]),
        num_rounds=count,
        evaluate_fn=evaluate_fn,
    )


def kept(store: InMemoryModelStore) -> list[str]:
    return [row["version"] for row in store.list_all_versions()]


def test_the_newest_versions_stay(home: Path, tmp_path: Path) -> None:
    store = InMemoryModelStore(tmp_path / "store")
    session(store, home, 5)
    assert kept(store) == list("54321")
    store.promote_to_production("2")
    store.set_version_tags("3", {"keep": "true"})
    settings = SessionSettings(retention=Retention(keep_versions=2))
    session(store, home, 4, session=settings)
    assert kept(store) == ["9", "8", "3", "2"]
    assert {entry.actor for entry in store.history() if entry.op == "retire"} == {"retention"}


def test_old_versions_go_while_a_session_goes_on(home: Path, tmp_path: Path) -> None:
    store, seen = InMemoryModelStore(tmp_path / "store"), dict[int, list[str]]()
    session(store, home, 3)
    store.promote_to_production("3")

    def look(number: int, arrays: ArrayRecord) -> MetricRecord:
        seen[number] = kept(store)
        if number == 6:
            store.set_version_tags("5", {"keep": "true"})
            store.promote_to_production("7")
        return better(number, arrays)

    settings = SessionSettings(retention=Retention(keep_versions=2))
    session(store, home, 40, look, session=settings)
    # Those of the session before are for its end; what the session starts with is among them.
    assert seen[11] == ["13", "12", "7", "5", "3", "2", "1"]
    assert max(map(len, seen.values())) == len(seen[11]) + 9
    assert kept(store) == ["43", "42", "7", "5", "3"]
    assert {entry.actor for entry in store.history() if entry.op == "retire"} == {"retention"}


def test_what_a_session_removes_each_time_is_bounded(tmp_path: Path, home: Path) -> None:
    class Counting(InMemoryModelStore):
        calls: ClassVar[list[tuple[int | None, int]]] = []

        def prune(self, **named: Any) -> PruneReport:
            report = super().prune(**named)
            self.calls.append((named["most"], report.later))
            return report

    store = Counting(tmp_path / "store")
    session(store, home, 24, session=SessionSettings(retention=Retention(keep_versions=1)))
    assert store.calls == [(20, 0), (20, 0), (200, 0)]
    assert kept(store) == ["24"]


def test_what_waits_for_approval_stays(home: Path, tmp_path: Path) -> None:
    store = InMemoryModelStore(tmp_path / "store")
    best = {4: 0.99}  # all later ones are worse, and version 4 waits

    def score(number: int, arrays: ArrayRecord) -> MetricRecord:
        return MetricRecord({"accuracy": best.get(number, 0.5)})

    settings = SessionSettings(retention=Retention(keep_versions=1))
    session(store, home, 12, session=settings, metric="accuracy", evaluate_fn=score)
    assert kept(store) == ["12", "4"]
    assert store.get_version("4").tags["approval"] == "pending"


@pytest.mark.parametrize(
    ("limits", "every"),
    [
        ({}, 0),
        ({"keep_versions": 1}, 10),
        ({"keep_versions": 100}, 25),
        ({"keep_versions": 10_000}, 50),
        ({"keep_days": 1.0}, 10),
    ],
)
def test_how_often_a_session_removes_versions(limits: dict[str, Any], every: int) -> None:
    assert Retention(**limits).every == every


def test_versions_stay_for_days(home: Path, tmp_path: Path) -> None:
    store = InMemoryModelStore(tmp_path / "store")
    young = SessionSettings(retention=Retention(keep_versions=1, keep_days=1))
    session(store, home, 3, session=young)
    assert kept(store) == list("321")
    old = SessionSettings(retention=Retention(keep_versions=1, keep_days=1e-9))
    session(store, home, 1, session=old)
    assert kept(store) == ["4"]


@pytest.mark.parametrize(
    "wrong", [{"keep_versions": 0}, {"keep_days": 0.0}, {"keep_days": -1.0}, {"keep_versions": 1.5}]
)
def test_limits_are_positive(wrong: dict[str, Any]) -> None:
    with pytest.raises(SettingError):
        Retention(**wrong)


def test_what_cannot_be_removed_ends_no_session(
    home: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Refusing(InMemoryModelStore):
        def prune(self, **_: Any) -> Any:
            raise RegistryError("MLflow refuses.")

    store = Refusing(tmp_path / "store")
    session(store, home, 2, session=SessionSettings(retention=Retention(keep_versions=1)))
    assert kept(store) == ["2", "1"]
    assert "old versions were not removed: MLflow refuses." in caplog.text


def most_waiting(
    home: Path, tmp_path: Path, *, goal: int, rounds: int, limit: int, seconds: float
) -> int:
    """Return how many rounds were on disk while the first save waited for so many."""
    seen: list[int] = []

    class Slow(InMemoryModelStore):
        def save_model_version(self, *given: Any, **named: Any) -> str:
            until = time.monotonic() + (0 if seen else seconds)
            while True:
                seen.append(len(list((home / "checkpoints").glob("*/closed-*.json"))))
                if seen[-1] >= goal or time.monotonic() >= until:
                    return super().save_model_version(*given, **named)
                time.sleep(0.02)

    store = Slow(tmp_path / "store")
    settings = SessionSettings(round_patience=0.0)
    session(store, home, rounds, rounds=RoundSettings(max_waiting_rounds=limit), session=settings)
    assert len(kept(store)) == rounds
    return max(seen)


def test_a_slow_worker_slows_the_rounds_at_the_limit(home: Path, tmp_path: Path) -> None:
    # The round that waits to be queued is on disk too.
    assert most_waiting(home, tmp_path, goal=9, rounds=12, limit=3, seconds=3) <= 4


def test_below_the_limit_rounds_do_not_wait(home: Path, tmp_path: Path) -> None:
    assert most_waiting(home, tmp_path, goal=6, rounds=8, limit=100, seconds=60) >= 6


def test_while_mlflow_is_down_rounds_go_on(home: Path, tmp_path: Path) -> None:
    class Down(InMemoryModelStore):
        until = float("inf")
        waiting = 0

        def save_model_version(self, *given: Any, **named: Any) -> str:
            closed = len(list((home / "checkpoints").glob("*/closed-*.json")))
            self.waiting = max(self.waiting, closed)
            if closed < 8 and not kept(self):
                raise StoreUnavailable("MLflow does not answer.")
            return super().save_model_version(*given, **named)

    store = Down(tmp_path / "store")
    session(store, home, 8, rounds=RoundSettings(max_waiting_rounds=2))
    assert (store.waiting, len(kept(store))) == (8, 8)


def test_the_limit_is_a_number_of_rounds() -> None:
    with pytest.raises(ValueError, match="max_waiting_rounds is 0"):
        RoundSettings(max_waiting_rounds=0)
