# SPDX-License-Identifier: Apache-2.0
"""Bad input: one clear sentence, nothing half done, and no password anywhere."""

from __future__ import annotations

import logging
import os
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from support.leaks import everything_of
from torch import nn

from fl_registry import (
    ArtifactError,
    FederatedLearningTracker,
    InMemoryModelStore,
    InvalidMetric,
    InvalidName,
    ModelManager,
    RegistryError,
    StoreUnavailable,
    UnknownVersion,
)
from fl_registry.errors import foreign_errors
from fl_registry.mlflow.address import check_address
from fl_registry.store import ModelStore

MakeWeights = Callable[[float], Path]
SECRET = "s3cret"  # noqa: S105 - what must never be seen


@pytest.fixture(params=["memory", "mlflow"])
def store(request: pytest.FixtureRequest) -> ModelStore:
    """Return the stores whose files lie on this machine, where a test can damage them."""
    if request.param == "memory":
        return InMemoryModelStore()
    found: ModelManager = request.getfixturevalue("manager")
    return found


class Bomb:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.target),)


def cases(folder: Path, weights: MakeWeights) -> Iterator[tuple[dict[str, Any], type, str]]:
    """Yield arguments of save_model_version, the error that they must lead to, and its words."""
    good = weights(1)
    (folder / "empty.safetensors").touch()
    torch.save({"w": torch.ones(1), "x": Bomb(folder / "ran")}, folder / "bomb.pt")
    yield {"model_path": folder / "no.pt"}, ArtifactError, "There is no model file at"
    yield {"model_path": folder / "empty.safetensors"}, ArtifactError, "is empty"
    yield {"model_path": folder / "bomb.pt"}, ArtifactError, "cannot be read safely"
    yield {"model_path": good, "metrics": {"m": float("nan")}}, InvalidMetric, "m is nan"
    yield {"model_path": good, "metrics": {"a\nb": 1.0}}, InvalidMetric, "control character"
    yield {"model_path": good, "metrics": {"x" * 251: 1.0}}, InvalidMetric, "at most 250"
    for name in ("a\nb", "a(b)", "../up", "a//b", "/root", ".", "tag\n", "x:\ty"):
        yield {"model_path": good, "tags": {name: "1"}}, InvalidName, "cannot be a tag's name"
    for name in ("half", "per_example", "stage"):
        yield {"model_path": good, "tags": {name: "1"}}, InvalidName, "belongs to the registry"
    yield {"model_path": good, "tags": {"a": "nul\0"}}, InvalidName, "NUL"
    yield {"model_path": good, "per_example": {"a": None}}, InvalidMetric, "example 'a' is None"


def test_saving_bad_input_leaves_nothing_behind(
    store: ModelStore, weights: MakeWeights, tmp_path: Path
) -> None:
    for arguments, kind, says in cases(tmp_path, weights):
        with pytest.raises(kind) as caught:
            store.save_model_version(**arguments)
        said = str(caught.value)
        assert says in said, arguments
        assert "\n" not in said
    assert not (tmp_path / "ran").exists()
    assert store.list_all_versions() == []
    if isinstance(store, ModelManager):
        assert store.client.search_registered_models() == []
        home = store.backend.connection.home
        assert list((home / "tmp").iterdir()) == []
        assert not list(home.glob("artifacts/**/*.safetensors"))


def test_tag_names_that_mlflow_takes_are_taken(store: ModelStore, weights: MakeWeights) -> None:
    tags = {"round": "1", "a/b": "2", "mlflow.note": "3", "größe": "4", "a b:c-d_e": "5\n6"}
    store.save_model_version(weights(1), tags=tags)
    assert tags.items() <= store.get_version("1").tags.items()


@pytest.mark.parametrize("name", ["a\nb", "a\tb", "..", ".", "../x", "line\u2028break", "a\x7f"])
def test_a_models_name_is_one_line(name: str) -> None:
    with pytest.raises(InvalidName, match="registered model's name") as caught:
        ModelManager(registered_model_name=name)
    assert "\n" not in str(caught.value)


def test_an_actor_with_a_line_break_does_not_break_the_journal(
    store: ModelStore, weights: MakeWeights
) -> None:
    store.save_model_version(weights(1))
    try:
        store.promote_to_staging("1", actor="ada\nop.000002", reason="one\r\ntwo")
    except InvalidName:
        assert store.history() == ()
    else:
        (entry,) = store.history()
        assert "\n" not in entry.actor + entry.reason
    store.promote_to_production("1")


def test_a_file_changed_on_disk_is_refused_everywhere(store: ModelStore, tmp_path: Path) -> None:
    save_file(nn.Linear(2, 2).state_dict(), tmp_path / "w.safetensors")
    store.promote_to_production(store.save_model_version(tmp_path / "w.safetensors"))
    path = store.weights_path("1")
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    asks: list[Callable[[], object]] = [
        lambda: store.weights_path("1"),
        lambda: store.load_production_model(lambda: nn.Linear(2, 2)),
        lambda: store.load_production_model(lambda: nn.Linear(2, 2), copy=True),
        lambda: store.compress_version("1"),
    ]
    for ask in asks:
        with pytest.raises(ArtifactError, match="version 1 have changed since they were saved"):
            ask()


