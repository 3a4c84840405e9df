# SPDX-License-Identifier: Apache-2.0
"""Weights files, and model stores of both kinds. Databases are copies of one that is made once."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from registry import InMemoryModelStore, ModelManager
from registry.store import JournalledStore

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


@pytest.fixture(params=["memory", "mlflow"])
def store(request: pytest.FixtureRequest) -> JournalledStore:
    """Return each of the model stores in turn."""
    if request.param == "memory":
        return InMemoryModelStore()
    found: ModelManager = request.getfixturevalue("manager")
    return found
