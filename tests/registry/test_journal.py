# SPDX-License-Identifier: Apache-2.0
"""The journal: whatever is moved, in any order, one version stays in production."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, date, datetime
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl_registry.errors import InvalidName, StageError
from fl_registry.journal.entries import (
    Entry,
    JournalError,
    Ledger,
    Page,
    as_moment,
    carried_over,
    decode,
    fold,
    is_date,
    new_entry,
    production_at,
    read_chain,
    read_page,
)
from fl_registry.stages import Move, Stage, State

VERSIONS = ["1", "2", "3", "4"]
OPS = [op for op in Move if op not in (Move.CARRY, Move.LEASE)]
moves = st.lists(st.tuples(st.sampled_from(OPS), st.sampled_from([None, *VERSIONS])))


def all_entries(pages: Sequence[Page]) -> tuple[Entry, ...]:
    """Return the entries of a journal."""
    return tuple(entry for ledger in read_chain(pages) for entry in ledger.entries)


def play(
    wanted: list[tuple[Move, str | None]], page_length: int = 1000
) -> tuple[list[Page], list[State]]:
    """Try moves one after the other, as a store does; return the pages and all states."""
    pages, ledger, states = [Page()], Ledger(), [State()]
    for op, version in wanted:
        try:
            target = version or ledger.state.rollback_target()
            planned = ledger.state.plan(op, target)
        except StageError:
            continue
        if planned is not None:
            named, displaced = planned
            if len(ledger.page.texts) >= page_length:
                pages.append(carried_over(ledger))
                ledger = read_page(pages[-1])
            text = new_entry(ledger, Entry(named, version=target, displaced=displaced)).encode()
            page = pages[-1]
            pages[-1] = Page((*page.texts, text), page.carried, page.first)
            ledger = read_page(pages[-1], ledger)
        states.append(ledger.state)
    return pages, states


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


@given(moves)
def test_only_restoring_takes_an_archived_version_to_staging(
    wanted: list[tuple[Move, str | None]],
) -> None:
    pages, _ = play(wanted)
    state = State()
    for entry in all_entries(pages):
        after = fold(found for found in all_entries(pages) if found.number <= entry.number)
        if state.stage_of(entry.version) is Stage.ARCHIVED:
            moves = (Move.RESTORE, Move.ROLLBACK, Move.ADOPT, Move.RETIRE)
            stays = after.stage_of(entry.version) is Stage.ARCHIVED
            assert entry.op in moves or (entry.op is Move.ACKNOWLEDGE and stays)
        state = after


@given(moves)
def test_promoting_what_was_in_production_before_is_called_a_rollback(
    wanted: list[tuple[Move, str | None]],
) -> None:
    pages, _ = play(wanted)
    served: set[str] = set()
    for entry in all_entries(pages):
        if entry.op in (Move.PROMOTE, Move.ROLLBACK):
            archived_before = entry.version in served
            assert entry.op is Move.ROLLBACK or not archived_before or _was_staged(pages, entry)
        if entry.op in (Move.PROMOTE, Move.ROLLBACK, Move.ADOPT):
            served.add(entry.version)


def _was_staged(pages: list[Page], entry: object) -> bool:
    number = entry.number  # type: ignore[attr-defined]
    state = fold(found for found in all_entries(pages) if found.number < number)
    return state.staging == entry.version  # type: ignore[attr-defined]


@given(moves)
def test_rolling_back_twice_returns(wanted: list[tuple[Move, str | None]]) -> None:
    _, states = play([*wanted, (Move.ROLLBACK, None), (Move.ROLLBACK, None)])
    if states[-1].previous is not None:
        assert states[-3].production == states[-1].production


@given(moves.filter(lambda found: play(found)[0][0].texts), st.data())
def test_an_altered_byte_anywhere_is_found_in_the_newest_entry_too(
    wanted: list[tuple[Move, str | None]], data: st.DataObject
) -> None:
    texts = play(wanted)[0][0].texts
    place = data.draw(st.integers(0, len(texts) - 1))
    letter = data.draw(st.integers(0, len(texts[place]) - 1))
    other = data.draw(st.characters(codec="utf-8").filter(lambda c: c != texts[place][letter]))
    altered = texts[place][:letter] + other + texts[place][letter + 1 :]
    fault = f"Entry {place + 1} of the journal (cannot be read|was changed)"
    with pytest.raises(JournalError, match=fault):
        all_entries([Page((*texts[:place], altered, *texts[place + 1 :]))])


@given(moves.filter(lambda found: len(play(found)[0][0].texts) > 1), st.data())
def test_a_forgery_with_a_digest_of_its_own_is_found_by_what_follows(
    wanted: list[tuple[Move, str | None]], data: st.DataObject
) -> None:
    texts = play(wanted)[0][0].texts
    place = data.draw(st.integers(0, len(texts) - 2))
    forged = replace(decode(texts[place], number=place + 1), reason="forged").encode()
    with pytest.raises(JournalError, match=f"Entry {place + 2} of the journal does not follow"):
        all_entries([Page((*texts[:place], forged, *texts[place + 1 :]))])
    with pytest.raises(JournalError, match="does not follow"):
        all_entries([Page((*texts[:place], *texts[place + 1 :]))])


@given(moves, st.integers(1, 4))
def test_a_journal_in_several_runs_says_what_one_in_a_single_run_says(
    wanted: list[tuple[Move, str | None]], length: int
) -> None:
    whole, states = play(wanted)
    pages, turned = play(wanted, page_length=length)
    assert turned == states
    moved = [(e.op, e.version, e.displaced) for e in all_entries(pages) if e.op is not Move.CARRY]
    assert moved == [(e.op, e.version, e.displaced) for e in all_entries(whole)]
    assert [e.number for e in all_entries(pages)] == list(range(1, len(all_entries(pages)) + 1))


@given(moves.filter(lambda found: len(play(found, page_length=1)[0]) > 1), st.data())
def test_a_change_in_an_earlier_run_is_found_at_the_next_ones_first_entry(
    wanted: list[tuple[Move, str | None]], data: st.DataObject
) -> None:
    pages, _ = play(wanted, page_length=1)
    place = data.draw(st.integers(0, len(pages) - 2))
    page = pages[place]
    number = page.first + len(page.texts) - 1
    changed = replace(decode(page.texts[-1], number=number), reason="forged").encode()
    forged = [*pages]
    forged[place] = Page((*page.texts[:-1], changed), page.carried, page.first)
    following = pages[place + 1].first
    with pytest.raises(
        JournalError, match=f"Entry {following} of the journal does not follow"
    ) as found:
        all_entries(forged)
    assert [entry.number for entry in found.value.before] == [*range(1, following)]
    lighter = pages[place + 1]
    forged = [*pages]
    forged[place + 1] = Page(lighter.texts, State().encode(), lighter.first)
    if lighter.carried != State().encode():
        with pytest.raises(JournalError, match=f"entry {following} of the journal carries"):
            all_entries(forged)


@given(
    st.frozensets(st.integers(1, 40).map(str)),
    st.frozensets(st.integers(1, 40).map(str)),
    st.sampled_from([None, "7"]),
)
def test_a_state_is_read_back(
    archived: frozenset[str], served: frozenset[str], production: str | None
) -> None:
    state = State(production, None, "41", "41", archived, archived, served)
    assert State.decode(state.encode()) == state


def test_what_was_in_production_on_a_date() -> None:
    ledger, days = Ledger(), ["2026-11-20", "2026-11-21", "2026-11-23"]
    for number, day in enumerate(days, start=1):
        entry = new_entry(ledger, Entry(Move.PROMOTE, str(number)))
        text = replace(entry, time=f"{day}T12:00:00.000+00:00").encode()
        ledger = read_page(Page((*ledger.page.texts, text)), ledger)

    def at(when: str) -> str | None:
        return production_at(ledger.entries, as_moment(when))

    assert at("2026-11-19") is None
    assert at("2026-11-20T11:59:59") is None
    assert at("2026-11-20T12:00:00+00:00") == "1"
    assert at("2026-11-20T13:30:00+02:00") is None
    assert at("2026-11-20") == "1"
    assert at("2026-11-22") == "2"
    assert at("2100-01-01") == "3"
    assert production_at(ledger.entries, as_moment(date(2026, 11, 21))) == "2"
    late = datetime(2026, 11, 23, 11, tzinfo=UTC)
    assert production_at(ledger.entries, as_moment(late)) == "2"
    assert at("0001-01-01T00:00:00+14:00") is None
    assert at("9999-12-31T23:59:59-12:00") == "3"


@pytest.mark.parametrize("when", ["", "yesterday", "2026-13-01", "2026-11-23Tmorning", "7"])
def test_what_is_not_a_date_is_told(when: str) -> None:
    with pytest.raises(InvalidName, match="not a date; expected one such as '2026-11-23'"):
        as_moment(when)


def test_digits_are_a_version_and_not_a_date() -> None:
    assert not is_date("20261123")
    assert not is_date("3")
    assert is_date(" 2026-11-23 ")


def test_time_never_goes_back_where_a_clock_does() -> None:
    first = new_entry(Ledger(), Entry(Move.STAGE, version="1"))
    ahead = replace(first, time="2999-01-01T00:00:00.000+00:00")
    ledger = read_page(Page((ahead.encode(),)))
    assert new_entry(ledger, Entry(Move.STAGE, version="2", displaced="1")).time == ahead.time


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"op": "dance", "from": ""}', "null"])
def test_an_entry_that_cannot_be_read_is_named(text: str) -> None:
    with pytest.raises(JournalError, match="Entry 1 of the journal cannot be read"):
        all_entries([Page((text,))])


@given(st.text(max_size=5000), st.text(max_size=500))
def test_an_entry_is_read_back_and_fits_into_a_param(reason: str, actor: str) -> None:
    entry = new_entry(Ledger(), Entry(Move.STAGE, version="1", actor=actor, reason=reason))
    assert all_entries([Page((entry.encode(),))]) == (entry,)
    assert len(entry.encode()) < 6000
    assert "\n" not in entry.reason


def test_an_empty_page_breaks_no_chain_and_mends_none() -> None:
    pages, _ = play([(Move.PROMOTE, version) for version in "123"], page_length=1)
    between = [pages[0], Page(), *pages[1:]]
    assert all_entries(between) == all_entries(pages)
    with pytest.raises(JournalError, match="Entry 2 of the journal does not follow"):
        all_entries([pages[0], Page(), *pages[2:]])


def test_a_long_reason_of_quotes_fits_too() -> None:
    entry = new_entry(Ledger(), Entry(Move.STAGE, version="1", reason='"\\' * 5000))
    assert len(entry.encode()) < 6000
