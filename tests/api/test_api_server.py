# SPDX-License-Identifier: Apache-2.0
"""What the API stands on: its memory, its port and threads, the settings, the guide."""

from __future__ import annotations

import ast
import logging
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.api_client import TOKEN, Client, refused

from fl_app.api import create_trigger_api, serve_api
from fl_app.api.guard import read_token
from fl_app.hooks import PrometheusMetrics
from fl_app.retraining import RetrainingManager

ROOT = Path(__file__).parents[2]


def test_a_memory_that_fails_is_told_as_that(api: Client, manager: RetrainingManager) -> None:
    with manager.store._database.engine.begin() as connection:
        connection.exec_driver_sql("drop table requests")
    reply = api.post("/trigger_retrain", {"reason": "x"})
    assert refused(reply, 503)
    assert "requests" not in reply.json["detail"]
    assert api.get("/health").status == 200


def test_threads_on_a_memory_in_memory_do_not_undo_one_another() -> None:
    manager = RetrainingManager(min_hours_between_retrain=0)
    done = threading.Event()

    def look() -> None:
        while not done.is_set():
            assert manager.trigger_history is not None
            time.sleep(0.001)

    readers = [threading.Thread(target=look) for _ in range(4)]
    for reader in readers:
        reader.start()
    try:
        for number in range(200):
            manager.manual_trigger(f"number {number}")
    finally:
        done.set()
        for reader in readers:
            reader.join()
    assert len(manager.trigger_history) == 200


def test_a_port_that_is_taken_is_a_warning_and_no_more(
    manager: RetrainingManager, caplog: pytest.LogCaptureFixture
) -> None:
    before = threading.active_count()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert serve_api(create_trigger_api(manager), port=port) is None
    (warning,) = [r for r in caplog.records if r.levelno == logging.WARNING]
    assert str(port) in warning.getMessage()
    assert threading.active_count() == before


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "192.0.2.1", "fl-server"])  # noqa: S104
def test_an_open_address_without_a_token_is_refused(manager: RetrainingManager, host: str) -> None:
    with pytest.raises(ValueError, match="FL_APP_API_TOKEN"):
        serve_api(create_trigger_api(manager), host=host, port=0)


def test_with_a_token_it_listens_where_it_is_told(manager: RetrainingManager) -> None:
    app = create_trigger_api(manager, token=TOKEN)
    server = serve_api(app, host="0.0.0.0", port=0)  # noqa: S104 - that is the test
    assert server is not None
    assert Client(server.port, TOKEN).get("/status").status == 200
    server.close()


def test_close_frees_the_port_and_ends_the_threads(manager: RetrainingManager) -> None:
    before = threading.active_count()
    server = serve_api(create_trigger_api(manager), port=0)
    assert server is not None
    with socket.create_connection(("127.0.0.1", server.port)):
        began = time.monotonic()
        server.close()
        server.close()
        assert time.monotonic() - began < 3
    assert threading.active_count() == before
    with socket.create_server(("127.0.0.1", server.port)):
        pass


def test_the_token_comes_from_a_file_else_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FL_APP_API_TOKEN", raising=False)
    assert read_token() is None
    monkeypatch.setenv("FL_APP_API_TOKEN", f"{TOKEN}\n")
    assert read_token() == TOKEN
    path = tmp_path / "token"
    path.write_text(f"other-{TOKEN}\n")
    assert read_token(str(path)) == f"other-{TOKEN}"
    path.write_text("\n")
    for wrong in (path, tmp_path / "nowhere"):
        with pytest.raises(ValueError, match="token file"):
            read_token(str(wrong))


def test_the_server_app_opens_it_for_a_server_that_waits(
    manager: RetrainingManager, store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fl_app.config import ServerConfig
    from fl_app.server_app import api_token, start_api

    monkeypatch.delenv("FL_APP_API_TOKEN", raising=False)

    def settings(**changes: Any) -> ServerConfig:
        given = {"continuous": True, **changes}
        return ServerConfig.from_run_config({k.replace("_", "-"): v for k, v in given.items()})

    def sessions(config: ServerConfig, token: str | None = None) -> Any:
        parts = {"monitor": manager, "store": store, "home": tmp_path, "probation": None}
        return SimpleNamespace(config=config, token=token, metrics=PrometheusMetrics(), **parts)

    assert start_api(sessions(settings(continuous=False))) is None
    assert start_api(sessions(settings(api_port=0))) is None
    with pytest.raises(ValueError, match="without a token"):
        api_token(settings(api_host="0.0.0.0"))  # noqa: S104 - that is the test
    monkeypatch.setenv("FL_APP_API_TOKEN", TOKEN)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    config = settings(api_port=port, api_allowed_hosts="fl-server, other")
    server = start_api(sessions(config, api_token(config)))
    assert server is not None
    client = Client(port, TOKEN)
    answers = [client.get("/versions", Host=host).status for host in ("other", "fl-server", "no")]
    server.close()
    assert answers == [200, 200, 403]


def test_flask_and_waitress_are_the_api_s_alone_and_loaded_when_used() -> None:
    for path in sorted((ROOT / "fl_app").rglob("*.py")):
        tree = ast.parse(path.read_text())
        names = {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.module}
        names |= {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
        tops = {name.partition(".")[0] for name in names}
        if tops & {"flask", "waitress", "werkzeug"}:
            assert path.is_relative_to(ROOT / "fl_app" / "api")
    code = "import fl_app, fl_app.retraining, sys; print(*{'flask','waitress'} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.split() == []
