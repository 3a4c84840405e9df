# SPDX-License-Identifier: Apache-2.0
"""Weights files, and model stores of both kinds. Databases are copies of one that is made once."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from support.registry_servers import mlflow_server

from fl_registry import InMemoryModelStore, ModelManager
from fl_registry.store import ModelStore

MakeWeights = Callable[[float], Path]


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an MLflow database with its tables and nothing else; making one takes seconds."""
    folder = tmp_path_factory.mktemp("empty")
    assert ModelManager(home=folder).client.search_registered_models() == []
    return folder / "mlflow.db"


@pytest.fixture
def mlflow_home(home: Path, empty_database: Path) -> Path:
    """Return the test's app home, with a database in it."""
    home.mkdir()
    shutil.copyfile(empty_database, home / "mlflow.db")
    return home


@pytest.fixture
def manager(mlflow_home: Path) -> ModelManager:
    return ModelManager(home=mlflow_home)


@pytest.fixture
def weights(tmp_path: Path) -> MakeWeights:
    """Return a function that writes a weights file whose content depends on a number."""

    def make(number: float) -> Path:
        path = tmp_path / f"global_{number}.safetensors"
        arrays = {"b": np.full((2, 3), number, np.float32), "a": np.array(7, np.int64)}
        save_file(arrays, path)
        return path

    return make


@pytest.fixture(scope="session")
def served_mlflow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Yield the address of an MLflow server."""
    with mlflow_server(tmp_path_factory.mktemp("server")) as address:
        yield address


@pytest.fixture(scope="session")
def postgres_mlflow(postgres_address: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the address of a PostgreSQL database with MLflow's tables in it."""
    ModelManager(postgres_address, home=tmp_path_factory.mktemp("home")).list_all_versions()
    return postgres_address


@pytest.fixture(
    params=[
        "memory",
        "mlflow",
        pytest.param("server", marks=pytest.mark.slow),
        pytest.param("postgres", marks=pytest.mark.slow),
    ]
)
def store(request: pytest.FixtureRequest, home: Path) -> ModelStore:
    """Return each of the model stores in turn; in a database that is shared, under a new name."""
    if request.param == "memory":
        return InMemoryModelStore()
    if request.param == "mlflow":
        found: ModelManager = request.getfixturevalue("manager")
        return found
    address = {"server": "served_mlflow", "postgres": "postgres_mlflow"}[request.param]
    name = f"model-{uuid.uuid4().hex[:12]}"
    return ModelManager(request.getfixturevalue(address), name, home=home, experiment_name=name)
