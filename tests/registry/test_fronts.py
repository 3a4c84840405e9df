# SPDX-License-Identifier: Apache-2.0
"""The whole life of a model on each kind of MLflow that people have, and behind what they have."""

from __future__ import annotations

import ssl
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, Message, MetricRecord
from support.fronts import Front, basic, self_signed
from support.local_grid import LocalGrid, reply
from support.registry_servers import mlflow_server, s3_server

from fl_app import LifecycleStrategy
from fl_app.cli.doctor import examine
from fl_app.deploy.keys import Keys, make_keys
from fl_app.retraining import MonitorStore
from fl_app.retraining.memory.store import default_url
from fl_registry import (
    FederatedLearningTracker,
    ModelManager,
    RegistryError,
    Stage,
    StoreUnavailable,
)
from fl_registry.mlflow.home import look, move_home

pytestmark = pytest.mark.slow

ROUNDS = 3
ARRAY = np.zeros((200, 200), np.float32)
NOT_OF_MLFLOW = ("versions", "internals", "disk", "leftovers", "superlink")
"""What doctor looks at that has nothing to do with where MLflow is."""
PASSWORD = {"MLFLOW_TRACKING_USERNAME": "ada", "MLFLOW_TRACKING_PASSWORD": "l0velace"}
SLOW = 12.0
"""Seconds, more than a write of a round waits."""


@dataclass
class Case:
    """What stands in front of a server.

    Attributes
    ----------
    front : dict[str, Any]
        Arguments of `Front`.
    variables : dict[str, str]
        MLflow's variables of those who use it.
    user : str
        What goes before the host in the address.
    refused : str
        What is said without the variables; empty where none are needed.
    """

    front: dict[str, Any] = field(default_factory=dict)
    variables: dict[str, str] = field(default_factory=dict)
    user: str = ""
    refused: str = ""


CASES = {
    "nothing": Case(),
    "password": Case(
        {"authorization": basic("ada", "l0velace")},
        PASSWORD,
        refused="answers 401: .* MLFLOW_TRACKING_USERNAME",
    ),
    "password in the address": Case({"authorization": basic("ada", "l0ve/")}, user="ada:l0ve%2F@"),
    "token": Case(
        {"authorization": "Bearer abc.def"},
        {"MLFLOW_TRACKING_TOKEN": "abc.def"},
        refused="answers 401: .* MLFLOW_TRACKING_TOKEN",
    ),
    "prefix": Case({"prefix": "/team/mlflow"}),
    "no health": Case({"hides_health": True}),
    "slow": Case({"slow": 1, "seconds": SLOW}),
    "cut": Case({"cut": 2}),
    "TLS": Case(
        variables={"MLFLOW_TRACKING_SERVER_CERT_PATH": "the authority's"},
        refused="certificate verify failed.*MLFLOW_TRACKING_SERVER_CERT_PATH",
    ),
}


