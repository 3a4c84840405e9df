# SPDX-License-Identifier: Apache-2.0
"""Stays in production, rollbacks that displace only what they mean to, and what is logged there."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl_registry import InMemoryModelStore, ModelManager, RegistryError, StageError, tenures
from fl_registry.journal.entries import Entry, Ledger, Page, new_entry, read_page
from fl_registry.stages import Move, State, step
from fl_registry.store import ModelStore

MakeWeights = Callable[[float], Path]
NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)

moves = st.lists(st.tuples(st.sampled_from(list(Move)), st.sampled_from("1234")), max_size=25)


def journal(wanted: list[tuple[Move, str]]) -> Ledger:
    """A journal of those of the moves that are allowed."""
    ledger = Ledger()
    for op, version in wanted:
        if op is Move.CARRY:
            continue
        if op is Move.LEASE:
            entry = new_entry(ledger, Entry(op))
            ledger = read_page(Page((*ledger.page.texts, entry.encode())), ledger)
            continue
        try:
            planned = ledger.state.plan(op, version)
        except StageError:
            continue
        if planned is not None:
            named, displaced = planned
            entry = new_entry(ledger, Entry(named, version=version, displaced=displaced))
            ledger = read_page(Page((*ledger.page.texts, entry.encode())), ledger)
    return ledger


@given(moves)
def test_stays_are_what_the_journal_says_was_in_production(wanted: list[tuple[Move, str]]) -> None:
    ledger, state, seen = journal(wanted), State(), []
    for entry in ledger.entries:
        after = step(state, entry.op, entry.version)
        if after.production != state.production:
            seen.append((after.production, state.production or "", entry.id))
        state = after
    stays = tenures(ledger.entries)
    assert [(stay.version, stay.displaced, stay.id) for stay in stays] == seen
    been: set[str] = set()
    for stay in stays:
        assert not stay.returned or stay.version in been
        been.add(stay.version)


def saved(store: ModelStore, weights: MakeWeights, count: int) -> None:
    for number in range(count):
        store.save_model_version(weights(number))


def test_a_version_returns_by_rollback_and_not_by_promotion(
    store: ModelStore, weights: MakeWeights
) -> None:
    saved(store, weights, 3)
    for version in "12":
        store.promote_to_production(version, actor="Ada", reason="better")
    store.promote_to_production("1")  # which the journal calls a rollback
    store.promote_to_production("3")
    store.rollback("2")
    told = [(stay.version, stay.displaced, stay.returned) for stay in tenures(store.history())]
    assert told == [
        ("1", "", False),
        ("2", "1", False),
        ("1", "2", True),
        ("3", "1", False),
        ("2", "3", True),
    ]
    first = tenures(store.history())[0]
    assert (first.actor, first.reason, first.since.tzinfo) == ("Ada", "better", UTC)


def test_a_rollback_displaces_only_the_version_that_it_means(
    store: ModelStore, weights: MakeWeights
) -> None:
    saved(store, weights, 3)
    for version in "123":
        store.promote_to_production(version)
    with pytest.raises(StageError, match="Version 2 is not in production any more, 3 is"):
        store.rollback("1", displacing="2")
    assert store.get_latest_version("Production") == "3"
    assert store.rollback("1", displacing="3") == "1"
    with pytest.raises(StageError, match="nothing was moved"):
        store.rollback("1", displacing="3")
    assert len(tenures(store.history())) == 4


def test_numbers_and_texts_of_production_go_to_the_ended_run(
    manager: ModelManager, weights: MakeWeights
) -> None:
    experiment = manager.backend.connection.experiment_id("fl-app")
    run_id = manager.client.create_run(experiment).info.run_id
    manager.client.set_terminated(run_id, "FINISHED")
    version = manager.save_model_version(weights(1), run_id)
    for number, accuracy in ((1, 0.9), (2, 0.8), (2, 0.8)):
        manager.log_production(
            version,
            {"production/accuracy": accuracy, "production/lost": float("nan")},
            step=number,
            time=NOON,
            texts={f"production/{number}/predictions.json": "[1, 2]"},
        )
    curve = manager.client.get_metric_history(run_id, "production/accuracy")
    assert [(point.step, point.value) for point in curve] == [(1, 0.9), (2, 0.8)]
    assert curve[0].timestamp == NOON.timestamp() * 1000
    run = manager.client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert "production/lost" not in run.data.metrics
    folder = manager.client.list_artifacts(run_id, "production/2")
    assert [file.path for file in folder] == ["production/2/predictions.json"]


def test_in_memory_the_same_is_kept_by_run(weights: MakeWeights) -> None:
    store = InMemoryModelStore()
    version = store.save_model_version(weights(1), "a-run")
    for number in (1, 2, 2):
        store.log_production(
            version, {"production/accuracy": 0.9}, step=number, time=NOON, texts={"a/b.json": "{}"}
        )
    assert store.runs["a-run"].metrics == {"production/accuracy": [(1, 0.9), (2, 0.9)]}
    assert store.runs["a-run"].artifacts == ["a/b.json"]


def test_without_a_run_it_says_so(store: ModelStore, weights: MakeWeights) -> None:
    saved(store, weights, 1)
    with pytest.raises(RegistryError, match="saved without a run"):
        store.log_production("1", {"production/accuracy": 0.9}, step=1, time=NOON)


def test_a_run_that_is_gone_is_told(manager: ModelManager, weights: MakeWeights) -> None:
    version = manager.save_model_version(weights(1), "abc123")
    with pytest.raises(RegistryError, match="abc123"):
        manager.log_production(version, {"production/accuracy": 0.9}, step=1, time=NOON)


def test_a_metric_s_name_that_mlflow_refuses_is_reported_once_a_run(
    store: ModelStore, weights: MakeWeights, caplog: pytest.LogCaptureFixture
) -> None:
    run_id = "abc123"
    if isinstance(store, ModelManager):
        run_id = store.client.create_run("0", run_name="one").info.run_id
    version = store.save_model_version(weights(1), run_id)
    for number in (1, 2):
        store.log_production(version, {"production/top@5": 0.9}, step=number, time=NOON)
    lines = [record.getMessage() for record in caplog.records if "top@5" in record.getMessage()]
    assert len(lines) == 1
    assert lines[0].endswith("logged as 'production/top_5'")
