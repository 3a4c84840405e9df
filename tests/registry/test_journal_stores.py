# SPDX-License-Identifier: Apache-2.0
"""What the journal promises in every model store: dates, ways back, changes made by hand."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from fl_registry import (
    ArtifactError,
    Drift,
    InMemoryModelStore,
    InvalidMetric,
    InvalidName,
    ModelManager,
    Stage,
    StageError,
    UnknownVersion,
)
from fl_registry.store import ModelStore
from fl_registry.versions import read_version

MakeWeights = Callable[[float], Path]


@pytest.fixture(autouse=True)
def _all_moves_are_old(store: ModelStore) -> None:
    """Let no alias be taken for one that another process is about to write."""
    store.alias_seconds = 0.0


def fill(store: ModelStore, weights: MakeWeights, count: int) -> None:
    for number in range(1, count + 1):
        store.save_model_version(weights(number), metrics={"accuracy": number / 10})


def move_alias(store: ModelStore, alias: str, version: str | None) -> None:
    """Move an alias as a person does in MLflow."""
    if isinstance(store, InMemoryModelStore):
        if version is None:
            del store.aliases[alias]
        else:
            store.aliases[alias] = version
    else:
        assert isinstance(store, ModelManager)
        if version is None:
            store.client.delete_registered_model_alias(store.registered_model_name, alias)
        else:
            store.client.set_registered_model_alias(store.registered_model_name, alias, version)


def forge_tag(store: ModelStore, version: str, key: str, value: str) -> None:
    if isinstance(store, InMemoryModelStore):
        record = store.backend.stored[version]
        store.backend.stored[version] = read_version(
            version,
            {**record.tags, key: value},
            run_id=record.run_id,
            created=record.created,
            stage=record.stage,
        )
    else:
        assert isinstance(store, ModelManager)
        store.client.set_model_version_tag(store.registered_model_name, version, key, value)


def aliases(store: ModelStore) -> dict[str, str]:
    return dict(store.backend.aliases())


def test_what_was_in_production_on_a_date_and_the_way_back_there(
    store: ModelStore, weights: MakeWeights
) -> None:
    fill(store, weights, 3)
    before = datetime.now(UTC)
    time.sleep(0.002)  # the journal's times are whole milliseconds
    assert store.production_at(before) is None
    store.promote_to_production("1")
    first = datetime.fromisoformat(store.history()[-1].time)
    for version in "23":
        store.promote_to_production(version)
    today = store.history()[-1].time[:10]
    assert store.production_at(today) == "3"
    assert store.production_at("2000-01-01") is None
    assert store.production_at(before) is None
    if store.history()[1].time > store.history()[0].time:
        assert store.production_at(first) == "1"
        assert store.rollback(to=first) == "1"
        assert store.get_latest_version("Production") == "1"
    with pytest.raises(StageError, match="Nothing was in production at 2000-01-01"):
        store.rollback("2000-01-01")
    with pytest.raises(InvalidName, match="not a date"):
        store.rollback("2000-99-01")
    with pytest.raises(UnknownVersion):
        store.rollback("20261123")


def test_an_archived_version_goes_back_to_staging_only_when_it_is_restored(
    store: ModelStore, weights: MakeWeights
) -> None:
    fill(store, weights, 3)
    store.promote_to_staging("1")
    store.promote_to_staging("2")
    with pytest.raises(StageError, match=r"restore_version\('1'\)"):
        store.promote_to_staging("1")
    store.restore_version("1", actor="ada", reason="tested on the wrong pictures")
    assert [row["stage"] for row in store.list_all_versions()] == ["None", "Archived", "Staging"]
    last = store.history()[-1]
    assert (last.op, last.version, last.displaced, last.actor) == ("restore", "1", "2", "ada")
    store.restore_version("1")
    store.promote_to_production("1")
    assert aliases(store) == {"production": "1"}


def test_the_guides_way_back_is_a_rollback(store: ModelStore, weights: MakeWeights) -> None:
    fill(store, weights, 2)
    for version in "12":
        store.promote_to_production(version)
    previous_version = store.history()[-1].displaced
    store.promote_to_production(previous_version)
    assert [entry.op for entry in store.history()] == ["promote", "promote", "rollback"]
    assert store.get_version("1").stage is Stage.PRODUCTION
    assert aliases(store) == {"production": "1", "previous-production": "2"}
    assert store.rollback() == "2"


@pytest.mark.parametrize("metrics", ['{"accuracy": NaN}', '{"loss": Infinity}', "not json at all"])
def test_a_version_whose_metrics_are_not_finite_any_more_is_not_moved_on(
    store: ModelStore, weights: MakeWeights, metrics: str
) -> None:
    fill(store, weights, 3)
    store.promote_to_production("1")
    store.archive_version("3")
    for version in "23":
        forge_tag(store, version, "metrics", metrics)
    for move, version in (
        (store.promote_to_staging, "2"),
        (store.promote_to_production, "2"),
        (store.restore_version, "3"),
    ):
        with pytest.raises(InvalidMetric, match=f"Version {version} cannot be moved on"):
            move(version)
    assert len(store.history()) == 2


def test_production_comes_back_though_its_metrics_were_forged(
    store: ModelStore, weights: MakeWeights
) -> None:
    fill(store, weights, 2)
    for version in "12":
        store.promote_to_production(version)
    forge_tag(store, "1", "metrics", '{"accuracy": NaN}')
    assert store.rollback() == "1"


def test_the_journal_says_how_many_entries_it_has(store: ModelStore, weights: MakeWeights) -> None:
    assert store.verify() == 0
    fill(store, weights, 3)
    for version in "123":
        store.promote_to_production(version)
    assert store.verify() == 3
    assert [entry.version for entry in store.history(after=1)] == ["2", "3"]
    assert store.history(after=3) == ()


def test_an_alias_moved_by_hand_is_reported_and_put_back_with_one_warning(
    store: ModelStore, weights: MakeWeights, caplog: pytest.LogCaptureFixture
) -> None:
    fill(store, weights, 4)
    for version in "12":
        store.promote_to_production(version)
    store.promote_to_staging("3")
    assert store.drift() == ()
    move_alias(store, "production", "1")
    move_alias(store, "staging", None)
    assert store.drift() == (Drift("production", "2", "1"), Drift("staging", "3", None))
    with caplog.at_level(logging.WARNING, logger="fl_registry"):
        store.reconcile()
        store.promote_to_staging("4")
    (warning,) = caplog.messages
    assert "production names 1, the journal says 2; staging names none" in warning
    assert aliases(store) == {"previous-production": "1", "production": "2", "staging": "4"}
    assert store.drift() == ()


def test_a_move_puts_back_what_was_moved_by_hand(
    store: ModelStore, weights: MakeWeights, caplog: pytest.LogCaptureFixture
) -> None:
    fill(store, weights, 3)
    store.promote_to_production("1")
    move_alias(store, "production", "2")
    store.promote_to_staging("3")
    assert aliases(store) == {"production": "1", "staging": "3"}
    assert sum("moved outside" in message for message in caplog.messages) == 1


def test_right_after_a_move_a_wrong_alias_is_put_right_without_a_word(
    store: ModelStore,
    weights: MakeWeights,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Another process may just be writing the aliases of its move: that is no drift."""
    store.alias_seconds = 60.0
    fill(store, weights, 3)
    for version in "12":
        store.promote_to_production(version)
    move_alias(store, "production", "1")
    store.promote_to_staging("3")
    assert aliases(store)["production"] == "2"
    assert not any("moved outside" in message for message in caplog.messages)
    store.alias_seconds = 1.0
    move_alias(store, "production", "1")
    assert store.drift() == (Drift("production", "2", "1"),)


