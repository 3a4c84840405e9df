# SPDX-License-Identifier: Apache-2.0
"""A server that is down is told at once, though MLflow's own client would wait for minutes."""

from __future__ import annotations

import os
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from fl_registry import FederatedLearningTracker, ModelManager, ModelStore, StoreUnavailable
from fl_registry.mlflow.backend import MlflowBackend
from fl_registry.mlflow.connection import ADDRESS_VARIABLE, MLFLOW_VARIABLE, Connection


class Healthy(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *_: object) -> None:
        pass


def test_a_server_that_never_was_there_is_told_at_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    began = time.monotonic()
    with pytest.raises(StoreUnavailable, match="does not answer"):
        ModelManager(f"http://127.0.0.1:{port}").list_all_versions()
    assert time.monotonic() - began < 10


def test_a_server_that_went_away_is_told_at_once(home: Path) -> None:
    before = dict(os.environ)
    with HTTPServer(("127.0.0.1", 0), Healthy) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        address = f"http://127.0.0.1:{server.server_port}"
        connection = Connection(address, home, check_every=0.0)
        manager = ModelStore(MlflowBackend(connection, "fl-global-model"))
        assert connection.client is not None
        server.shutdown()
        thread.join()
    began = time.monotonic()
    for ask in (manager.list_all_versions, manager.rollback, manager.reconcile):
        with pytest.raises(StoreUnavailable, match="does not answer"):
            ask()
    assert time.monotonic() - began < 10
    changed = {key for key, value in os.environ.items() if before.get(key) != value}
    assert {key for key in changed if key.startswith("MLFLOW_HTTP")} == set()


def test_the_environment_names_mlflow_where_nobody_else_does(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = f"sqlite:///{home / 'mlflow.db'}"
    monkeypatch.setenv(ADDRESS_VARIABLE, "")
    assert ModelManager().tracking_uri == own
    monkeypatch.setenv(ADDRESS_VARIABLE, "https://mlflow.example")
    assert ModelManager().tracking_uri == "https://mlflow.example"
    assert FederatedLearningTracker().tracking_uri == "https://mlflow.example"
    assert ModelManager(own).tracking_uri == own


def test_mlflows_own_variable_counts_where_ours_is_not_set(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(MLFLOW_VARIABLE, "https://ada:s3cret@mlflow.example")
    connection = ModelManager().backend.connection
    assert connection.uri == "https://ada:s3cret@mlflow.example"
    assert "s3cret" not in connection.place
    assert connection.place.endswith("@mlflow.example (from MLFLOW_TRACKING_URI)")
    assert ModelManager(f"sqlite:///{home}/mlflow.db").backend.connection.chosen_by == ""
    monkeypatch.setenv(ADDRESS_VARIABLE, "https://other.example")
    assert ModelManager().tracking_uri == "https://other.example"
    monkeypatch.delenv(ADDRESS_VARIABLE)
    monkeypatch.setenv(MLFLOW_VARIABLE, "file:./mlruns")
    with pytest.raises(StoreUnavailable, match="that of MLFLOW_TRACKING_URI"):
        ModelManager().ping()