def test_versions_that_do_not_exist_are_told_the_same_way(store: ModelStore) -> None:
    for version in ("7", "one", 0, True):
        for ask in (store.compress_version, store.get_version, store.weights_path):
            with pytest.raises(UnknownVersion):
                ask(version)
        with pytest.raises(UnknownVersion):
            store.compare_versions(version, version)


def test_files_that_were_deleted_in_mlflow_are_told(
    manager: ModelManager, weights: MakeWeights
) -> None:
    manager.save_model_version(weights(1))
    model_id = manager.get_version("1").tags["model_id"]
    manager.client.delete_logged_model(model_id)
    with pytest.raises(ArtifactError, match=f"logged model {model_id}.*was deleted in MLflow"):
        ModelManager(home=manager.backend.connection.home).weights_path("1")


ADDRESSES = [
    f"http://ada:{SECRET}@127.0.0.1:9",
    f"http://ada:{SECRET}@[bad/",
    f"http://127.0.0.1:9/?token={SECRET}",
    f"postgresql://ada:{SECRET}@127.0.0.1:9/db",
    f"postgresql://ada:{SECRET}/x@127.0.0.1:9/db",
    f"postgresql://ada:x@{SECRET}@127.0.0.1:9/db",
    f"mysql+pymysql://ada:{SECRET}@127.0.0.1:9/db",
    f"mssql+pyodbc:///?odbc_connect=DRIVER%3DX%3BPWD%3D{SECRET}",
    f"ftp://ada:{SECRET}@host/x",
]


@pytest.mark.parametrize("uri", ADDRESSES)
@pytest.mark.parametrize("ask", ["ping", "list", "track"])
def test_a_password_is_never_shown_again(
    uri: str,
    ask: str,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    monkeypatch.setenv("MLFLOW_SQLALCHEMYSTORE_MAX_RETRIES", "1")
    monkeypatch.setattr("mlflow.store.db.utils.MAX_RETRY_COUNT", 1, raising=False)
    asks: dict[str, Callable[[], object]] = {
        "ping": lambda: ModelManager(uri).ping(),
        "list": lambda: ModelManager(uri).list_all_versions(),
        "track": lambda: FederatedLearningTracker(uri).start_run("x"),
    }
    with caplog.at_level(logging.DEBUG), pytest.raises(RegistryError) as caught:
        asks[ask]()
    shown = capfd.readouterr()
    assert SECRET not in everything_of(caught.value)
    assert SECRET not in caplog.text
    assert SECRET not in shown.out + shown.err
    assert "\n" not in str(caught.value)


def test_a_foreign_error_with_a_password_is_not_even_hidden_in_the_chain() -> None:
    uri = f"http://ada:{SECRET}@host"

    def fail() -> None:
        try:
            raise ValueError(SECRET)
        except ValueError as error:
            raise ConnectionError(f"cannot reach {uri}") from error

    with pytest.raises(StoreUnavailable) as caught, foreign_errors("read", uri=uri):
        fail()
    assert SECRET not in everything_of(caught.value)
    with (
        pytest.raises(StoreUnavailable) as caught,
        foreign_errors("read", uri="sqlite:///x.db"),
    ):
        raise ConnectionError("no password in here")
    assert isinstance(caught.value.__cause__, ConnectionError)


def test_a_missing_driver_is_told() -> None:
    with (
        pytest.raises(StoreUnavailable, match="the Python package psycopg9 is not installed"),
        foreign_errors("be opened", uri=f"postgresql+psycopg9://ada:{SECRET}@host/db"),
    ):
        raise ModuleNotFoundError("No module named 'psycopg9'", name="psycopg9")


def test_looking_at_a_database_does_not_drop_the_locks_on_it(tmp_path: Path) -> None:
    """Closing any handle of a file drops all locks that a process holds on it."""
    file = tmp_path / "mlflow.db"
    first = sqlite3.connect(file, isolation_level=None)
    first.execute("CREATE TABLE t (x)")
    first.execute("BEGIN EXCLUSIVE")
    check_address(f"sqlite:///{file}")
    import subprocess
    import sys

    code = (
        "import sqlite3, sys\n"
        "try:\n"
        "    sqlite3.connect(sys.argv[1], timeout=0).execute('INSERT INTO t VALUES (1)')\n"
        "except sqlite3.OperationalError as error:\n"
        "    print(error)"
    )
    found = subprocess.run(
        [sys.executable, "-c", code, str(file)], capture_output=True, text=True, check=True
    )
    first.close()
    assert found.stdout.strip() == "database is locked"
