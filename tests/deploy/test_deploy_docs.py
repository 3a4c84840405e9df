# SPDX-License-Identifier: Apache-2.0
"""The commands of docs/deployment.md: some are run, of the others the options are checked.

The end-to-end test runs the command that starts a deployment, and the commands that it prints.
`test_compose` has the section on Docker Compose.
"""

from __future__ import annotations

import argparse
import re
import shlex
import tomllib
from collections.abc import Callable
from pathlib import Path
from threading import Event

import pytest
from flwr.cli.app import app as flwr
from flwr.common.config import parse_config_args
from flwr.superlink.cli.flower_superlink import _parse_args_run_superlink
from flwr.supernode.cli.flower_supernode import _parse_args_run_supernode
from typer.main import get_command

from fl_app.cli import main
from fl_app.config import ClientConfig, ServerConfig
from fl_app.deploy.folder import DEFAULTS, Layout
from fl_app.deploy.local import NAME, Deployment
from fl_app.deploy.processes import Service, mlflow_server, superlink, supernode

ROOT = Path(__file__).parents[2]
PAGE = re.sub(
    r"## On one machine, with Docker Compose\n.*?\n(?=## )",
    "",
    (ROOT / "docs" / "deployment.md").read_text(),
    flags=re.DOTALL,
)
BLOCKS = [
    (language, block.replace("\\\n", " "))
    for language, block in re.findall(r"```(\w*)\n(.*?)```", PAGE, re.DOTALL)
]
LINES = [line for language, block in BLOCKS if language == "bash" for line in block.splitlines()]
LAYOUT = Layout(Path("/deployment"))


def words(start: str) -> list[str]:
    """The words of the page's one command that starts so."""
    (line,) = [line for line in LINES if line.startswith(start)]
    return shlex.split(line)


def options(command: list[str]) -> set[str]:
    return {word for word in command if word.startswith("--")}


@pytest.mark.parametrize(
    ("program", "parser", "ours"),
    [
        (
            "flower-superlink",
            _parse_args_run_superlink,
            superlink(LAYOUT, 8000, mlflow="http://127.0.0.1:5000"),
        ),
        (
            "fl-app supernode",
            _parse_args_run_supernode,
            supernode(LAYOUT, 1, superlink_port=8000, data="/data/data.yaml"),
        ),
    ],
)
def test_flower_s_programs_are_started_by_hand_as_the_command_starts_them(
    program: str, parser: Callable[[], argparse.ArgumentParser], ours: Service
) -> None:
    by_hand = words(program)[len(program.split()) :]
    parser().parse_args(by_hand)
    # By hand a machine has one SuperNode, at Flower's own port.
    left_out = {"--host", "--port"} if "supernode" in program else set()
    assert options(by_hand) == options(list(ours.command)) - left_out
    started = [line for line in LINES if line.startswith("export FL_APP_HOME")]
    variables = {word.partition("=")[0] for line in started for word in shlex.split(line)[1:]}
    assert variables == {"FL_APP_HOME", "FL_APP_MLFLOW_TRACKING_URI"}
    assert ours.environment.keys() >= {"FL_APP_HOME"}


def test_a_node_gets_its_data() -> None:
    by_hand = _parse_args_run_supernode().parse_args(words("fl-app supernode")[2:])
    config = ClientConfig.from_run_config({}, parse_config_args([by_hand.node_config]))
    assert config.data == "/data/pictures/data.yaml"
    assert config.partition_id is None


def test_mlflow_is_started_by_hand_as_the_command_starts_it() -> None:
    from mlflow.cli import server

    by_hand = words("mlflow server")
    context = server.make_context("server", by_hand[2:])
    assert context.params["serve_artifacts"]
    ours = mlflow_server(LAYOUT, 5000, database="sqlite:///mlflow.db")
    assert options(by_hand) == options(list(ours.command))
    assert "MLFLOW_BACKEND_STORE_URI=" in "".join(LINES)
    assert "MLFLOW_BACKEND_STORE_URI" in ours.environment


@pytest.mark.parametrize("start", ["uv run flwr supernode register", "uv run flwr run . hospital"])
def test_flwr_accepts_these_commands(start: str) -> None:
    command, name = get_command(flwr), "flwr"
    left = words(start)[3:]
    while hasattr(command, "commands"):
        name, *left = left
        command = command.commands[name]
    context = command.make_context(name, left)
    assert context.params["superlink"] == "hospital"
    settings = context.params.get("run_config_overrides", ())
    assert settings or "register" in start
    ServerConfig.from_run_config(parse_config_args(list(settings)))


def test_flower_reads_the_connection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from flwr.cli.flower_config import read_superlink_connection

    (text,) = [block for language, block in BLOCKS if language == "toml"]
    monkeypatch.setenv("FLWR_HOME", str(tmp_path))
    (tmp_path / "config.toml").write_text(text)
    found = read_superlink_connection("hospital")
    assert found.address == tomllib.loads(text)["superlink"]["hospital"]["address"]
    assert not found.insecure


def test_keys_are_made_as_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(SystemExit) as ended:
        main.main(words("uv run fl-app keys")[3:])
    assert not ended.value.code, capsys.readouterr().err
    made = {path.name for path in (tmp_path / "fl-app-keys").iterdir()}
    table = PAGE.split("| file | what it is for |", 1)[1].split("\n\n", 1)[0]
    listed = set(re.findall(r"`([\w.-]+)`", table))
    assert listed | {"node-2", "node-2.pub"} == made


def test_what_is_printed_is_on_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UV", "/usr/bin/uv")
    layout = Layout(Path("/home/ada/.fl-app/deployment"))
    data = [f"{layout.node(n)}/shapes-{n}-of-2/data.yaml" for n in (1, 2)]
    deployment = Deployment(layout, DEFAULTS, print, Event())
    (shown,) = [block for language, block in BLOCKS if not language]
    assert shown.strip() == deployment.instructions(data, ())
    assert "--stream --run-config 'a=1 b=2'" in deployment.instructions(data, ("a=1", "b=2"))


def test_every_option_is_on_the_page() -> None:
    taken = {option for parameter in main.load("deploy-local").params for option in parameter.opts}
    table = PAGE.split("| option | what it sets |", 1)[1].split("\n\n", 1)[0]
    assert set(re.findall(r"`(--[\w-]+)`", table)) == taken - {"--help"}
    assert f"uv run flwr run . {NAME} --stream" in LINES
    assert "make deploy-local" in LINES
