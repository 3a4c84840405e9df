# SPDX-License-Identifier: Apache-2.0
"""Homes that were copied or moved: each uses its own files, and no path outside of it."""

from __future__ import annotations

import os
import shutil
import sqlite3
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from fl_registry import ArtifactError, FederatedLearningTracker, ModelManager, RegistryError
from fl_registry.files.digests import file_digest
from fl_registry.mlflow.connection import Connection
from fl_registry.mlflow.home import look, move_home
from fl_registry.mlflow.locations import FOLDER_TAG, Folder, local_folder

MakeWeights = Callable[[float], Path]

_forbidden: list[Path] = []
_hooked: list[bool] = []


_EVENTS = ("open", "os.", "shutil.", "sqlite3.", "glob.")


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if not _forbidden or not event.startswith(_EVENTS):
        return
    for given in arguments:
        if isinstance(given, str | bytes | os.PathLike) and given:
            text = os.fsdecode(given).removeprefix("file:")
            if any(Path(text.split("?")[0]).is_relative_to(folder) for folder in _forbidden):
                raise AssertionError(f"{event} of {text}")


@contextmanager
def forbidden(folder: Path) -> Iterator[None]:
    """Raise AssertionError at each operation on a path below a folder."""
    if not _hooked:
        sys.addaudithook(_audit)  # there is no way to remove it
        _hooked.append(True)
    _forbidden.append(folder)
    try:
        yield
    finally:
        _forbidden.clear()


def digests(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): file_digest(p) for p in folder.rglob("*") if p.is_file()}


def use(home: Path, weights: Path) -> None:
    """Do everything in a home that has versions 1 to 3, of which 2 is in Production."""
    manager = ModelManager(home=home)
    assert manager.load_arrays("Production")["b"][0, 0] == 2
    manager.check_files()
    tracker = FederatedLearningTracker(home=home)
    run = tracker.start_run("in the copy").info.run_id
    tracker.log_artifact(weights)
    tracker.end_run()
    version = manager.save_model_version(weights, run, metrics={"accuracy": 0.9})
    manager.promote_to_production(version)
    manager.compress_version(version)
    manager.log_production(
        version, {"accuracy": 0.9}, step=1, time=datetime.now(UTC), texts={"a/b.txt": "text"}
    )
    assert manager.rollback() == "2"
    report = manager.prune(keep=0, dry_run=False)
    assert report.versions == ("1", "3")
    assert report.freed > 0
    assert report.left == {}
    assert manager.load_arrays("2")["b"][0, 0] == 2


@pytest.fixture
def original(mlflow_home: Path, weights: MakeWeights) -> Path:
    manager = ModelManager(home=mlflow_home)
    tracker = FederatedLearningTracker(home=mlflow_home)
    run = tracker.start_run("first").info.run_id
    for number in (1, 2, 3):
        manager.save_model_version(weights(number), run, metrics={"accuracy": number / 10})
    manager.promote_to_production("2")
    tracker.log_artifact(weights(1))
    tracker.end_run()
    return mlflow_home


def test_what_is_done_in_a_copy_leaves_the_original_alone(
    original: Path, weights: MakeWeights, tmp_path: Path
) -> None:
    copy = tmp_path / "a copy, 100%"
    shutil.copytree(original, copy)
    before, new = digests(original), weights(7)
    with forbidden(original):
        use(copy, new)
    assert digests(original) == before
    assert look(Connection(None, copy)).missing == ()


