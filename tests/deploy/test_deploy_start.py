# SPDX-License-Identifier: Apache-2.0
"""`fl-app deploy-local` and `fl-app keys`, before any process is started."""

from __future__ import annotations

import socket
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from fl_app.cli import main
from fl_app.client.generated_shapes import shapes_data
from fl_app.deploy import local
from fl_app.deploy.folder import DEFAULTS, Layout, Settings
from fl_app.deploy.local import Deployment
from fl_app.deploy.processes import mlflow_server, superlink, supernode


@pytest.fixture(autouse=True)
def _nothing_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every process would be an error here, and this one's signals are left alone."""
    monkeypatch.setattr("signal.signal", lambda *_: None)

    def refuse(*_: object) -> None:
        raise AssertionError("something was started")

    monkeypatch.setattr(local.Processes, "start", refuse)


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit) as ended:
        main.main(["deploy-local", *words])
    assert ended.value.code == 1
    return capsys.readouterr().err.strip()


@pytest.mark.parametrize("option", ["--port", "--mlflow-port"])
def test_a_port_that_is_taken(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        said = refused(capsys, "--folder", str(tmp_path), option, port)
    assert said.startswith(f"Port {port} of this machine cannot be used")
    assert said.endswith(f"name another with {option}.")


def test_data_for_another_number_of_nodes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = refused(capsys, "--folder", str(tmp_path), "--nodes", "3", "--data", "/a", "--data=/b")
    assert said.startswith("--data names 2 data sets for --nodes 3")


def test_data_that_are_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = shapes_data(tmp_path, train=4, val=2)
    words = ("--folder", str(tmp_path / "new"), "--data", str(good), "--data=/nothing/data.yaml")
    assert "/nothing/data.yaml can't be read" in refused(capsys, *words)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("http://127.0.0.1:5000", "the address of a server"),
        ("postgresql://ada:open-sesame@127.0.0.1:9/db", "does not answer"),
        ("mongodb://host/db", "is not known here"),
    ],
)
def test_a_database_that_cannot_be_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], address: str, why: str
) -> None:
    words = ["--folder", str(tmp_path), "--port", free(), "--mlflow-port", free()]
    said = refused(capsys, *words, "--database-url", address)
    assert why in said
    assert "open-sesame" not in said
    assert Layout(tmp_path).settings() == DEFAULTS


def test_a_later_start_has_the_options_of_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen: list[Settings] = []
    monkeypatch.setattr(Deployment, "run", lambda self: chosen.append(self.settings))
    two = [str(shapes_data(tmp_path / name, train=4, val=2)) for name in "12"]

    def start(*words: str) -> Settings:
        with pytest.raises(SystemExit) as ended:
            main.main(["deploy-local", "--folder", str(tmp_path), *words])
        assert not ended.value.code
        Layout(tmp_path).save(chosen[-1])
        return chosen[-1]

    assert start() == DEFAULTS
    assert start("--data", two[0], "--data", two[1], "--port", "81").data == tuple(two)
    assert start("--mlflow-port", "82") == replace(
        DEFAULTS, data=tuple(two), port=81, mlflow_port=82
    )
    assert start("--nodes", "2").data == tuple(two)
    assert start("--nodes", "3") == replace(DEFAULTS, nodes=3, port=81, mlflow_port=82)
    address = "postgresql+psycopg://ada:open-sesame@host/db"
    assert start("--database-url", address).database_url == address
    assert start() == start("--nodes", "3")


def test_the_folder_is_in_the_app_s_home_by_default(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[Path] = []
    monkeypatch.setattr(Deployment, "run", lambda self: used.append(self.layout.folder))
    with pytest.raises(SystemExit):
        main.main(["deploy-local"])
    assert used == [home / "deployment"]


def test_all_ends_without_a_terminal_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stopped: list[bool] = []

    def closed(*_: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(local.Processes, "stop", lambda self: stopped.append(True))
    with monkeypatch.context() as patched:
        patched.setattr("sys.stdout.write", closed)
        with pytest.raises(SystemExit):
            main.main(["deploy-local", "--folder", str(tmp_path), "--database-url", "http://host"])
    assert stopped == [True]
    assert "the address of a server" in capsys.readouterr().err


def test_no_secret_is_an_argument_of_a_process(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    address = "postgresql+psycopg://ada:open-sesame@host/mlflow"
    services = [
        mlflow_server(layout, 5000, database=address),
        superlink(layout, 8000, mlflow="http://127.0.0.1:5000"),
        supernode(layout, 1, superlink_port=8000, data="/data/data.yaml"),
    ]
    for service in services:
        assert "open-sesame" not in " ".join(service.command)
        assert "open-sesame" not in repr(service)
        assert service.command[0].startswith(str(Path(sys.executable).parent))
    assert services[0].environment["MLFLOW_BACKEND_STORE_URI"] == address
    assert all("open-sesame" not in str(service.environment) for service in services[1:])


def test_keys_by_hand(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["keys", str(tmp_path / "k"), "--host", "host.example", "--nodes", "1"]
    for lines in (6, 1):
        with pytest.raises(SystemExit) as ended:
            main.main(words)
        assert not ended.value.code
        assert len(capsys.readouterr().out.splitlines()) == lines
    with pytest.raises(SystemExit) as ended:
        main.main(["keys", "--host", "a b"])
    assert ended.value.code == 1
    assert "'a b' is no host name" in capsys.readouterr().err


def free() -> str:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return str(probe.getsockname()[1])
