# SPDX-License-Identifier: Apache-2.0
"""The form of the monitor's database: from the first released one on, none of a newer fl-app."""

from __future__ import annotations

import sqlite3
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import sqlalchemy as sa

from fl_app.retraining import MonitorStore, Outcome, RetrainingManager
from fl_app.retraining.memory.database import METADATA
from fl_app.retraining.memory.errors import MonitorStoreError
from fl_app.retraining.memory.schema import HEAD, VERSION_TABLE, upgrade
from fl_registry.home import sqlite_address

FIRST = """
CREATE TABLE requests (number INTEGER NOT NULL, model VARCHAR(255) NOT NULL,
 id VARCHAR(32) NOT NULL, kind VARCHAR(20) NOT NULL, reason TEXT NOT NULL,
 created VARCHAR(40) NOT NULL, outcome VARCHAR(20) NOT NULL, why TEXT NOT NULL,
 started VARCHAR(40), ended VARCHAR(40), PRIMARY KEY (number), UNIQUE (id));
CREATE UNIQUE INDEX one_pending_one_running ON requests (model, outcome)
 WHERE outcome IN ('pending', 'running');
CREATE TABLE idempotency_keys (model VARCHAR(255) NOT NULL, "key" VARCHAR(255) NOT NULL,
 id VARCHAR(32) NOT NULL, digest VARCHAR(64) NOT NULL, owner VARCHAR(32) NOT NULL,
 created FLOAT NOT NULL, status INTEGER, body TEXT NOT NULL, PRIMARY KEY (model, "key"));
CREATE INDEX ix_idempotency_keys_created ON idempotency_keys (created);
CREATE TABLE notes (model VARCHAR(255) NOT NULL, name VARCHAR(80) NOT NULL,
 revision INTEGER NOT NULL, value TEXT NOT NULL, PRIMARY KEY (model, name));
INSERT INTO requests VALUES (1, 'fl-global-model', '00000000000000000000000000000001', 'manual',
 'new pictures', '2026-11-23T10:00:00+00:00', 'pending', '', NULL, NULL);
INSERT INTO notes VALUES ('fl-global-model', 'n', 3, '"text"');
"""
"""What the first release has made."""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "100% of it" / "monitor.db"


def form(file: Path) -> list[tuple[str]]:
    with sqlite3.connect(file) as database:
        return database.execute(f"SELECT version_num FROM {VERSION_TABLE}").fetchall()  # noqa: S608


def test_a_file_of_the_first_release_is_taken_over(file: Path) -> None:
    file.parent.mkdir()
    with sqlite3.connect(file) as database:
        database.executescript(FIRST)
    store = MonitorStore(sqlite_address(file))
    (row,) = store.requests.history()
    assert (row["reason"], row["outcome"]) == ("new pictures", "pending")
    assert store.note("n", str).read() == (3, "text")
    assert RetrainingManager(store=store).manual_trigger("more") == row["id"]
    assert form(file) == [(HEAD,)]
    assert store.requests.find(Outcome.PENDING) is not None


def test_migrations_lead_to_the_tables_that_are_used(file: Path) -> None:
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    file.parent.mkdir()
    engine = sa.create_engine(sqlite_address(file))
    upgrade(engine)
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE})
        assert compare_metadata(context, METADATA) == []
    upgrade(engine)
    assert form(file) == [(HEAD,)]


def test_a_newer_file_is_refused_and_left_alone(file: Path) -> None:
    file.parent.mkdir()
    MonitorStore(sqlite_address(file)).close()
    with sqlite3.connect(file) as database:
        database.execute(f"UPDATE {VERSION_TABLE} SET version_num = '0999'")  # noqa: S608
    before = file.read_bytes()
    with pytest.raises(MonitorStoreError, match=r"the form 0999 of a newer fl-app.*update fl-app"):
        MonitorStore(sqlite_address(file))
    assert file.read_bytes() == before


def test_several_open_a_new_file_at_once(file: Path) -> None:
    file.parent.mkdir()
    with ThreadPoolExecutor(8) as pool:
        stores = list(pool.map(lambda _: MonitorStore(sqlite_address(file)), range(8)))
    assert [store.requests.history() for store in stores] == [[]] * 8
    assert form(file) == [(HEAD,)]


@pytest.mark.slow
def test_the_same_on_postgresql(postgres_address: str) -> None:
    with ThreadPoolExecutor(4) as pool:
        stores = list(pool.map(lambda _: MonitorStore(postgres_address), range(4)))
    assert [store.requests.history() for store in stores] == [[]] * 4
