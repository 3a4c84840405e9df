# SPDX-License-Identifier: Apache-2.0
"""The journal's runs in MLflow: turned over when full, brought back when deleted, never doubled."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.registry_faults import told

from fl_registry import JournalError, ModelManager
from fl_registry.mlflow.journal import JOURNAL_EXPERIMENT, JOURNAL_TAG, JournalHome, MlflowJournal
from fl_registry.stages import Move

MakeWeights = Callable[[float], Path]
NAME = "fl-global-model"


def short(manager: ModelManager, length: int = 3) -> ModelManager:
    """Give a manager a journal that is full after `length` entries."""
    manager.backend.journal = MlflowJournal(manager.backend.connection, NAME, page_length=length)
    return manager


def fill(manager: ModelManager, weights: MakeWeights, count: int) -> None:
    for number in range(1, count + 1):
        manager.save_model_version(weights(number), metrics={"m": 0.5})


def journal_runs(manager: ModelManager) -> list[Any]:
    experiment = manager.client.get_experiment_by_name(JOURNAL_EXPERIMENT)
    return list(manager.client.search_runs([experiment.experiment_id]))


def test_a_full_journal_goes_on_in_a_new_run(
    manager: ModelManager, weights: MakeWeights, mlflow_home: Path
) -> None:
    fill(short(manager), weights, 9)
    other = short(ModelManager(home=mlflow_home))
    times = []
    for version in range(1, 10):
        (manager if version % 2 else other).promote_to_production(str(version))
        times.append(manager.history()[-1].time)
    history = manager.history()
    assert [e.version for e in history if e.op is not Move.CARRY] == [str(n) for n in range(1, 10)]
    assert [entry.number for entry in history] == list(range(1, len(history) + 1))
    assert manager.verify() == other.verify() == len(history)
    assert len(manager.backend.journal.pages()) == len(journal_runs(manager)) >= 4
    assert len(manager.backend.journal.page(fresh=True).texts) <= 3
    newest = ModelManager(home=mlflow_home)
    for number in range(len(history) + 1):  # within the newest run, and across older ones
        assert newest.history(after=number) == history[number:]
    assert newest.get_latest_version("Production") == "9"
    assert [row["stage"] for row in newest.list_all_versions()[1:]] == ["Archived"] * 8
    assert newest.rollback(to="1") == "1"
    if times[1] < times[2]:
        assert newest.production_at(times[1]) == "2"


def test_two_processes_that_turn_the_journal_over_at_once_turn_it_once(
    manager: ModelManager, weights: MakeWeights, mlflow_home: Path
) -> None:
    fill(manager, weights, 8)
    pair = short(manager, 2), short(ModelManager(home=mlflow_home), 2)

    def promote(who: int) -> None:
        for version in range(1 + who, 9, 2):
            pair[who].promote_to_production(str(version))

    threads = [threading.Thread(target=promote, args=(who,)) for who in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    history = manager.history()
    moved = [entry for entry in history if entry.op is not Move.CARRY]
    assert sorted(entry.version for entry in moved) == [str(n) for n in range(1, 9)]
    assert [e.displaced for e in moved] == ["", *[e.version for e in moved[:-1]]]
    assert len(journal_runs(manager)) == len(manager.backend.journal.pages())


def test_an_entry_changed_in_an_older_run_is_named(
    manager: ModelManager, weights: MakeWeights, mlflow_home: Path
) -> None:
    fill(short(manager), weights, 5)
    for version in "12345":
        manager.promote_to_production(version)
    with sqlite3.connect(mlflow_home / "mlflow.db") as database:
        database.execute(
            'UPDATE params SET value = replace(value, \'"version":"1"\', \'"version":"9"\') '
            "WHERE key = 'op.000001'"
        )
    with pytest.raises(JournalError, match="Entry 1 of the journal was changed from outside"):
        manager.verify()


def test_an_entry_that_was_removed_is_named_and_what_follows_it_is_not_forgotten(
    manager: ModelManager, weights: MakeWeights, mlflow_home: Path
) -> None:
    fill(manager, weights, 3)
    for version in "123":
        manager.promote_to_production(version)
    with sqlite3.connect(mlflow_home / "mlflow.db") as database:
        database.execute("DELETE FROM params WHERE key = 'op.000002'")
    for ask in (manager.verify, ModelManager(home=mlflow_home).rollback):
        with pytest.raises(JournalError, match="Entry 2 of the journal is missing, though entry 3"):
            ask()


def test_an_entry_that_cannot_be_read_is_named(
    manager: ModelManager, weights: MakeWeights, mlflow_home: Path
) -> None:
    fill(manager, weights, 2)
    for version in "12":
        manager.promote_to_production(version)
    with sqlite3.connect(mlflow_home / "mlflow.db") as database:
        database.execute("UPDATE params SET value = 'gone' WHERE key = 'op.000002'")
    with pytest.raises(JournalError, match="Entry 2 of the journal cannot be read"):
        ModelManager(home=mlflow_home).promote_to_production("1")


@pytest.mark.parametrize("what", ["run", "experiment"])
def test_a_journal_that_was_deleted_in_mlflow_is_brought_back(
    manager: ModelManager, weights: MakeWeights, mlflow_home: Path, what: str
) -> None:
    fill(manager, weights, 3)
    manager.promote_to_production("1")
    (run,) = journal_runs(manager)
    if what == "run":
        manager.client.delete_run(run.info.run_id)
    else:
        manager.client.delete_experiment(run.info.experiment_id)
    manager.promote_to_production("2")
    assert ModelManager(home=mlflow_home).get_latest_version("Production") == "2"
    manager.client.delete_run(run.info.run_id)
    other = ModelManager(home=mlflow_home)
    assert other.get_latest_version("Production") == "2"
    other.promote_to_production("3")
    assert manager.verify() == 3


def test_a_journal_that_is_gone_for_good_is_told(
    manager: ModelManager, weights: MakeWeights, mlflow_home: Path
) -> None:
    fill(manager, weights, 1)
    manager.promote_to_production("1")
    with sqlite3.connect(mlflow_home / "mlflow.db") as database:
        for table in ("params", "tags", "metrics", "latest_metrics", "runs"):
            database.execute(f"DELETE FROM {table}")  # noqa: S608 - names of our own
    with pytest.raises(JournalError, match="journal of model 'fl-global-model' is gone"):
        ModelManager(home=mlflow_home).promote_to_production("1")


def test_a_model_that_lost_its_tag_gets_no_second_journal(
    manager: ModelManager, weights: MakeWeights, mlflow_home: Path
) -> None:
    fill(manager, weights, 2)
    manager.promote_to_production("1")
    journal = manager.client.get_registered_model(NAME).tags[JOURNAL_TAG]
    manager.client.delete_registered_model_tag(NAME, JOURNAL_TAG)
    other = ModelManager(home=mlflow_home)
    with pytest.raises(JournalError, match=f"lost its tag 'journal', but run {journal}"):
        other.promote_to_production("2")
    manager.client.set_registered_model_tag(NAME, JOURNAL_TAG, journal)
    other.promote_to_production("2")
    assert other.verify() == 2


def test_a_journal_that_another_process_begins_meanwhile_is_not_a_lost_one(
    mlflow_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manager, other = ModelManager(home=mlflow_home), ModelManager(home=mlflow_home)
    manager.client.create_registered_model(NAME)
    for _ in range(2):
        manager.client.create_model_version(NAME, "s3://bucket/model", await_creation_for=0)
    look, begun = JournalHome._journal_runs, list[str]()

    def too_late(home: JournalHome, since: int = 0) -> list[str]:
        if not begun:
            begun.append("by the other")
            other.archive_version("1")
        return look(home, since)

    monkeypatch.setattr(JournalHome, "_journal_runs", too_late)
    manager.archive_version("2")
    assert [entry.version for entry in manager.history()] == ["1", "2"]
    assert len(journal_runs(manager)) == 1


def test_of_two_rollbacks_at_once_the_second_does_not_undo_the_first(
    manager: ModelManager, weights: MakeWeights, mlflow_home: Path
) -> None:
    fill(manager, weights, 3)
    for version in "123":
        manager.promote_to_production(version)
    other = ModelManager(home=mlflow_home)
    acted: list[str] = []

    def overtake(name: str, when: str) -> None:
        if name == "log_param" and when == "before" and not acted:
            acted.append(name)
            assert other.rollback() == "2"

    told(manager.backend.connection, overtake)
    assert manager.rollback() == "2"
    assert manager.get_latest_version("Production") == "2"
    assert len(manager.history()) == 4


def test_a_move_of_a_long_journal_reads_no_more_than_one_of_a_short_one(
    manager: ModelManager, weights: MakeWeights
) -> None:
    fill(manager, weights, 2)
    for version in "12":
        manager.promote_to_production(version)
    calls: list[str] = []
    told(
        manager.backend.connection,
        lambda name, when: calls.append(name) if when == "before" else None,
    )
    asked = []
    for _ in range(40):
        calls.clear()
        manager.rollback()
        asked.append(list(calls))
    assert asked[0] == asked[-1]
    assert "get_run" not in asked[0]
