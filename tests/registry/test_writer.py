# SPDX-License-Identifier: Apache-2.0
"""One server writes to a model: others wait, refuse or take over, in every model store."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from fl_registry import LeaseLost, ModelBusy, ModelManager, StoreUnavailable
from fl_registry.journal.lease import LONGEST_WAIT, NOBODY, Heartbeat, Lease, Writer
from fl_registry.stages import Move
from fl_registry.store import ModelStore

pytestmark = pytest.mark.chaos

MakeWeights = Callable[[float], Path]


class Time:
    """A clock that moves by sleeping; `meanwhile` is what others do then."""

    def __init__(self) -> None:
        self.now = 0.0
        self.meanwhile: Callable[[], None] = lambda: None

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.meanwhile()


def never(seconds: float) -> None:
    pytest.fail("there was nothing to wait for")


def writer(store: ModelStore, name: str, time: Time | None = None, **named: object) -> Writer:
    clock = (lambda: time.now) if time else (lambda: 0.0)
    sleep = time.sleep if time else never
    return Writer(store, name, clock=clock, sleep=sleep, **named)  # type: ignore[arg-type]


def stop_beating(held: Writer) -> None:
    """Let it hang, as a stopped process does."""
    found = held._held
    assert found is not None
    found._send, send = lambda **_: True, found._send  # type: ignore[method-assign]
    found._stop.set()
    found._thread.join()
    found._send = send  # type: ignore[method-assign]


def kill(held: Writer) -> None:
    """Let it end, as a killed process does: no heartbeat, and its lock is free."""
    stop_beating(held)
    assert held._held is not None
    held._held._lock.close()


def test_whoever_ended_frees_the_model_at_once(store: ModelStore) -> None:
    first, second = writer(store, "first"), writer(store, "second")
    assert first.lease is None
    first.check()
    with first, first:
        lease = first.lease
        assert lease is not None
        assert lease.owner.startswith("first on ")
        assert store.current_lease() == lease == Lease(1, lease.owner)
    assert first.lease is None
    with second:
        assert second.lease is not None
        assert second.lease.epoch == 2
    with first:
        assert first.lease is not None
        assert first.lease.epoch == 3
    said = [
        (e.op, e.actor.partition(" on ")[0], e.reason.partition(" on ")[0]) for e in store.history()
    ]
    assert said == [
        (Move.LEASE, "first", "the first"),
        (Move.LEASE, "second", "first"),
        (Move.LEASE, "first", "second"),
    ]
    assert store.history()[1].reason.endswith("has ended")
    assert store.list_all_versions() == []


def test_a_second_server_refuses_as_soon_as_the_first_shows_that_it_lives(
    store: ModelStore,
) -> None:
    time = Time()
    with writer(store, "first") as first:
        assert first._held is not None
        time.meanwhile = lambda: first._held._send() and None  # type: ignore[union-attr]
        with pytest.raises(ModelBusy, match=r"^first on .* writes to this model; wait for its end"):
            writer(store, "second", time, when_busy="refuse").__enter__()
        assert time.now < 60
        first.check()
    assert len(store.history()) == 1


def test_a_second_server_waits_for_the_end_of_the_first(
    store: ModelStore, caplog: pytest.LogCaptureFixture
) -> None:
    time, first = Time(), writer(store, "first")
    first.__enter__()
    held = first._held
    assert held is not None

    def live() -> None:
        if time.now < 65:
            held._send()
        elif first.lease is not None:
            first.__exit__(None, None, None)

    time.meanwhile = live
    with writer(store, "second", time) as second:
        assert second.lease is not None
        assert second.lease.epoch == 2
    assert 65 <= time.now < 67
    waiting = [m for m in caplog.messages if m.startswith("waiting for first on")]
    assert len(waiting) == 2  # at once, and then once a minute


def test_nobody_waits_for_more_than_a_day(store: ModelStore) -> None:
    time = Time()
    with writer(store, "first") as first:
        held = first._held
        assert held is not None

        def live() -> None:
            held._send()
            time.now += 5_000

        time.meanwhile = live
        with pytest.raises(ModelBusy):
            writer(store, "second", time).__enter__()
    assert LONGEST_WAIT <= time.now < LONGEST_WAIT + 5_001


def test_who_hangs_is_taken_for_gone_and_writes_no_more(
    store: ModelStore, weights: MakeWeights
) -> None:
    for number in range(1, 5):
        store.save_model_version(weights(number), metrics={"m": 0.5})
    time, first = Time(), writer(store, "first")
    first.__enter__()
    stop_beating(first)
    store.promote_to_production("1", lease=first.lease)
    with writer(store, "second", time) as second:
        assert 60 <= time.now < 62
        store.promote_to_staging("2", lease=second.lease)
        before = store.history()
        for move in (store.promote_to_staging, store.promote_to_production, store.archive_version):
            with pytest.raises(LeaseLost, match=r"second on .* writes to this model now"):
                move("3", lease=first.lease)
        store.set_version_tags("2", {"approval": "pending"})
        for move in (store.approve_version, store.reject_version, store.rollback):
            with pytest.raises(LeaseLost):
                move("2", lease=first.lease)
        assert store.history() == before
        first.check()  # it has not heard of it yet
        assert first._held is not None
        first._held._send()
        with pytest.raises(LeaseLost):
            first.check()
        first.__exit__(None, None, None)
        assert store.last_heartbeat().epoch == second.lease.epoch
        store.promote_to_production("2", lease=second.lease)
        store.promote_to_production("4", actor="ada")
    epochs = [entry.epoch for entry in store.history() if entry.op is not Move.LEASE]
    first_epoch, second_epoch = (e.number for e in store.history() if e.op is Move.LEASE)
    assert epochs == [first_epoch, second_epoch, second_epoch, 0]
    assert store.verify() == len(store.history())


def test_who_hung_but_was_not_replaced_goes_on(store: ModelStore, weights: MakeWeights) -> None:
    store.save_model_version(weights(1))
    with writer(store, "first") as first:
        stop_beating(first)
        assert first._held is not None
        first._held._send()
        first.check()
        store.promote_to_production("1", lease=first.lease)
    assert store.history()[-1].epoch == 1


def test_a_belated_heartbeat_of_the_one_before_does_no_harm(store: ModelStore) -> None:
    first = writer(store, "first")
    first.__enter__()
    kill(first)
    with writer(store, "second", Time()) as second:
        held = second._held
        assert held is not None
        store.send_heartbeat(Heartbeat(1, 99))  # it was on its way when the lease was taken over
        time = Time()
        time.meanwhile = lambda: held._send() and None  # type: ignore[return-value]
        with pytest.raises(ModelBusy):
            writer(store, "third", time, when_busy="refuse").__enter__()
        store.send_heartbeat(Heartbeat(10**9, 1))  # whoever wrote that
        assert held._send()
        assert store.last_heartbeat().epoch == held.lease.epoch
        second.check()


def test_two_that_wait_for_the_same_one_do_not_both_get_it(store: ModelStore) -> None:
    first = writer(store, "first")
    first.__enter__()
    kill(first)
    over = store.current_lease()
    assert store.take_lease("second", over=over) is not None
    assert store.take_lease("third", over=over) is None
    assert store.take_lease("third", over=NOBODY) is None


def test_a_real_second_thread_waits_and_then_writes(store: ModelStore) -> None:
    order: list[str] = []
    inside = threading.Event()

    def second() -> None:
        inside.wait(10)
        with store.writer("second", lasts=5.0):
            order.append("second")

    thread = threading.Thread(target=second)
    thread.start()
    with store.writer("first", lasts=5.0):
        inside.set()
        thread.join(1.0)
        order.append("first")
    thread.join(20)
    assert order == ["first", "second"]


def test_a_store_that_does_not_answer_is_warned_of_once(
    store: ModelStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def down(beat: Heartbeat) -> None:
        raise StoreUnavailable("MLflow is down.")

    with writer(store, "first", lasts=0.2) as first:
        with monkeypatch.context() as broken:
            broken.setattr(store, "send_heartbeat", down)
            threading.Event().wait(0.5)
        first.check()
    warnings = [r for r in caplog.records if r.levelno == logging.WARNING]
    assert [w.getMessage() for w in warnings] == [
        "no heartbeat could be sent to other servers: MLflow is down."
    ]
    assert store.last_heartbeat().ended


def test_a_killed_server_of_the_same_home_is_not_waited_for(manager: ModelManager) -> None:
    first = writer(manager, "first")
    first.__enter__()
    kill(first)
    with writer(manager, "second") as second:
        assert second.lease is not None
        assert second.lease.owner != first.lease.owner  # type: ignore[union-attr]
    assert manager.history()[1].reason.endswith("was killed")


def test_a_second_server_of_the_same_home_is_refused_at_once(manager: ModelManager) -> None:
    with writer(manager, "first"), pytest.raises(ModelBusy, match="first on"):
        writer(manager, "second", when_busy="refuse").__enter__()


def test_one_that_waits_takes_over_as_soon_as_the_first_is_killed(manager: ModelManager) -> None:
    first, time = writer(manager, "first"), Time()
    first.__enter__()
    time.meanwhile = lambda: kill(first) if time.now > 5 else None
    with writer(manager, "second", time) as second:
        assert 5 < time.now < 8
        kill(second)
        with writer(manager, "third"):
            pass


def test_the_same_path_on_another_machine_proves_nothing(
    manager: ModelManager, tmp_path: Path
) -> None:
    first = writer(manager, "first")
    first.__enter__()
    kill(first)
    file = manager.lock_file()
    assert file is not None
    (file.parent / "home.id").write_text("another")
    time = Time()
    with writer(manager, "second", time):
        assert 60 <= time.now < 62


def test_where_no_lock_can_be_had_it_waits(
    manager: ModelManager, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setattr(manager, "lock_file", lambda: tmp_path / "file" / "x.lock")
    first, time = writer(manager, "first"), Time()
    first.__enter__()
    kill(first)
    with writer(manager, "second", time) as second:
        assert 60 <= time.now < 62
        assert second.lease is not None
        assert "home" not in second.lease.owner
