# SPDX-License-Identifier: Apache-2.0
"""The lease on paper: when it is free, what of it the journal keeps, and who may then move."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl_registry import InMemoryModelStore, LeaseLost, RegistryError
from fl_registry.journal.entries import (
    Entry,
    JournalError,
    Ledger,
    Page,
    carried_over,
    fold,
    new_entry,
    read_chain,
    read_page,
)
from fl_registry.journal.lease import (
    NOBODY,
    Heartbeat,
    Lease,
    Watch,
    availability,
    look,
    require_lease,
)
from fl_registry.memory import InMemoryJournal
from fl_registry.stages import Move, State, step

MakeWeights = Callable[[float], Path]
LASTS = 10.0
gaps = st.floats(0.01, 9.9)
LEASE = Lease(3, "a")


@given(st.lists(gaps, max_size=20), st.lists(st.floats(0, 30), max_size=40))
def test_who_gives_signs_of_life_in_time_is_never_taken_for_gone(
    beats: list[float], looks: list[float]
) -> None:
    """Whenever and however seldom others look."""
    times = [sum(beats[:n]) for n in range(len(beats) + 1)]
    watch = None
    for now in sorted(t for t in looks if t <= times[-1] + LASTS * 0.99):
        count = sum(t <= now for t in times)
        watch = look(watch, LEASE, Heartbeat(3, count), now=now)
        assert availability(watch, now=now, lasts=LASTS) != "free"


@given(st.integers(0, 9), st.floats(0, 100), st.lists(st.floats(0.1, 3), min_size=1, max_size=60))
def test_who_gives_none_any_more_is_free_after_that_time_and_not_before(
    count: int, first: float, steps: list[float]
) -> None:
    now, watch = first, None
    for gap in [0.0, *steps]:
        now += gap
        watch = look(watch, LEASE, Heartbeat(3, count), now=now)
        expected = "free" if now - first >= LASTS else "unsure"
        assert availability(watch, now=now, lasts=LASTS) == expected


def test_a_new_heartbeat_says_busy_and_the_last_one_says_free() -> None:
    watch = look(None, LEASE, Heartbeat(3, 1), now=0.0)
    assert availability(watch, now=5.0, lasts=LASTS) == "unsure"
    watch = look(watch, LEASE, Heartbeat(3, 2), now=6.0)
    assert availability(watch, now=6.0, lasts=LASTS) == "busy"
    watch = look(watch, LEASE, Heartbeat(3, 3, ended=True), now=7.0)
    assert availability(watch, now=7.0, lasts=LASTS) == "free"
    assert availability(look(None, NOBODY, Heartbeat(), now=0.0), now=0.0, lasts=LASTS) == "free"


def test_the_end_of_another_lease_says_nothing_of_this_one() -> None:
    old = Heartbeat(2, 9, ended=True)
    watch = look(None, LEASE, old, now=0.0)
    assert watch == Watch(LEASE, Heartbeat(3), 0.0)
    assert availability(watch, now=1.0, lasts=LASTS) == "unsure"
    taken = look(watch, Lease(7, "b"), old, now=2.0)
    assert availability(taken, now=2.0, lasts=LASTS) == "busy"


@given(st.one_of(st.text(), st.from_type(type(None)) | st.integers()).map(json.dumps) | st.text())
def test_whatever_somebody_stores_as_a_heartbeat_is_read(text: str) -> None:
    assert isinstance(Heartbeat.decode(text), Heartbeat)


@given(st.builds(Heartbeat, st.integers(0), st.integers(0), st.booleans()))
def test_a_heartbeat_is_read_as_it_was_written(beat: Heartbeat) -> None:
    assert Heartbeat.decode(beat.encode()) == beat


def test_who_lost_the_lease_is_told_who_has_it() -> None:
    require_lease(LEASE, None)
    require_lease(LEASE, LEASE)
    with pytest.raises(LeaseLost, match=r"^a writes to this model now; b had sent no heartbeat"):
        require_lease(LEASE, Lease(1, "b"))


def append(ledger: Ledger, op: Move, **fields: object) -> Ledger:
    entry = new_entry(ledger, Entry(op, **fields))  # type: ignore[arg-type]
    page = ledger.page
    return read_page(Page((*page.texts, entry.encode()), page.carried, page.first), ledger)


def test_a_lease_moves_nothing_and_is_carried_over_to_the_next_run() -> None:
    ledger = append(Ledger(), Move.LEASE, actor="a")
    assert ledger.state.untouched
    assert ledger.state.lease == Lease(1, "a")
    ledger = append(ledger, Move.PROMOTE, version="1", epoch=1)
    assert not ledger.state.untouched
    following = read_page(carried_over(ledger))
    assert following.state == ledger.state
    following = append(following, Move.LEASE, actor="b")
    assert following.state.lease == Lease(4, "b")
    pages = read_chain([ledger.page, following.page])
    assert [e.epoch for page in pages for e in page.entries] == [0, 1, 0, 0]
    assert fold(ledger.entries) == ledger.state


def test_a_forged_lease_breaks_the_chain() -> None:
    ledger = append(append(Ledger(), Move.LEASE, actor="a"), Move.STAGE, version="1", epoch=1)
    first, second = ledger.page.texts
    forged = replace(ledger.entries[0], actor="somebody else").encode()
    with pytest.raises(JournalError, match="Entry 2 of the journal does not follow"):
        read_page(Page((forged, second)))
    carried = carried_over(ledger)
    with pytest.raises(JournalError, match="was changed from outside"):
        read_page(Page(carried.texts, carried.carried.replace('"a"', '"b"'), carried.first))
    assert read_page(Page((first, second))).state == ledger.state


def test_a_state_is_read_back_with_its_lease() -> None:
    assert State.decode(State(production="1").encode()) == State(production="1")
    leased = State(production="1", lease=Lease(12, "a name of spaces"))
    assert State.decode(leased.encode()) == leased
    assert step(leased, Move.LEASE, "") == leased


class Contended(InMemoryJournal):
    """A journal in which others act right before a claim, which is when it can hurt."""

    def __init__(self) -> None:
        super().__init__()
        self.others: list[Callable[[], None]] = []

    def claim(self, number: int, text: str) -> bool:
        if self.others:
            self.others.pop(0)()
        return super().claim(number, text)


actions = st.lists(
    st.tuples(
        st.sampled_from(["server 0", "server 1", "server 2", "person"]),
        st.sampled_from(["take", "stage", "promote", "archive", "rollback"]),
        st.sampled_from("123"),
        st.booleans(),
    ),
    max_size=30,
)


@given(wanted=actions)
def test_no_move_is_ever_won_under_a_lease_that_is_not_the_last_one(
    wanted: list[tuple[str, str, str, bool]], small_store: Callable[[], InMemoryModelStore]
) -> None:
    """Servers act on, whatever they have missed; some of it happens within another's move."""
    store, leases, refused = small_store(), dict[str, Lease](), 0
    assert isinstance(store.backend.journal, Contended)
    others = store.backend.journal.others

    def act(who: str, op: str, version: str) -> None:
        nonlocal refused
        if op == "take":
            if who != "person":
                taken = store.take_lease(who, over=store.current_lease())
                leases[who] = taken or leases.get(who, NOBODY)
            return
        lease = None if who == "person" else leases.get(who, NOBODY)
        calls: dict[str, Callable[[], object]] = {
            "stage": lambda: store.promote_to_staging(version, actor=who, lease=lease),
            "promote": lambda: store.promote_to_production(version, actor=who, lease=lease),
            "archive": lambda: store.archive_version(version, actor=who, lease=lease),
            "rollback": lambda: store.rollback(actor=who, lease=lease),
        }
        try:
            calls[op]()
        except LeaseLost:
            refused += 1
            assert lease != store.current_lease()
        except RegistryError:
            return

    for number, (who, op, version, within) in enumerate(wanted):
        if within and number + 1 < len(wanted):
            others.append(lambda a=(who, op, version): act(*a))
        else:
            act(who, op, version)
    in_force = 0
    for entry in store.history():
        if entry.op is Move.LEASE:
            in_force = entry.number
        elif entry.actor != "person":
            assert entry.epoch == in_force
            assert leases.get(entry.actor, NOBODY).epoch >= entry.epoch
        else:
            assert entry.epoch == 0
    assert store.verify() == len(store.history())
    if all(op == "take" or who == "person" for who, op, _, _ in wanted):
        assert refused == 0


@pytest.fixture(scope="module")
def small_store(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], InMemoryModelStore]:
    """Return a function that makes stores with three versions."""
    import numpy as np
    from safetensors.numpy import save_file

    folder = tmp_path_factory.mktemp("weights")
    for number in range(3):
        save_file({"a": np.full(2, number, np.float32)}, folder / f"{number}.safetensors")

    def make() -> InMemoryModelStore:
        store = InMemoryModelStore()
        for number in range(3):
            store.save_model_version(folder / f"{number}.safetensors")
        store.backend.journal = Contended()
        return store

    return make
