# SPDX-License-Identifier: Apache-2.0
"""What `ModelManager` leaves in MLflow, read back with MLflow's own client; and its addresses."""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from fl_registry import InvalidName, JournalError, ModelManager, RegistryError, StoreUnavailable
from fl_registry.files.weights import Manifest
from fl_registry.mlflow.address import check_address
from fl_registry.redaction import redact

MakeWeights = Callable[[float], Path]
NAME = "fl-global-model"


def test_versions_tags_aliases_and_stages_are_plain_to_see_in_mlflow(
    manager: ModelManager, weights: MakeWeights, mlflow_home: Path
) -> None:
    for number in (1, 2, 3):
        manager.save_model_version(weights(number), metrics={"m": 0.5}, tags={"round": "1"})
    for version in "12":
        manager.promote_to_production(version)
    manager.promote_to_staging("3")
    aliases = manager.client.get_registered_model(NAME).aliases
    assert {alias: str(version) for alias, version in aliases.items()} == {
        "previous-production": "1",
        "production": "2",
        "staging": "3",
    }
    rows = {str(r.version): r for r in manager.client.search_model_versions(f"name = '{NAME}'")}
    expected = {"1": "Archived", "2": "Production", "3": "Staging"}
    assert {v: r.tags["stage"] for v, r in rows.items()} == expected
    assert {v: r.current_stage for v, r in rows.items()} == expected
    tags = rows["1"].tags
    assert tags["round"] == "1"
    assert json.loads(tags["metrics"]) == {"m": 0.5}
    assert {"sha256", "created", "save_key", "size", "model_id"} <= set(tags)
    assert rows["1"].source.startswith((mlflow_home / "artifacts").as_uri())
    manager.promote_to_production("3")
    assert "staging" not in manager.client.get_registered_model(NAME).aliases


def test_the_description_names_the_arrays_in_the_models_own_order(
    manager: ModelManager, tmp_path: Path
) -> None:
    import numpy as np
    from safetensors.numpy import save_file

    metadata = Manifest(["z", "a"], {"family": "yolov8"}).as_metadata()
    arrays = {"a": np.array(1, np.int64), "z": np.zeros((2, 3), np.float16)}
    save_file(arrays, tmp_path / "w.safetensors", metadata=metadata)
    version = manager.save_model_version(tmp_path / "w.safetensors")
    weights = manager.weights_path(version)
    assert sorted(p.name for p in weights.parent.iterdir()) == ["spec.json", "weights.safetensors"]
    spec = json.loads((weights.parent / "spec.json").read_text())
    assert spec["arrays"] == [
        {"name": "z", "dtype": "float16", "shape": [2, 3]},
        {"name": "a", "dtype": "int64", "shape": []},
    ]
    assert spec["model"] == {"family": "yolov8"}
    assert spec["sha256"] == manager.get_version(version).sha256