def test_what_was_done_by_hand_can_be_adopted(store: ModelStore, weights: MakeWeights) -> None:
    fill(store, weights, 4)
    for version in "12":
        store.promote_to_production(version)
    store.promote_to_staging("3")
    assert store.adopt() == ()
    move_alias(store, "production", "1")
    move_alias(store, "staging", "4")
    entries = store.adopt(actor="ada", reason="night shift")
    assert [(e.op, e.version, e.displaced) for e in entries] == [
        ("adopt", "1", "2"),
        ("stage", "4", "3"),
    ]
    assert entries[0].reason == "adopted from MLflow: night shift"
    assert store.drift() == ()
    assert aliases(store) == {"production": "1", "previous-production": "2", "staging": "4"}
    stages = [row["stage"] for row in store.list_all_versions()]
    assert stages == ["Staging", "Archived", "Archived", "Production"]
    move_alias(store, "staging", "3")
    assert [entry.op for entry in store.adopt()] == ["restore"]
    move_alias(store, "staging", None)
    assert [entry.op for entry in store.adopt()] == ["archive"]
    move_alias(store, "production", None)
    assert store.adopt() == ()
    assert aliases(store)["production"] == "1"


def test_a_version_without_its_file_is_not_adopted(store: ModelStore, weights: MakeWeights) -> None:
    fill(store, weights, 2)
    store.promote_to_production("1")
    forge_tag(store, "2", "sha256", "0" * 64)  # as if the file were another one
    move_alias(store, "production", "2")
    with pytest.raises(ArtifactError, match="version 2"):
        store.adopt()
    store.reconcile()
    assert aliases(store) == {"production": "1"}
    assert store.verify() == 1


def test_aliases_from_before_the_journal_are_left_alone_until_adopted(
    store: ModelStore, weights: MakeWeights
) -> None:
    fill(store, weights, 3)
    move_alias(store, "production", "1")
    store.promote_to_staging("2")
    store.reconcile()
    assert aliases(store) == {"production": "1", "staging": "2"}
    assert store.drift() == (Drift("production", None, "1"),)
    (entry,) = store.adopt()
    assert (entry.op, entry.version, entry.displaced) == ("adopt", "1", "")
    assert store.get_latest_version("Production") == "1"


def test_approval_follows_from_the_journal_and_is_displayed(
    store: ModelStore, weights: MakeWeights
) -> None:
    for number in (1, 2, 3):
        store.save_model_version(weights(number), tags={"approval": "pending"})
    store.promote_to_staging("1")
    store.promote_to_staging("2")
    store.reject_version("2")
    store.promote_to_staging("3")
    assert store.get_version("3").tags["approval"] == "pending"
    store.approve_version("3")
    expected = ["superseded", "rejected", "approved"]
    assert [store.get_version(version).tags["approval"] for version in "123"] == expected
    assert [entry.approval for entry in store.history()] == [
        *("pending", "pending", "rejected", "pending", "")
    ]
    stored = [store.backend.find(version) for version in "123"]
    assert [record.tags["approval"] for record in stored if record is not None] == expected