def test_a_copy_without_the_files_says_which_are_missing(
    original: Path, weights: MakeWeights, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(original, copy, ignore=shutil.ignore_patterns("artifacts"))
    before = digests(original)
    with forbidden(original):
        manager = ModelManager(home=copy)
        with pytest.raises(ArtifactError, match=r"version 2 .*missing"):
            manager.weights_path("2")
        assert len(look(Connection(None, copy)).missing) == 3
        manager.prune(keep=0, dry_run=False)
        manager.save_model_version(weights(8))
        assert manager.load_arrays("4")["b"][0, 0] == 8
    assert digests(original) == before


@pytest.mark.parametrize("place", ["inside", "above"])
def test_a_copy_within_the_original_or_above_it(
    place: str, original: Path, weights: MakeWeights, tmp_path: Path
) -> None:
    """Where one folder is the beginning of the other's path."""
    if place == "above":
        deep = tmp_path / "up" / "fl-app-home" / "home"
        original = move_home(None, original, deep).home
        copy = deep.parent
        for each in deep.iterdir():
            (shutil.copytree if each.is_dir() else shutil.copyfile)(each, copy / each.name)
        guarded = original
    else:
        copy = original / "backup"
        shutil.copytree(original, copy, ignore=shutil.ignore_patterns("backup"))
        guarded = original / "artifacts"
    before = digests(guarded)
    new = weights(7)
    with forbidden(guarded):
        use(copy, new)
    assert digests(guarded) == before


def test_all_works_after_a_move_by_hand(
    original: Path, weights: MakeWeights, tmp_path: Path
) -> None:
    there = tmp_path / "elsewhere" / "home"
    there.parent.mkdir()
    original.rename(there)
    state = look(Connection(None, there))
    assert (state.noted, state.now, state.versions, state.missing) == (original, there, 3, ())
    use(there, weights(7))
    assert not original.exists()
    state = look(Connection(None, there))
    assert (state.noted, state.missing, state.outside) == (there, (), ())


def test_after_a_move_mlflow_itself_finds_all_files(
    original: Path, weights: MakeWeights, tmp_path: Path
) -> None:
    moved = move_home(None, original, tmp_path / "ö new?").home
    assert not original.exists()
    manager = ModelManager(home=moved)
    client = manager.client
    row = client.get_model_version("fl-global-model", "2")
    assert (local_folder(row.source) or Path()).is_relative_to(moved)
    assert client.get_model_version_download_uri("fl-global-model", "2") == row.source
    assert (Path(client.download_artifacts(row.run_id, "global_1.safetensors"))).is_file()
    model = client.get_logged_model(row.tags["model_id"])
    assert model.artifact_location == row.source
    use(moved, weights(7))


def test_a_home_whose_database_a_server_wrote_is_moved_with_it(
    original: Path, weights: MakeWeights, tmp_path: Path
) -> None:
    """A server notes no folder in its experiments."""
    with closing(sqlite3.connect(original / "mlflow.db")) as database, database:
        database.execute("DELETE FROM experiment_tags WHERE key = ?", (FOLDER_TAG,))
    moved = move_home(None, original, tmp_path / "new").home
    client = ModelManager(home=moved).client
    row = client.get_model_version("fl-global-model", "2")
    assert (local_folder(row.source) or Path()).is_relative_to(moved)
    assert Path(client.download_artifacts(row.run_id, "global_1.safetensors")).is_file()
    use(moved, weights(7))


@pytest.mark.slow
def test_homes_beside_one_postgresql(
    postgres_mlflow: str, home: Path, weights: MakeWeights, tmp_path: Path
) -> None:
    name, uri, other = uuid.uuid4().hex, postgres_mlflow, tmp_path / "other"
    for folder in (home, other):
        there = ModelManager(uri, f"{name}-{folder.name}", home=folder, experiment_name=folder.name)
        for number in (1, 2):
            there.save_model_version(weights(number))
        there.promote_to_production("2")
        assert look(Connection(uri, folder)).noted == folder
        assert there.backend.connection.settle() == 0
    before, mine = digests(other), f"{name}-{home.name}"
    moved = move_home(uri, home, tmp_path / "moved").home
    state = look(Connection(uri, moved))
    assert (state.noted, state.versions, state.missing) == (moved, 2, ())
    manager = ModelManager(uri, mine, home=moved, experiment_name=home.name)
    source = manager.client.get_model_version(mine, "1").source
    assert (local_folder(source) or Path()).is_relative_to(moved)
    manager.save_model_version(weights(3))
    assert manager.load_arrays("Production")["b"][0, 0] == 2
    assert manager.prune(keep=1, dry_run=False).versions == ("1",)
    # By hand: which of two homes it was is not known, and nothing of the other is touched.
    moved.rename(tmp_path / "by hand")
    late = ModelManager(uri, mine, home=tmp_path / "by hand", experiment_name=home.name)
    with pytest.raises(ArtifactError, match=r"outside of its folder.*home check"):
        late.load_arrays("Production")
    with pytest.raises(RegistryError, match=r"noted in \d+ other folders; move it back"):
        late.backend.connection.settle()
    (tmp_path / "by hand").rename(moved)
    assert manager.load_arrays("Production")["b"][0, 0] == 2
    assert digests(other) == before
    elsewhere = ModelManager(uri, f"{name}-other", home=other, experiment_name="other")
    assert elsewhere.load_arrays("Production")["b"][0, 0] == 2


def test_a_move_that_was_cut_short_is_finished(original: Path, tmp_path: Path) -> None:
    there = tmp_path / "there"
    original.rename(there)  # the process ends before it can note that
    connection = Connection(None, there)
    assert connection.settle() > 0
    assert connection.settle() == 0
    source = ModelManager(home=there).client.get_model_version("fl-global-model", "1").source
    assert (local_folder(source) or Path()).is_relative_to(there)


def test_where_a_home_cannot_go(original: Path, tmp_path: Path) -> None:
    full = tmp_path / "full"
    (full / "x").mkdir(parents=True)
    for target, reason in (
        (original / "inside", "in the home itself"),
        (full, "not empty"),
        (Path("/proc/home"), "could not be moved"),
    ):
        with pytest.raises(RegistryError, match=reason):
            move_home(None, original, target)
    assert look(Connection(None, original)).versions == 3
    with (
        ModelManager(home=original).writer("a session"),
        pytest.raises(RegistryError, match="session runs"),
    ):
        move_home(None, original, tmp_path / "new")


def test_a_link_out_of_the_home_is_not_followed(
    original: Path, weights: MakeWeights, tmp_path: Path
) -> None:
    """As `cp -a` copies a home whose artifacts are a link to a larger disk."""
    disk, copy = tmp_path / "disk", tmp_path / "copy"
    shutil.copytree(original, copy, ignore=shutil.ignore_patterns("artifacts"))
    (original / "artifacts").rename(disk)
    (copy / "artifacts").symlink_to(disk)
    before = digests(disk)
    manager = ModelManager(home=copy)
    with pytest.raises(ArtifactError, match="outside of its folder"):
        manager.weights_path("2")
    with pytest.raises(ArtifactError, match="outside of its folder"):
        manager.check_files()
    assert manager.prune(keep=0, dry_run=False).freed == 0
    state = look(Connection(None, copy))
    assert state.links == (copy / "artifacts",)
    assert digests(disk) == before


def test_an_experiment_elsewhere_is_refused_before_it_is_used(
    mlflow_home: Path, weights: MakeWeights, tmp_path: Path
) -> None:
    manager = ModelManager(home=mlflow_home, experiment_name="theirs")
    manager.client.create_experiment("theirs", artifact_location=(tmp_path / "big").as_uri())
    for use_it in (manager.check_files, lambda: manager.save_model_version(weights(1))):
        with pytest.raises(ArtifactError, match="outside of its folder"):
            use_it()
    tracker = FederatedLearningTracker(home=mlflow_home, experiment_name="theirs")
    with pytest.raises(ArtifactError, match="outside of its folder"):
        tracker.start_run("r")
    assert not (tmp_path / "big").exists()


@pytest.mark.parametrize(
    ("now", "noted", "location", "expected"),
    [
        ("/b", "/a", "/a/artifacts/1", "/b/artifacts/1"),
        ("/b", "/a", "file:///a/artifacts/1", "/b/artifacts/1"),
        ("/b", "/a", "file:///b/artifacts/1", "/b/artifacts/1"),
        ("/a/b", "/a", "/a/artifacts/1", "/a/b/artifacts/1"),
        ("/a/b", "/a", "/a/b/artifacts/1", "/a/b/artifacts/1"),
        ("/a", "/a/b", "/a/b/artifacts/1", "/a/artifacts/1"),
        ("/a b", "/a", "/a/ä?", "/a b/ä?"),
        ("/b", "/a", "/ab/artifacts/1", None),
        ("/b", "/a", "/etc", None),
        ("/b", "/b", "/b/../etc", None),
    ],
)
def test_where_files_are_now(now: str, noted: str, location: str, expected: str | None) -> None:
    folder = Folder(Path(now), Path(noted))
    if expected is None:
        with pytest.raises(ArtifactError):
            folder.here(location)
    else:
        quoted = location if "?" not in location else Path(location).as_uri()
        assert local_folder(folder.here(quoted)) == Path(expected)
    assert folder.here("s3://bucket/a") == "s3://bucket/a"