def test_nothing_lands_in_the_working_folder(
    manager: ModelManager,
    weights: MakeWeights,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    mlflow_home: Path,
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    version = manager.save_model_version(weights(1))
    manager.promote_to_production(version)
    assert manager.weights_path(version).is_relative_to(mlflow_home / "artifacts")
    assert list((tmp_path / "elsewhere").iterdir()) == []
    assert list((mlflow_home / "tmp").iterdir()) == []


def test_an_unfinished_move_is_finished_by_the_next_manager(
    manager: ModelManager,
    weights: MakeWeights,
    mlflow_home: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for number in (1, 2):
        manager.save_model_version(weights(number))
    manager.promote_to_production("1")
    client = manager.client
    before = client.get_registered_model(NAME)

    class Crash(BaseException):
        pass

    def crash(*_: object) -> None:
        raise Crash

    monkeypatch.setattr(manager.backend, "show", crash)
    with pytest.raises(Crash):
        manager.promote_to_production("2")
    assert client.get_registered_model(NAME).aliases == before.aliases

    other = ModelManager(home=mlflow_home)
    assert other.get_latest_version("Production") == "2"
    other.reconcile()
    assert str(client.get_registered_model(NAME).aliases["production"]) == "2"
    assert client.get_model_version(NAME, "2").current_stage == "Production"
    assert client.get_model_version(NAME, "1").tags["stage"] == "Archived"


def test_an_alias_moved_by_hand_is_put_back(manager: ModelManager, weights: MakeWeights) -> None:
    for number in (1, 2):
        manager.save_model_version(weights(number))
    manager.promote_to_production("1")
    manager.client.set_registered_model_alias(NAME, "production", "2")
    assert manager.get_latest_version("Production") == "1"
    manager.reconcile()
    assert str(manager.client.get_registered_model(NAME).aliases["production"]) == "1"


def test_an_echo_of_a_create_is_dropped(manager: ModelManager, weights: MakeWeights) -> None:
    create = manager.client.create_model_version

    def twice(*args: object, **kwargs: object) -> object:
        create(*args, **kwargs)
        return create(*args, **kwargs)

    manager.client.create_model_version = twice
    assert manager.save_model_version(weights(1)) == "1"
    assert manager.save_model_version(weights(1)) == "1"
    assert [row["version"] for row in manager.list_all_versions()] == ["1"]


def test_listing_asks_mlflow_the_same_number_of_questions_for_any_number_of_versions(
    manager: ModelManager, weights: MakeWeights
) -> None:
    import sqlalchemy

    def questions() -> int:
        count = 0

        def seen(*_: object) -> None:
            nonlocal count
            count += 1

        sqlalchemy.event.listen(sqlalchemy.engine.Engine, "before_cursor_execute", seen)
        try:
            manager.list_all_versions()
        finally:
            sqlalchemy.event.remove(sqlalchemy.engine.Engine, "before_cursor_execute", seen)
        return count

    manager.save_model_version(weights(0))
    manager.promote_to_production("1")
    few = questions()
    for number in range(1, 12):
        manager.save_model_version(weights(number))
    assert questions() == few


def test_two_managers_that_promote_in_turn_lose_nothing(
    manager: ModelManager, weights: MakeWeights, mlflow_home: Path
) -> None:
    for number in range(1, 7):
        manager.save_model_version(weights(number))
    pair = manager, ModelManager(home=mlflow_home)

    def promote(who: int) -> None:
        for version in range(1 + who, 7, 2):
            pair[who].promote_to_production(version)

    threads = [threading.Thread(target=promote, args=(who,)) for who in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    history = manager.history()
    assert sorted(entry.version for entry in history) == ["1", "2", "3", "4", "5", "6"]
    assert [e.displaced for e in history] == ["", *[e.version for e in history[:-1]]]
    stages = [row["stage"] for row in manager.list_all_versions()]
    assert sorted(stages) == ["Archived"] * 5 + ["Production"]


def test_a_changed_journal_is_found(
    manager: ModelManager, weights: MakeWeights, mlflow_home: Path
) -> None:
    for number in (1, 2):
        manager.save_model_version(weights(number))
        manager.promote_to_production(str(number))
    with sqlite3.connect(mlflow_home / "mlflow.db") as database:
        database.execute(
            'UPDATE params SET value = replace(value, \'"version":"1"\', \'"version":"9"\')'
        )
    for ask in (manager.verify, manager.reconcile, ModelManager(home=mlflow_home).rollback):
        with pytest.raises(JournalError, match="Entry 1 of the journal was changed from outside"):
            ask()


def test_versions_of_other_tools_are_listed_but_not_promoted(manager: ModelManager) -> None:
    manager.client.create_registered_model(NAME)
    manager.client.create_model_version(NAME, "s3://bucket/model", await_creation_for=0)
    (row,) = manager.list_all_versions()
    assert (row["version"], row["stage"], row["sha256"], row["size"]) == ("1", "None", "", 0)
    with pytest.raises(RegistryError, match="not saved by this app"):
        manager.promote_to_staging("1")
    manager.archive_version("1")
    assert manager.get_version("1").stage == "Archived"


def test_relative_sqlite_paths_do_not_move_with_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert ModelManager("sqlite:///my.db").tracking_uri == f"sqlite:///{tmp_path}/my.db"
    assert ModelManager(f"sqlite:////{tmp_path}/x.db").tracking_uri.endswith(f"{tmp_path}/x.db")


@pytest.mark.parametrize("name", ["", "  ", "a/b", "a:b", "it's", "x" * 300])
def test_a_model_name_that_mlflow_cannot_keep_is_refused(name: str) -> None:
    with pytest.raises(InvalidName, match="registered model's name"):
        ModelManager(registered_model_name=name)


@pytest.mark.parametrize(
    ("uri", "says"),
    [
        ("file:./mlruns", "no longer keeps runs in plain folders"),
        ("./mlruns", "no longer keeps runs in plain folders"),
        ("ftp://user:s3cret@host/x", "'ftp' is not known"),
        ("databricks", "cannot be used"),
        ("sqlite://", "in memory"),
        ("sqlite:////proc/nowhere/mlflow.db", "cannot be written"),
        ("http://user:s3cret@127.0.0.1:9/", "does not answer"),
        ("postgresql://user:s3cret@127.0.0.1:9/db", "does not answer"),
        ("http://user:s3cret@[bad/", "does not answer|cannot be used"),
    ],
)
def test_an_address_that_cannot_be_used_is_told_at_once_without_its_password(
    uri: str, says: str
) -> None:
    began = time.monotonic()
    with pytest.raises(StoreUnavailable, match=says) as caught:
        ModelManager(uri).ping()
    assert time.monotonic() - began < 10
    assert "s3cret" not in "".join(traceback.format_exception(caught.value))
    assert str(caught.value).count("\n") == 0


def test_a_file_that_is_not_a_database_is_told(tmp_path: Path) -> None:
    (tmp_path / "notes.db").write_text("these are my notes")
    with pytest.raises(StoreUnavailable, match=r"is damaged \(file is not a database\)"):
        ModelManager(f"sqlite:///{tmp_path}/notes.db").ping()
    with pytest.raises(StoreUnavailable, match=r"is damaged \(file is not a database\)"):
        ModelManager(f"sqlite:///{tmp_path}/notes.db").list_all_versions()


def test_a_server_is_asked_as_mlflows_client_would() -> None:
    class Handler(BaseHTTPRequestHandler):
        status, content = 200, b"{}"

        def do_GET(self) -> None:
            is_ours = self.path.startswith("/mlflow/api/2.0/mlflow/experiments/search?")
            self.send_response(self.status if is_ours else 500)
            self.end_headers()
            self.wfile.write(self.content)

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        manager = ModelManager(f"http://127.0.0.1:{server.server_port}/mlflow/")
        manager.ping()
        Handler.status = 403
        with pytest.raises(StoreUnavailable, match=r"answers 403: .* MLFLOW_TRACKING_TOKEN"):
            manager.ping()
        Handler.status, Handler.content = 200, b"<html>Please sign in</html>"
        with pytest.raises(StoreUnavailable, match="not as MLflow does"):
            manager.ping()
        server.shutdown()


def test_a_server_that_keeps_silent_is_given_up_on() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        began = time.monotonic()
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(StoreUnavailable, match="does not answer"):
            check_address(address, read_seconds=0.3)
        assert time.monotonic() - began < 10


def test_passwords_are_not_shown_when_mlflow_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    manager = ModelManager("http://ada:s3cret%2Fx@127.0.0.1:9")
    with pytest.raises(StoreUnavailable, match="ada:") as caught:
        manager.list_all_versions()
    shown = "".join(traceback.format_exception(caught.value))
    assert "s3cret" not in shown


@pytest.mark.parametrize(
    "uri",
    [
        "postgresql://ada:s3cret@host/db",
        "postgresql://ada:s3/cr@et@host/db",
        "mssql+pyodbc:///?odbc_connect=DRIVER%3DX%3BPWD%3Ds3cret",
        "postgresql://host/db?user=ada&password=s3cret",
    ],
)
def test_passwords_in_any_place_are_hidden(uri: str) -> None:
    shown = redact(f"cannot open {uri} now", uri)
    assert "s3" not in shown
    assert "now" in shown


def _first_use(home: Path, barrier: object, failures: object) -> None:
    barrier.wait()  # type: ignore[attr-defined]
    try:
        ModelManager(home=home).list_all_versions()
    except BaseException as error:
        failures.put(repr(error))  # type: ignore[attr-defined]
        raise


@pytest.mark.slow
def test_several_processes_can_create_the_database_at_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    barrier, failures = context.Barrier(2), context.Queue()
    processes = [
        context.Process(target=_first_use, args=(tmp_path / "new", barrier, failures))
        for _ in range(2)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert failures.empty(), failures.get()
    assert [process.exitcode for process in processes] == [0, 0]


def test_importing_the_registry_imports_neither_mlflow_nor_torch() -> None:
    code = (
        "import sys, fl_registry as r; r.ModelManager(); r.FederatedLearningTracker();"
        "print([m for m in ('mlflow', 'torch', 'sqlalchemy', 'flwr') if m in sys.modules])"
    )
    found = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[2],
        env=dict(os.environ),
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.strip() == "[]"
