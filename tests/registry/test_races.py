# SPDX-License-Identifier: Apache-2.0
"""Several processes at once, on SQLite and on PostgreSQL: one production, one journal, no error."""

from __future__ import annotations

import shutil
import threading
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from support.fork_context import fork_context
from support.registry_children import begin, promote

from fl_registry import ModelManager, Stage
from fl_registry.mlflow.journal import JOURNAL_TAG

MakeWeights = Callable[[float], Path]
NIGHTLY = settings.get_current_profile_name() == "nightly"
PROCESSES, TRIALS = 8, 50 if NIGHTLY else 5
pytestmark = [pytest.mark.slow, pytest.mark.chaos]


@pytest.fixture(params=["sqlite", "postgres"])
def address(request: pytest.FixtureRequest, home: Path, empty_database: Path) -> str:
    """Return the address of a database that several processes share."""
    if request.param == "postgres":
        found: str = request.getfixturevalue("postgres_mlflow")
        return found
    home.mkdir()
    shutil.copyfile(empty_database, home / "mlflow.db")
    return f"sqlite:///{home / 'mlflow.db'}"


def together(work: Callable[..., None], *arguments: Any, count: int) -> list[list[str]]:
    """Run `work` for the versions 1 to `count` in as many processes, which start at once."""
    start = fork_context("support.registry_children")
    barrier, results = start.Barrier(count), start.Queue()
    processes = [
        start.Process(target=work, args=(*arguments, str(n), barrier, results))
        for n in range(1, count + 1)
    ]
    for process in processes:
        process.start()
    said = [results.get(timeout=120 + 10 * TRIALS) for _ in processes]
    for process in processes:
        process.join(60)
    return [found for _, found in sorted(said)]


def test_eight_processes_that_promote_at_once(
    address: str, home: Path, weights: MakeWeights
) -> None:
    names = [f"race-{uuid.uuid4().hex[:8]}" for _ in range(TRIALS)]
    for name in names:
        manager = ModelManager(address, name, home=home)
        for number in range(1, PROCESSES + 1):
            manager.save_model_version(weights(number), metrics={"m": number / 10})
    said = together(promote, address, home, names, count=PROCESSES)
    assert said == [[""] * TRIALS] * PROCESSES
    for name in names:
        manager = ModelManager(address, name, home=home)
        history = manager.history()
        assert sorted(entry.version for entry in history) == [
            str(n) for n in range(1, PROCESSES + 1)
        ]
        assert [e.displaced for e in history] == ["", *[e.version for e in history[:-1]]]
        rows = {str(r.version): r for r in manager.client.search_model_versions(f"name = '{name}'")}
        now = history[-1].version
        assert [v for v, r in rows.items() if r.tags["stage"] == Stage.PRODUCTION] == [now]
        assert [v for v, r in rows.items() if r.current_stage == Stage.PRODUCTION] == [now]
        aliases = manager.client.get_registered_model(name).aliases
        assert str(aliases["production"]) == now
        assert str(aliases["previous-production"]) == history[-1].displaced


def test_processes_that_begin_the_journal_of_a_foreign_model_at_once_begin_one(
    address: str, home: Path
) -> None:
    names, count = [f"foreign-{uuid.uuid4().hex[:8]}" for _ in range(TRIALS)], 4
    for name in names:
        client = ModelManager(address, name, home=home).client
        client.create_registered_model(name)
        for _ in range(count):
            client.create_model_version(name, "s3://bucket/model", await_creation_for=0)
    said = together(begin, address, home, names, count=count)
    for name, journals in zip(names, zip(*said, strict=True), strict=True):
        manager = ModelManager(address, name, home=home)
        journal = manager.client.get_registered_model(name).tags[JOURNAL_TAG]
        assert set(journals) == {journal}
        assert sorted(entry.version for entry in manager.history()) == ["1", "2", "3", "4"]
        experiment = manager.client.get_run(journal).info.experiment_id
        runs = manager.client.search_runs([experiment], f"tags.journal_for = '{name}'")
        assert [run.info.run_id for run in runs] == [journal]


def test_with_another_database_the_files_are_in_the_home_and_not_in_the_working_folder(
    postgres_mlflow: str,
    home: Path,
    weights: MakeWeights,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    name = f"files-{uuid.uuid4().hex[:8]}"
    manager = ModelManager(postgres_mlflow, name, home=home, experiment_name=name)
    version = manager.save_model_version(weights(1))
    assert manager.weights_path(version).is_relative_to(home / "artifacts")
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_managers_in_threads_of_one_process(address: str, home: Path, weights: MakeWeights) -> None:
    name = f"threads-{uuid.uuid4().hex[:8]}"
    manager = ModelManager(address, name, home=home, experiment_name=name)
    for number in range(1, 5):
        manager.save_model_version(weights(number))
    threads = [
        threading.Thread(target=manager.promote_to_production, args=(str(n),), daemon=True)
        for n in range(1, 5)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(entry.version for entry in manager.history()) == ["1", "2", "3", "4"]
    assert manager.drift() == ()
