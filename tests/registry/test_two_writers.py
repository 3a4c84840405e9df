# SPDX-License-Identifier: Apache-2.0
"""Two servers that share only MLflow: one hangs in the middle of its work, and comes back."""

from __future__ import annotations

import os
import random
import shutil
import signal
import sqlite3
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from sqlalchemy import create_engine, text
from support.fork_context import fork_context
from support.registry_children import FIRST_SERVER, serve

from fl_registry import ModelManager, Stage
from fl_registry.stages import Move

MakeWeights = Callable[[float], Path]
NIGHTLY = settings.get_current_profile_name() == "nightly"
TRIALS, LASTS = 20 if NIGHTLY else 3, 1.0
pytestmark = [pytest.mark.slow, pytest.mark.chaos]


@pytest.fixture(params=["sqlite", "postgres", "server"])
def address(request: pytest.FixtureRequest, home: Path, empty_database: Path) -> str:
    """Return where several processes find the same MLflow."""
    if request.param == "sqlite":
        home.mkdir()
        shutil.copyfile(empty_database, home / "mlflow.db")
        return f"sqlite:///{home / 'mlflow.db'}"
    names = {"postgres": "postgres_mlflow", "server": "served_mlflow"}
    found: str = request.getfixturevalue(names[request.param])
    return found


@contextmanager
def first_server(
    address: str, home: Path, name: str, file: Path, lasts: float
) -> Iterator[tuple[Any, Any]]:
    """A process that writes to the model, and the queue in which it tells how it went."""
    start = fork_context("support.registry_children")
    ready, results = start.Event(), start.Queue()
    arguments = (address, home, name, file, lasts, ready, results)
    process = start.Process(target=serve, args=arguments)
    process.start()
    assert ready.wait(120), results.get(timeout=1)
    try:
        yield process, results
    finally:
        process.kill()
        process.join()


def stop_anywhere(process: int, address: str) -> None:
    """Stop a process in its work, but not where it keeps the database locked for all others."""
    while True:
        time.sleep(random.uniform(0.1, 1.0))
        os.kill(process, signal.SIGSTOP)
        while not is_stopped(process):
            time.sleep(0.01)
        if not has_locks(address):
            return
        os.kill(process, signal.SIGCONT)


def is_stopped(process: int) -> bool:
    """Whether all threads of a process stand still; the signal returns before they do."""
    states = [file.read_text() for file in Path(f"/proc/{process}/task").glob("*/stat")]
    return all(state.rpartition(")")[2].split()[0] == "T" for state in states)


def has_locks(address: str) -> bool:
    """Whether somebody is in the middle of a transaction; behind a server nobody is for long."""
    if address.startswith("sqlite"):
        file = address.removeprefix("sqlite:///")
        with closing(sqlite3.connect(file, timeout=0.1)) as connection:
            try:
                connection.execute("BEGIN EXCLUSIVE")
            except sqlite3.OperationalError:
                return True
        return False
    if not address.startswith("postgresql"):
        return False
    time.sleep(0.2)  # what it has sent is done by then
    # Its own connections alone: in this process one of an earlier test may be in a transaction.
    asked = (
        "SELECT count(*) FROM pg_stat_activity WHERE state LIKE 'idle in transaction%'"
        " AND application_name = :name"
    )
    with create_engine(address).connect() as connection:
        return bool(connection.execute(text(asked), {"name": FIRST_SERVER}).scalar_one())


@pytest.mark.parametrize("trial", range(TRIALS))
def test_who_hung_for_longer_than_its_lease_writes_nothing_more(
    address: str, home: Path, weights: MakeWeights, trial: int
) -> None:
    if trial and not address.startswith("sqlite") and not NIGHTLY:
        pytest.skip("once is enough here")
    name = f"hang-{uuid.uuid4().hex[:8]}"
    second_home = home / "second"  # as on another machine
    manager = ModelManager(address, name, home=second_home, experiment_name=name)
    with first_server(address, home / "first", name, weights(1), LASTS) as (process, results):
        old = results.get(timeout=60)
        try:
            stop_anywhere(process.pid, address)
        except ProcessLookupError:
            raise AssertionError(results.get(timeout=1)) from None
        with manager.writer("the second", lasts=LASTS) as second:
            new = second.lease
            assert new is not None
            assert new.epoch > old
            mine = manager.save_model_version(weights(2), metrics={"m": 0.9})
            manager.promote_to_production(mine, actor="policy", lease=new)
            os.kill(process.pid, signal.SIGCONT)
            said, saved = results.get(timeout=60)
            assert "the second" in said
            assert "writes to this model now" in said, said
            manager.promote_to_staging(manager.save_model_version(weights(3)), lease=new)
            second.check()
    manager.reconcile()

    history = manager.history()
    assert manager.verify() == len(history)
    assert [e.number for e in history if e.op is Move.LEASE] == [old, new.epoch]
    assert {e.epoch for e in history if old < e.number < new.epoch} <= {old}
    assert {e.epoch for e in history if e.number > new.epoch} == {new.epoch}
    assert manager.get_latest_version("Production") == mine
    assert manager.drift() == ()
    rows = {str(r.version): r for r in manager.client.search_model_versions(f"name = '{name}'")}
    assert [v for v, row in rows.items() if row.tags["stage"] == Stage.PRODUCTION] == [mine]
    # What it saved after it was replaced bears its epoch, and is where nobody stages it.
    moved = {entry.version for entry in history}
    late = [version for version in saved if version not in moved]
    assert len(late) <= 1
    for version in late:
        assert rows[version].tags["epoch"] == str(old)
        assert rows[version].tags["stage"] == Stage.NONE


def test_a_killed_server_of_the_same_home_is_not_waited_for(
    mlflow_home: Path, manager: ModelManager, weights: MakeWeights
) -> None:
    name, address = manager.registered_model_name, manager.tracking_uri
    with first_server(address, mlflow_home, name, weights(1), 3600.0) as (process, results):
        results.get(timeout=60)
        process.kill()
        process.join()
        with manager.writer("the second", lasts=3600.0) as second:  # else for an hour
            second.check()
    manager.reconcile()
    assert manager.history()[-1].reason.endswith("was killed")
    assert manager.drift() == ()
