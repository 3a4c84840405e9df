# SPDX-License-Identifier: Apache-2.0
"""Sessions and the lease: one after the other, refused, or replaced and then without effect."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from support.local_grid import LocalGrid, add_one, model

from fl_app import LifecycleStrategy
from fl_app.strategy import Finite, RoundSettings, SessionSettings
from fl_registry import InMemoryModelStore, InMemoryTracker, LeaseLost, ModelBusy, Stage
from fl_registry.journal.lease import Heartbeat
from fl_registry.stages import Move

PASS = {Stage.STAGING: [Finite()], Stage.PRODUCTION: []}


@pytest.fixture
def store() -> InMemoryModelStore:
    return InMemoryModelStore()


def session(store: InMemoryModelStore, tracker: InMemoryTracker | None = None, **more: Any) -> Any:
    settings: dict[str, Any] = {"metric": "accuracy", "policy": PASS, "approval": "auto"}
    return LifecycleStrategy(
        store=store, tracker=tracker or InMemoryTracker(), **{**settings, **more}
    )


def meanwhile(work: Callable[[], None], server_round: int = 2) -> LocalGrid:
    """A grid on which something happens while nodes train in a round."""

    def answer(node_id: int, message: Message) -> RecordDict:
        config = message.content["config"]
        now = message.metadata.message_type == "train" and node_id == 11
        if now and config["server-round"] == server_round:
            work()
        return add_one(node_id, message)

    return LocalGrid(answer)


def test_a_session_s_moves_and_versions_bear_its_lease(store: InMemoryModelStore) -> None:
    for number in (1, 2):
        session(store).start(LocalGrid(add_one), model(3 * number), num_rounds=2)
    entries = store.history()
    leases = [e.number for e in entries if e.op is Move.LEASE]
    assert leases == [1, 5]
    moved = [(e.op, e.epoch) for e in entries if e.op is not Move.LEASE]
    assert moved == [
        *[(Move.STAGE, 1), (Move.STAGE, 1), (Move.PROMOTE, 1)],
        *[(Move.STAGE, 5), (Move.STAGE, 5), (Move.PROMOTE, 5)],
    ]
    assert {e.actor for e in entries if e.epoch} == {"policy"}
    assert entries[0].actor.startswith("flower run 7 on ")
    epochs = [row["tags"]["epoch"] for row in reversed(store.list_all_versions())]
    assert epochs == ["1", "1", "5", "5"]
    assert store.last_heartbeat().ended


def test_a_second_session_is_refused_or_waits(store: InMemoryModelStore) -> None:
    order: list[str] = []
    second = session(store)
    thread = threading.Thread(
        target=lambda: (
            second.start(LocalGrid(add_one), model(), num_rounds=1),
            order.append("second"),
        )
    )

    def others() -> None:
        refusing = session(
            store,
            session=SessionSettings(writer=store.writer("another", when_busy="refuse", lasts=0.4)),
        )
        with pytest.raises(ModelBusy, match=r"flower run 7 on .* writes to this model"):
            refusing.start(LocalGrid(add_one), model(), num_rounds=1)
        thread.start()
        order.append("first")

    first = session(store, session=SessionSettings(writer=store.writer("flower run 7", lasts=0.4)))
    first.start(meanwhile(others), model(), num_rounds=3)
    order.append("first has ended")
    thread.join(60)
    assert order == ["first", "first has ended", "second"]
    sessions = [e.epoch for e in store.history() if e.op is not Move.LEASE]
    assert sessions == sorted(sessions)
    assert len(set(sessions)) == 2


@pytest.mark.parametrize("pipeline", [True, False])
def test_a_session_that_was_replaced_fails_and_moves_nothing_more(
    store: InMemoryModelStore, pipeline: bool
) -> None:
    tracker, taken = InMemoryTracker(), list[int]()

    def replace() -> None:
        lease = store.take_lease("another server", over=store.current_lease())
        assert lease is not None
        taken.append(lease.epoch)

    strategy = session(store, tracker, rounds=RoundSettings(pipeline=pipeline))
    with pytest.raises(LeaseLost, match="another server writes to this model now"):
        strategy.start(meanwhile(replace), model(), num_rounds=9)
    assert [e for e in store.history() if e.number > taken[0]] == []
    assert store.current_lease().epoch == taken[0]
    assert tracker.runs[0].status == "FAILED"
    late = [r for r in store.list_all_versions() if int(r["tags"]["round"]) >= 2]
    assert {(row["stage"], row["tags"]["epoch"]) for row in late} <= {("None", "1")}


def test_a_session_that_knows_it_was_replaced_asks_no_node_any_more(
    store: InMemoryModelStore,
) -> None:
    """Without a metric nothing is moved, so only the sign of life can tell it."""
    writer = store.writer("slow", lasts=0.1)
    told = threading.Event()

    def replace() -> None:
        lease = store.take_lease("another server", over=store.current_lease())
        assert lease is not None

        store.send_heartbeat(Heartbeat(lease.epoch, 1))
        while not told.wait(0.01):
            try:
                writer.check()
            except LeaseLost:
                told.set()

    grid = meanwhile(replace)
    with pytest.raises(LeaseLost):
        session(store, metric=None, session=SessionSettings(writer=writer)).start(
            grid, model(), num_rounds=9
        )
    assert len(grid.sent) == 2 * 2 * 3  # two rounds, to train and to evaluate


def test_people_move_versions_while_a_session_runs(store: InMemoryModelStore) -> None:
    def promote() -> None:
        store.promote_to_production("1", actor="ada")

    session(store, rounds=RoundSettings(pipeline=False)).start(
        meanwhile(promote), model(), num_rounds=2
    )
    assert [(e.op, e.actor, e.epoch) for e in store.history()][1:4] == [
        (Move.STAGE, "policy", 1),
        (Move.PROMOTE, "ada", 0),
        (Move.STAGE, "policy", 1),
    ]


def test_a_session_that_goes_on_must_beat_what_another_server_staged_meanwhile(
    store: InMemoryModelStore, tmp_path: Path
) -> None:
    def holdout(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        return MetricRecord({"accuracy": float(arrays.to_numpy_ndarrays()[0].mean()) / 10})

    def killed() -> None:
        raise KeyboardInterrupt

    tracker = InMemoryTracker()
    settings: dict[str, Any] = {
        "approval": "manual",
        "policy": None,
        "rounds": RoundSettings(pipeline=False),
    }
    settings["home"] = tmp_path / "first"
    with pytest.raises(KeyboardInterrupt):
        session(store, tracker, **settings).start(
            meanwhile(killed), model(), num_rounds=3, evaluate_fn=holdout
        )
    assert store.get_latest_version("Staging") == "1"
    session(store, **{**settings, "home": tmp_path / "second"}).start(
        LocalGrid(add_one), model(5), num_rounds=1, evaluate_fn=holdout
    )
    assert store.get_latest_version("Staging") == "2"
    session(store, tracker, **settings).start(
        LocalGrid(add_one), model(), num_rounds=3, evaluate_fn=holdout
    )
    rows = list(reversed(store.list_all_versions()))
    assert [(row["tags"]["round"], row["metrics"]["accuracy"]) for row in rows] == [
        ("1", pytest.approx(0.1)),
        ("1", pytest.approx(0.6)),
        ("2", pytest.approx(0.2)),
        ("3", pytest.approx(0.3)),
    ]
    assert store.get_latest_version("Staging") == "2"
    assert rows[2]["tags"]["epoch"] > rows[1]["tags"]["epoch"] > rows[0]["tags"]["epoch"]
