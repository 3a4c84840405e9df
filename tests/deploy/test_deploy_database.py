# SPDX-License-Identifier: Apache-2.0
"""MLflow of a deployment on a PostgreSQL database that exists already (`--database-url`)."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import psutil
import pytest
from support.flower import free_port

from fl_app.deploy.folder import Layout
from fl_app.deploy.processes import Processes, mlflow_server
from fl_registry import ModelManager, Stage
from fl_registry.files.weights import save_weights


@pytest.mark.slow
def test_versions_are_in_the_database_and_its_password_is_no_argument(
    tmp_path: Path, postgres_address: str
) -> None:
    import psycopg

    layout, port = Layout(tmp_path / "deployment"), free_port()
    layout.prepare()
    processes = Processes(layout, print, threading.Event())
    # A database of its own: the first server on one decides where artifacts are, for all tests.
    with psycopg.connect(postgres_address, autocommit=True) as connection:
        connection.execute("CREATE DATABASE deployed")
    own = postgres_address.removesuffix("/postgres") + "/deployed"
    database = own.replace("://postgres@", "+psycopg://postgres:open-sesame@")
    try:
        processes.start(mlflow_server(layout, port, database=database))
        processes.wait_for(["mlflow"], 180)
        commands = [process.info["cmdline"] for process in psutil.process_iter(["cmdline"])]
        assert "open-sesame" not in str(commands)
        manager = ModelManager(f"http://127.0.0.1:{port}", "deployed", home=tmp_path / "home")
        for number in (1, 2):
            weights = tmp_path / f"{number}.safetensors"
            save_weights({"w": np.full(3, number, dtype=np.float32)}, weights)
            manager.save_model_version(weights, metrics={"accuracy": 0.5})
        # MLflow on PostgreSQL refuses to archive the version before in the same call.
        for version in ("1", "2"):
            manager.promote_to_staging(version)
        assert [row["stage"] for row in manager.list_all_versions()] == [Stage.STAGING, "Archived"]
        assert len(list(layout.artifacts.rglob("*.safetensors"))) == 2
    finally:
        processes.stop()
    with psycopg.connect(own) as connection:
        rows = connection.execute("SELECT name, version FROM model_versions").fetchall()
    assert sorted(rows) == [("deployed", 1), ("deployed", 2)]
