# SPDX-License-Identifier: Apache-2.0
"""The journal: whatever is moved, in any order, one version stays in production."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry.errors import JournalError, StageError
from registry.journal import (
    Move,
    State,
    fold,
    new_entry,
    plan,
    read_chain,
    rollback_target,
)
from registry.records import Stage

VERSIONS = ["1", "2", "3", "4"]
moves = st.lists(st.tuples(st.sampled_from(list(Move)), st.sampled_from([None, *VERSIONS])))


def play(wanted: list[tuple[Move, str | None]]) -> tuple[list[str], list[State]]:
    """Try moves one after the other, as a store does; return the texts and all states."""
    texts: list[str] = []
    states = [State()]
    for op, version in wanted:
        state = states[-1]
        try:
            target = version or rollback_target(state)
            displaced = plan(state, op, target)
        except StageError:
            continue
        if displaced is not None:
            texts.append(new_entry(texts, op, version=target, displaced=displaced).encode())
        states.append(fold(read_chain(texts)))
    return texts, states


@given(moves)
def test_once_there_is_a_production_version_there_is_always_exactly_one(
    wanted: list[tuple[Move, str | None]],
) -> None:
    _, states = play(wanted)
    for before, after in pairwise(states):
        stages = [after.stage_of(v) for v in VERSIONS]
        assert stages.count(Stage.PRODUCTION) <= 1
        assert stages.count(Stage.STAGING) <= 1
        if before.production is not None:
            assert stages.count(Stage.PRODUCTION) == 1
        if before.production not in (None, after.production):
            assert after.previous == before.production
            assert after.stage_of(str(before.production)) is Stage.ARCHIVED


@given(moves)
def test_nothing_that_had_a_stage_returns_to_none(wanted: list[tuple[Move, str | None]]) -> None:
    _, states = play(wanted)
    for before, after in pairwise(states):
        for version in VERSIONS:
            if before.stage_of(version) is not Stage.NONE:
                assert after.stage_of(version) is not Stage.NONE
            if before.stage_of(version) is Stage.ARCHIVED:
                assert after.stage_of(version) is not Stage.STAGING


@given(moves)
def test_rolling_back_twice_returns(wanted: list[tuple[Move, str | None]]) -> None:
    _, states = play([*wanted, (Move.ROLLBACK, None), (Move.ROLLBACK, None)])
    if states[-1].previous is not None:
        assert states[-3].production == states[-1].production


@given(moves.filter(lambda found: len(play(found)[0]) > 1), st.data())
def test_a_change_anywhere_in_the_chain_is_found(
    wanted: list[tuple[Move, str | None]], data: st.DataObject
) -> None:
    texts, _ = play(wanted)
    place = data.draw(st.integers(0, len(texts) - 2))
    changed = json.loads(texts[place]) | {"reason": "forged"}
    with pytest.raises(JournalError, match=f"Entry {place + 2} of the journal does not follow"):
        read_chain([*texts[:place], json.dumps(changed), *texts[place + 1 :]])
    with pytest.raises(JournalError, match="does not follow"):
        read_chain([*texts[:place], *texts[place + 1 :]])


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"op": "dance", "from": ""}', "null"])
def test_an_entry_that_cannot_be_read_is_named(text: str) -> None:
    with pytest.raises(JournalError, match="Entry 1 of the journal cannot be read"):
        read_chain([text])


@given(st.text(max_size=5000), st.text(max_size=500))
def test_an_entry_is_read_back_and_fits_into_a_param(reason: str, actor: str) -> None:
    entry = new_entry([], Move.STAGE, version="1", displaced="", actor=actor, reason=reason)
    assert read_chain([entry.encode()]) == (entry,)
    assert len(entry.encode()) < 6000
    assert "\n" not in entry.reason


def test_a_long_reason_of_quotes_fits_too() -> None:
    entry = new_entry([], Move.STAGE, version="1", displaced="", reason='"\\' * 5000)
    assert len(entry.encode()) < 6000