def live(address: str | None, home: Path, name: str) -> None:
    """Train, promote, load, go back, look at everything and clean up."""

    def respond(node_id: int, message: Message) -> Any:
        matrix = message.content["arrays"].to_numpy_ndarrays()[0]
        if message.metadata.message_type == "train":
            return reply(ArrayRecord([matrix + np.float32(1)]), loss=1.0)
        return reply(accuracy=0.5)

    def holdout(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        return MetricRecord({"accuracy": 0.5 + 0.1 * server_round})

    store = ModelManager(address, name, home=home, experiment_name=name)
    tracker = FederatedLearningTracker(address, name, home=home)
    strategy = LifecycleStrategy(
        metric="accuracy", artifacts=[], home=home, store=store, tracker=tracker
    )
    strategy.start(LocalGrid(respond), ArrayRecord([ARRAY]), num_rounds=ROUNDS, evaluate_fn=holdout)
    assert [row["tags"]["round"] for row in store.list_all_versions()] == ["3", "2", "1"]
    store.promote_to_production("3")
    store.restore_version("2")
    other = ModelManager(address, name, home=home)  # who knows nothing of the session
    other.promote_to_production("2")
    assert [value.mean() for value in other.load_arrays(Stage.PRODUCTION).values()] == [2.0]
    assert other.rollback() == "3"
    checks = {
        c.name: c for c in examine(other, lambda: MonitorStore(default_url(home), name), deep=True)
    }
    wrong = [c for c in checks.values() if not c.ok and c.name not in NOT_OF_MLFLOW]
    assert wrong == []
    assert "the weights of 3 versions are whole" in checks["artifacts"].detail
    pruned = other.prune(keep=0, dry_run=False)
    assert (pruned.versions, pruned.left) == (("1",), {})
    assert pruned.freed > ARRAY.nbytes
    (run,) = other.client.search_runs([tracker.connection.experiment_id(name)])
    assert run.info.status == "FINISHED"


def new_name() -> str:
    return f"model-{uuid.uuid4().hex[:12]}"


@pytest.mark.parametrize("case", CASES)
def test_a_server_behind(
    case: str, served_mlflow: str, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    its, variables, name = CASES[case], dict(CASES[case].variables), new_name()
    front = Front(served_mlflow, **its.front)
    if case == "TLS":
        keys = Keys(tmp_path / "keys")
        make_keys(keys.folder, ["127.0.0.1"])
        front.tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        front.tls.load_cert_chain(keys.certificate, keys.key)
        ours = self_signed(tmp_path / "client.pem")
        front.tls.load_verify_locations(ours)
        front.tls.verify_mode = ssl.CERT_REQUIRED  # of who asks, too
        variables["MLFLOW_TRACKING_SERVER_CERT_PATH"] = str(keys.authority)
        variables["MLFLOW_TRACKING_CLIENT_CERT_PATH"] = str(ours)
    with front.running() as address:
        if its.refused:
            with pytest.raises(StoreUnavailable, match=its.refused):
                ModelManager(address, name, home=home).ping()
        for variable, value in variables.items():
            if variable == "MLFLOW_TRACKING_CLIENT_CERT_PATH":
                # The server's words, or nothing where it closes the connection first.
                refused = f"(certificate required|EOF).*{variable}"
                with pytest.raises(StoreUnavailable, match=refused):
                    ModelManager(address, name, home=home).ping()
            monkeypatch.setenv(variable, value)
        scheme, _, rest = address.partition("://")
        live(f"{scheme}://{its.user}{rest}", home, name)
    assert (front.slow, front.cut) == (0, 0)
    assert not [path for path in front.asked if path.endswith("/health")]


def test_a_home_that_has_the_files_of_a_server_is_moved_with_its_database(
    served_mlflow: str, home: Path, tmp_path: Path
) -> None:
    (home / "mlruns").mkdir(parents=True)
    store = ModelManager(served_mlflow, home=home)
    assert look(store.backend.connection).served is None
    store.client.create_experiment(new_name(), artifact_location=(home / "mlruns").as_uri())
    assert look(store.backend.connection).served == home / "mlruns"
    with pytest.raises(RegistryError, match=r"is a server .*address of its database"):
        move_home(served_mlflow, home, tmp_path / "new")
    assert home.exists()


def test_mlflow_s_own_basic_auth(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("flask_wtf", reason="mlflow[auth] is not installed")
    with mlflow_server(tmp_path, password=PASSWORD["MLFLOW_TRACKING_PASSWORD"] * 2) as address:
        with pytest.raises(StoreUnavailable, match=r"answers 401: .* MLFLOW_TRACKING_USERNAME"):
            ModelManager(address, new_name(), home=home).ping()
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "admin")
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORD["MLFLOW_TRACKING_PASSWORD"] * 2)
        live(address, home, new_name())


def test_a_sqlite_file(mlflow_home: Path) -> None:
    live(None, mlflow_home, new_name())


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    for module, reason in {"boto3": "the extra s3", "moto": "moto[server]"}.items():
        if find_spec(module) is None:
            pytest.skip(f"{reason} is not installed")
    with s3_server(tmp_path_factory.mktemp("s3"), "models") as variables:
        yield variables


@pytest.mark.parametrize("is_proxy", [True, False], ids=["proxied", "direct"])
def test_an_object_store_and_postgresql(
    is_proxy: bool,
    s3: dict[str, str],
    postgres_address: str,
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    name = new_name()
    with ExitStack() as stack:
        for variable, value in s3.items():
            monkeypatch.setenv(variable, value)
        where = f"s3://models/{name}"
        folder = Path(stack.enter_context(TemporaryDirectory()))
        server = mlflow_server(
            folder, database=postgres_address, artifacts=where, is_proxy=is_proxy
        )
        address = stack.enter_context(server)
        if is_proxy:  # then only the server has the keys
            for variable in s3:
                monkeypatch.delenv(variable)
        live(address, home, name)


def test_an_object_store_without_its_driver_is_told_before_round_1(
    mlflow_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, name = mlflow_home, new_name()
    store = ModelManager(None, name, home=home)
    store.client.create_experiment(name, artifact_location="s3://models/here")
    monkeypatch.setattr("fl_registry.errors.find_spec", lambda module: None)
    tracker = FederatedLearningTracker(None, name, home=home)
    strategy = LifecycleStrategy(artifacts=[], home=home, store=store, tracker=tracker)
    asked: list[int] = []
    grid = LocalGrid(lambda node_id, message: asked.append(node_id))
    with pytest.raises(RegistryError, match=r"boto3.*install fl-app\[s3\]"):
        strategy.start(grid, ArrayRecord([ARRAY]), num_rounds=1)
    assert asked == []
