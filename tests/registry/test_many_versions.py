# SPDX-License-Identifier: Apache-2.0
"""What is read where there are many versions and moves: no more than what is asked for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from fl_registry import JournalError, ModelManager, Stage, StageError
from fl_registry.backend import JournalStorage
from fl_registry.journal.entries import (
    Entry,
    Ledger,
    Mark,
    Page,
    carried_over,
    check_since,
    mark_at_end,
    new_entry,
    read_chain,
    read_page,
)
from fl_registry.mlflow.backend import MlflowBackend
from fl_registry.mlflow.connection import Connection
from fl_registry.stages import Move, State, step
from fl_registry.store import ModelStore

MakeWeights = Callable[[float], Path]


def save(store: ModelStore, weights: MakeWeights, count: int) -> None:
    for number in range(count):
        store.save_model_version(weights(number), metrics={"accuracy": number / 100})


def numbers(rows: list[dict[str, Any]]) -> list[str]:
    return [row["version"] for row in rows]


def test_lists_are_read_in_parts(store: ModelStore, weights: MakeWeights) -> None:
    save(store, weights, 7)
    for version in ("1", "2", "5"):
        store.promote_to_production(version)
    store.promote_to_staging("6")
    assert numbers(store.list_versions()) == numbers(store.list_all_versions()) == list("7654321")
    assert numbers(store.list_versions(limit=2)) == ["7", "6"]
    assert numbers(store.list_versions(limit=2, before="6")) == ["5", "4"]
    assert numbers(store.list_versions(before="2")) == ["1"]
    assert numbers(store.list_versions(limit=0)) == []
    assert numbers(store.list_versions(stage=Stage.ARCHIVED)) == ["2", "1"]
    assert numbers(store.list_versions(stage="archived", limit=1)) == ["2"]
    assert numbers(store.list_versions(stage="Archived", limit=1, before="2")) == ["1"]
    assert numbers(store.list_versions(stage="Production")) == ["5"]
    assert numbers(store.list_versions(stage="Staging", limit=5, before="6")) == []
    assert numbers(store.list_versions(stage="None", limit=2)) == ["7", "4"]
    third = datetime.fromisoformat(store.get_version("3").created.isoformat())
    assert numbers(store.list_versions(since=third)) == list("76543")
    assert store.list_versions(since=datetime.now(UTC) + timedelta(days=1)) == []
    assert len(store.list_versions(since=datetime.now(UTC).date() - timedelta(days=1))) == 7
    store.prune(keep=1, dry_run=False)
    assert numbers(store.list_versions(limit=3)) == ["7", "6", "5"]
    with pytest.raises(StageError):
        store.list_versions(stage="Nowhere")


def counted(manager: ModelManager) -> Counter[str]:
    """Return the counts of a store's calls to MLflow from now on."""
    calls: Counter[str] = Counter()
    client: Any = manager.client

    def counting(name: str, plain: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            calls[name] += 1
            return plain(*arguments, **named)

        return call

    for name in ("search_model_versions", "get_model_version"):
        setattr(client, name, counting(name, getattr(client, name)))
    return calls


def test_a_clean_up_lists_all_versions_once(manager: ModelManager, weights: MakeWeights) -> None:
    save(manager, weights, 6)
    other = ModelManager(home=manager.backend.connection.home)
    calls = counted(other)
    assert len(other.prune(keep=1).versions) == 5
    assert calls["search_model_versions"] == 1
    assert len(other.prune(keep=1, dry_run=False).versions) == 5
    assert calls["search_model_versions"] == 2


def test_a_part_of_a_list_is_one_call(manager: ModelManager, weights: MakeWeights) -> None:
    save(manager, weights, 6)
    manager.promote_to_production("3")
    calls = counted(manager)
    manager.list_versions(limit=3)
    assert calls["search_model_versions"] == 1
    manager.list_versions(stage="Production", limit=3)
    assert (calls["search_model_versions"], calls["get_model_version"]) == (1, 1)


@pytest.fixture
def paged(mlflow_home: Path, weights: MakeWeights) -> Callable[[], ModelStore]:
    """Return a function that opens a store whose journal has six pages."""

    def opened() -> ModelStore:
        connection = Connection(None, mlflow_home)
        return ModelStore(MlflowBackend(connection, "m", page_length=4), alias_seconds=0.0)

    store = opened()
    save(store, weights, 2)
    for number in range(16):
        store.promote_to_production(str(1 + number % 2))
    return opened


def pages_read(store: ModelStore) -> list[int]:
    """Return a list to which the first entry of each page is added that is read from now on."""
    journal: Any = store.backend.journal
    read: list[int] = []
    plain = journal._read

    def reading(run: Any) -> Any:
        here = plain(run)
        read.append(here.page.first)
        return here

    journal._read = reading
    return read


def test_full_pages_of_the_journal_are_read_once(paged: Callable[[], ModelStore]) -> None:
    store = paged()
    entries = store.history()
    assert [entry.number for entry in entries] == list(range(1, len(entries) + 1))
    read = pages_read(store)
    assert store.history() == entries
    assert len(read) == 1
    for number in range(8):
        store.promote_to_production(str(1 + number % 2))
    after = store.history()
    assert after[: len(entries)] == entries
    assert [entry.number for entry in after] == list(range(1, len(after) + 1))
    assert paged().history() == after
    assert store.history(after=len(entries)) == after[len(entries) :]


def test_the_chain_is_verified_from_where_it_was_verified(paged: Callable[[], ModelStore]) -> None:
    store = paged()
    length = store.verify()
    read = pages_read(store)
    assert store.verify(whole=False) == length
    assert len(read) == 1
    del read[:]
    assert store.verify() == length
    assert len(read) > 4
    store.promote_to_production("1")
    assert paged().verify(whole=False) == store.verify() > length


def test_what_was_changed_before_that_is_found_on_demand(paged: Callable[[], ModelStore]) -> None:
    store = paged()
    store.verify()
    changed = paged()
    journal: JournalStorage = changed.backend.journal
    plain = journal.pages

    def pages(*, after: int = 0) -> list[Page]:
        read = [*plain(after=after)]
        if read[0].first == 1:
            first, *others = read[0].texts
            read[0] = Page((first.replace("promote", "archive"), *others))
        return read

    journal.pages = pages  # type: ignore[method-assign]
    changed.verify(whole=False)
    with pytest.raises(JournalError, match="Entry 1 "):
        changed.verify()


def journal_of(moves: int) -> list[Page]:
    ledger, pages = Ledger(), []
    for number in range(moves):
        if number and number % 5 == 0:
            pages.append(ledger.page)
            ledger = read_page(carried_over(ledger))
        entry = new_entry(ledger, Entry(Move.PROMOTE, str(1 + number), reason=str(number)))
        page = Page((*ledger.page.texts, entry.encode()), ledger.page.carried, ledger.page.first)
        ledger = read_page(page if ledger.page.texts else Page((entry.encode(),)), ledger)
    return [*pages, ledger.page]


def test_another_journal_than_the_one_that_was_verified_is_refused() -> None:
    one, two = read_chain(journal_of(12)), read_chain(journal_of(12))
    mark = mark_at_end(one[-1])
    check_since(one, mark)
    for ledgers in (two, one[:1]):
        with pytest.raises(JournalError, match="doctor --deep"):
            check_since(ledgers, mark)
    with pytest.raises(JournalError):
        check_since((), Mark(3, "0"))


def test_moves_add_up_to_the_same_one_by_one_and_together() -> None:
    entries = [entry for ledger in read_chain(journal_of(23)) for entry in ledger.entries]
    state = State()
    for entry in entries:
        state = step(state, entry.op, entry.version, entry.approval)
    last = read_chain(journal_of(23))[-1]
    assert last.state == state
    assert (state.production, state.previous, len(state.archived)) == ("23", "22", 22)
