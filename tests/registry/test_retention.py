# SPDX-License-Identifier: Apache-2.0
"""Cleaning up: what goes, what never does, and how a clean-up that was cut short is finished."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl_registry import ModelManager, RegistryError, Stage, StageError, UnknownVersion
from fl_registry.stages import Move, State
from fl_registry.store import ModelStore
from fl_registry.versions import ModelVersion, reasons_to_stay

MakeWeights = Callable[[float], Path]
NAME = "fl-global-model"


def save(store: ModelStore, weights: MakeWeights, count: int) -> None:
    for number in range(1, count + 1):
        store.save_model_version(weights(number))


def versions(store: ModelStore) -> list[str]:
    return [row["version"] for row in store.list_all_versions()][::-1]


def files(home: Path) -> dict[str, int]:
    found = (home / "artifacts").rglob("*")
    return {str(path): path.stat().st_size for path in found if path.is_file()}


def test_a_dry_run_tells_all_and_touches_nothing(store: ModelStore, weights: MakeWeights) -> None:
    save(store, weights, 5)
    store.promote_to_production("1")
    report = store.prune(keep=2)
    assert report.dry_run
    assert report.versions == ("2", "3")
    assert report.freed > 2 * store.get_version("2").size
    assert report.kept == {
        "1": "in production",
        "4": "one of the newest 2 that can be restored",
        "5": "one of the newest 2 that can be restored",
    }
    assert versions(store) == ["1", "2", "3", "4", "5"]
    assert len(store.history()) == 1


def test_what_was_ever_in_production_and_what_is_marked_stays(
    store: ModelStore, weights: MakeWeights
) -> None:
    save(store, weights, 9)
    for version in "123":
        store.promote_to_production(version)
    store.promote_to_staging("4")
    store.archive_version("5")
    store.set_version_tags("6", {"keep": "yes"})
    store.set_version_tags("7", {"keep": "no"})
    report = store.prune(keep=1, dry_run=False, actor="ada")
    assert report.versions == ("5", "7", "8")
    assert versions(store) == ["1", "2", "3", "4", "6", "9"]
    assert report.kept == {
        "1": "has been in production",
        "2": "the previous production version",
        "3": "in production",
        "4": "in staging",
        "6": "has the tag keep",
        "9": "one of the newest 1 that can be restored",
    }
    entries = [entry for entry in store.history() if entry.op is Move.RETIRE]
    assert [(e.version, e.actor) for e in entries] == [("5", "ada"), ("7", "ada"), ("8", "ada")]
    assert store.rollback("1") == "1"
    assert store.prune(keep=1, dry_run=False).versions == ()


def test_what_was_removed_is_gone_for_every_question(
    store: ModelStore, weights: MakeWeights
) -> None:
    save(store, weights, 2)
    store.prune(keep=1, dry_run=False)
    asks: list[Callable[[str], object]] = [
        store.get_version,
        store.weights_path,
        store.promote_to_staging,
        store.promote_to_production,
        store.archive_version,
        lambda version: store.set_version_tags(version, {"a": "b"}),
        lambda version: store.compare_versions(version, "2"),
        store.compress_version,
    ]
    for ask in asks:
        with pytest.raises((UnknownVersion, StageError)):
            ask("1")
    assert store.get_latest_version("None") == "2"
    assert store.save_model_version(weights(1)) == "3"  # numbers are never used again


def test_the_newest_that_count_are_those_that_can_be_restored(
    store: ModelStore, weights: MakeWeights
) -> None:
    save(store, weights, 4)
    if isinstance(store, ModelManager) and store.tracking_uri.startswith("http"):
        pytest.skip("the files lie with the server")
    store.weights_path("4").write_bytes(b"rot")
    shutil.rmtree(store.weights_path("3").parent)
    report = store.prune(keep=2, dry_run=False)
    assert report.versions == ("3", "4")
    assert versions(store) == ["1", "2"]


def test_young_versions_stay_and_settings_are_checked(
    store: ModelStore, weights: MakeWeights
) -> None:
    save(store, weights, 3)
    report = store.prune(keep=0, older_than=timedelta(days=30))
    assert report.versions == ()
    assert set(report.kept.values()) == {"younger than 30 days, 0:00:00"}
    assert store.prune(keep=0, older_than=timedelta(0)).versions == ("1", "2", "3")
    with pytest.raises(RegistryError, match=r"keep is -1; expected a number of versions"):
        store.prune(keep=-1)
    with pytest.raises(RegistryError, match=r"older_than is 30; expected a timedelta"):
        store.prune(older_than=30)  # type: ignore[arg-type]


def test_freed_bytes_are_those_that_the_disk_has_back(
    manager: ModelManager, weights: MakeWeights, mlflow_home: Path
) -> None:
    save(manager, weights, 4)
    manager.compress_version("1")
    before = files(mlflow_home)
    told = manager.prune(keep=2).freed
    report = manager.prune(keep=2, dry_run=False)
    after = files(mlflow_home)
    assert report.freed == told == sum(before.values()) - sum(after.values())
    assert report.left == {}
    assert len({Path(path).parent for path in after}) == 2
    folders = [path for path in (mlflow_home / "artifacts").rglob("*") if path.is_dir()]
    assert [path for path in folders if not any(path.iterdir())] == []
    assert len(manager.client.search_logged_models([_experiment(manager)])) == 2


def test_files_that_another_version_refers_to_stay(
    manager: ModelManager, weights: MakeWeights, mlflow_home: Path
) -> None:
    save(manager, weights, 2)
    source = manager.client.get_model_version(NAME, "1")
    manager.client.create_registered_model("other")
    manager.client.create_model_version("other", source.source, await_creation_for=0)
    before = files(mlflow_home)
    assert manager.prune(keep=1).freed == 0
    report = manager.prune(keep=1, dry_run=False)
    assert (report.versions, report.freed) == (("1",), 0)
    assert report.left == {"1": "other 1 still refers to its files"}
    assert files(mlflow_home) == before
    assert versions(manager) == ["2"]


@pytest.mark.parametrize("of_run", [True, False], ids=["of a run", "all"])
def test_files_of_a_version_that_was_registered_or_copied_under_another_name_stay(
    of_run: bool, manager: ModelManager, weights: MakeWeights, mlflow_home: Path
) -> None:
    client = manager.client
    run = client.create_run(client.create_experiment("training")).info.run_id
    for number in range(1, 6):
        manager.save_model_version(weights(number), run)
    rows = [client.get_model_version(NAME, str(number)) for number in range(1, 6)]
    client.create_registered_model("theirs")
    # As MLflow's page does, as `mlflow.register_model` does, and as a copy of a copy has the tags.
    for source, tags in (
        (rows[0].source, {}),
        (f"models:/{NAME}/2", {}),
        ("models:/theirs/1", rows[2].tags),
    ):
        client.create_model_version("theirs", source, tags=tags, await_creation_for=0)
    before = files(mlflow_home)
    report = manager.prune(keep=1, dry_run=False, run_id=run if of_run else "")
    assert report.versions == ("1", "2", "3", "4")
    assert report.left == {
        "1": "theirs 1 still refers to its files",
        "2": "theirs 2 still refers to its files",
        "3": "theirs 3 still refers to its files",
    }
    assert before.keys() - files(mlflow_home).keys() == {
        path for path in before if rows[3].tags["model_id"] in path
    }


def test_no_move_loads_all_versions_that_there_ever_were(
    manager: ModelManager, weights: MakeWeights, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As MLflow does for a registered model, with those that were removed."""
    from mlflow.store.model_registry.sqlalchemy_store import SqlAlchemyStore

    def load(*_: Any) -> None:
        raise AssertionError("all versions were loaded")

    save(manager, weights, 2)
    monkeypatch.setattr(SqlAlchemyStore, "get_registered_model", load)
    with manager.writer("a server") as writer:
        save(manager, lambda number: weights(number + 2), 2)
        for version in "12":
            manager.promote_to_production(version, lease=writer.lease)
        manager.promote_to_staging("3", lease=writer.lease)
    assert manager.rollback() == "1"
    assert manager.drift() == ()
    manager.archive_version("3")
    assert manager.prune(keep=1, dry_run=False).versions == ("3",)


def test_of_one_run_so_many_go_at_most(store: ModelStore, weights: MakeWeights) -> None:
    for number in range(1, 10):
        run = {1: "", 2: "a" * 32}.get(number, "b" * 32)
        store.save_model_version(weights(number), run or None)
    store.promote_to_production("4")
    store.promote_to_staging("6")
    report = store.prune(keep=2, run_id="b" * 32, most=2)
    assert (report.versions, report.later) == (("3", "5"), 1)
    report = store.prune(keep=2, run_id="b" * 32, most=2, dry_run=False)
    assert (report.versions, report.later) == (("3", "5"), 1)
    report = store.prune(keep=2, run_id="b" * 32, most=2, dry_run=False)
    assert (report.versions, report.later) == (("7",), 0)
    assert versions(store) == ["1", "2", "4", "6", "8", "9"]
    with pytest.raises(RegistryError, match="most is 0; expected a number of versions, 1 or more"):
        store.prune(most=0)


def test_nothing_outside_the_logged_models_folder_is_removed(
    manager: ModelManager,
    weights: MakeWeights,
    mlflow_home: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A location in MLflow that somebody changed must not lead to other people's files."""
    save(manager, weights, 2)
    precious = mlflow_home / "precious"
    precious.mkdir()
    (precious / "thesis.txt").write_text("years of work")
    other, elsewhere = ModelManager(home=mlflow_home), SimpleNamespace()
    elsewhere.artifact_location = precious.as_uri()
    monkeypatch.setattr(other.client, "get_logged_model", lambda _: elsewhere)
    report = other.prune(keep=0, dry_run=False)
    assert report.versions == ("1", "2")
    assert report.freed == 0
    assert (precious / "thesis.txt").exists()


CALLS = (
    "log_param",
    "delete_model_version",
    "delete_logged_model",
)


class Crash(BaseException):
    """The process ends here."""


@pytest.mark.parametrize(
    "cut_at", [(call, when) for call in [*CALLS, "rmtree"] for when in ("before", "after")]
)
def test_a_clean_up_cut_short_anywhere_is_finished_by_the_next(
    cut_at: tuple[str, str],
    manager: ModelManager,
    weights: MakeWeights,
    mlflow_home: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    save(manager, weights, 3)
    manager.promote_to_production("2")
    before, (call, when) = files(mlflow_home), cut_at
    holder: Any = shutil if call == "rmtree" else manager.client
    if call == "delete_model_version":
        holder = manager.backend.connection.marker
    plain = getattr(holder, call)

    def cut(*args: Any, **kwargs: Any) -> None:
        if when == "after":
            plain(*args, **kwargs)
        raise Crash

    with monkeypatch.context() as patch:
        patch.setattr(holder, call, cut)
        with pytest.raises(Crash):
            manager.prune(keep=1, dry_run=False)
    other = ModelManager(home=mlflow_home)
    other.reconcile()
    assert other.get_latest_version("Production") == "2"
    other.prune(keep=1, dry_run=False)
    assert versions(other) == ["2", "3"]
    kept = {other.weights_path(version).parent for version in "23"}
    assert {Path(path).parent for path in files(mlflow_home)} == kept
    assert len(before) == 6
    assert len(other.client.search_logged_models([_experiment(other)])) == 2
    assert [e.op for e in other.history()].count(Move.RETIRE) == 1


def test_a_version_that_was_promoted_meanwhile_stays(
    manager: ModelManager, weights: MakeWeights, mlflow_home: Path
) -> None:
    save(manager, weights, 3)
    other = ModelManager(home=mlflow_home)
    move = manager._move

    def first(op: Move, version: str, **how: Any) -> Any:
        if version == "1":
            other.promote_to_production("1")
        return move(op, version, **how)

    manager._move = first  # type: ignore[method-assign,assignment]
    report = manager.prune(keep=1, dry_run=False)
    assert report.versions == ("2",)
    assert "it is kept" in report.kept["1"]
    assert manager.weights_path("1").is_file()
    assert manager.get_latest_version("Production") == "1"


def _experiment(manager: ModelManager) -> str:
    return str(manager.client.get_experiment_by_name("fl-app").experiment_id)


def _records(numbers: Iterator[int]) -> list[ModelVersion]:
    now = datetime.now(UTC)
    return [
        ModelVersion(str(n), Stage.NONE, now, {}, {"keep": "1"} if n % 7 == 0 else {}, "x", "", 1)
        for n in numbers
    ]


NUMBERS = st.sampled_from([str(n) for n in range(1, 31)])


@given(
    served=st.frozensets(NUMBERS),
    staging=st.none() | NUMBERS,
    broken=st.frozensets(NUMBERS),
    keep=st.integers(0, 40),
)
def test_whatever_happened_what_must_stay_stays(
    served: frozenset[str], staging: str | None, broken: frozenset[str], keep: int
) -> None:
    state = State(production=min(served, default=None), staging=staging, served=served)
    records = _records(iter(range(30, 0, -1)))
    stay = reasons_to_stay(
        records, state, keep, None, restorable=lambda record: record.version not in broken
    )
    whole = [record.version for record in records if record.version not in broken]
    assert served | {*filter(None, [staging])} | {*whole[:keep]} <= stay.keys()
    assert {"7", "14", "21", "28"} <= stay.keys()
    others = stay.keys() - served - {staging} - {"7", "14", "21", "28"}
    assert others <= {*whole[:keep]}
