# SPDX-License-Identifier: Apache-2.0
"""deploy/compose.yaml: valid, started with options that exist, closed to others, as documented.

`support/compose_spec` has the schema of the Compose specification, which is Apache-2.0 as well.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import jsonschema
import pytest
import yaml
from flwr.cli.app import app as flwr
from flwr.cli.flower_config import read_superlink_connection
from flwr.common.config import parse_config_args
from flwr.supercore.cli.flower_superexec import _parse_args
from flwr.superlink.cli.flower_superlink import _parse_args_run_superlink
from flwr.supernode.cli.flower_supernode import _parse_args_run_supernode
from support.manifests import ROOT, containers, project
from typer.main import get_command

from fl_app.config import ClientConfig, ServerConfig

FILE = ROOT / "deploy" / "compose.yaml"
RUN_CONFIG = ROOT / "deploy" / "compose-run-config.toml"
SCHEMA = Path(__file__).parent / "support" / "compose_spec" / "compose-spec.json"
SECTION = (
    (ROOT / "docs" / "deployment.md")
    .read_text()
    .split("## On one machine, with Docker Compose\n")[1]
    .split("\n## ")[0]
)
BLOCKS = re.findall(r"```bash\n(.*?)```", SECTION, re.DOTALL)
LINES = "\n".join(BLOCKS).replace("\\\n", " ").splitlines()
FOLDER = "/compose"
VARIABLES = {"FL_APP_COMPOSE_FOLDER": FOLDER, "FL_APP_COMPOSE_USER": "1000:1000"}
Service = dict[str, Any]


def filled(text: str, variables: dict[str, str]) -> str:
    """The file with its variables replaced as Docker Compose does it."""

    def value(match: re.Match[str]) -> str:
        name, default = match["name"], match["default"]
        assert name in variables or default is not None, name
        return variables.get(name) or default

    return re.sub(r"\$\{(?P<name>\w+)(?::\?[^}]*|:-(?P<default>[^}]*))?\}", value, text)


def compose(**variables: str) -> dict[str, Any]:
    return dict(yaml.safe_load(filled(FILE.read_text(), {**VARIABLES, **variables})))


@pytest.fixture
def services() -> dict[str, Service]:
    return dict(compose()["services"])


def command(service: Service) -> list[str]:
    return [*service["entrypoint"], *service["command"]]


def secrets(service: Service) -> dict[str, str]:
    """A service's secrets: the path in the container, and the name."""
    used = [s if isinstance(s, dict) else {"source": s} for s in service.get("secrets", [])]
    return {s.get("target", f"/run/secrets/{s['source']}"): s["source"] for s in used}


def test_it_is_valid_by_the_specification() -> None:
    schema = json.loads(SCHEMA.read_text())
    jsonschema.validate(compose(), schema)
    wrong = compose()
    wrong["services"]["mlflow"]["read_onyl"] = True
    with pytest.raises(jsonschema.ValidationError, match="read_onyl"):
        jsonschema.validate(wrong, schema)


def test_docker_compose_reads_it() -> None:
    plugin = ["docker", "compose"]
    if (
        shutil.which("docker") is None
        or subprocess.run([*plugin, "version"], capture_output=True, check=False).returncode
    ):
        pytest.skip("docker compose is not installed")
    done = subprocess.run(
        [*plugin, "-f", str(FILE), "config", "--format", "json"],
        env={**os.environ, **VARIABLES},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["services"].keys() == compose()["services"].keys()


def test_the_folder_and_the_user_must_be_set() -> None:
    for name in VARIABLES:
        assert re.search(rf"\$\{{{name}:\?", FILE.read_text()), name


def test_images_are_those_of_the_manifests_and_name_no_registry(
    services: dict[str, Service],
) -> None:
    known = {container["image"] for _, container, _ in containers("local")}
    for name, service in services.items():
        assert service["image"] in known, name
        assert "." not in service["image"].split("/")[0].split(":")[0], name
        built = service.get("build")
        assert bool(built) == service["image"].startswith("fl-app"), name
        if built:
            assert (FILE.parent / built["context"]).resolve() == ROOT
            stages = (ROOT / built["dockerfile"]).read_text()
            assert f" AS {built['target']}\n" in stages


def test_flower_s_programs_accept_these_arguments(services: dict[str, Service]) -> None:
    parsers: dict[str, Callable[[], argparse.ArgumentParser]] = {
        "flower-superlink": _parse_args_run_superlink,
        "flower-supernode": _parse_args_run_supernode,
        "flower-superexec": _parse_args,
    }
    started = {}
    for name, service in services.items():
        if service.get("entrypoint", [""])[0] in parsers:
            program, *arguments = command(service)
            started[name] = parsers[program]().parse_args(arguments)
    link, server = started["superlink"], started["serverapp"]
    assert (link.isolation, link.insecure, link.enable_supernode_auth) == ("process", False, True)
    assert server.runtime_api_address == f"superlink:{link.port}"
    assert not server.insecure
    for number in (1, 2):
        node, runner = started[f"supernode-{number}"], started[f"clientapp-{number}"]
        assert (node.isolation, node.host, node.insecure) == ("process", "127.0.0.1", False)
        assert runner.runtime_api_address == f"{node.host}:{node.port}"
        assert services[f"clientapp-{number}"]["network_mode"] == f"service:supernode-{number}"
        config = ClientConfig.from_run_config({}, parse_config_args([node.node_config]))
        assert (config.partition_id, config.num_partitions) == (number - 1, 2)
        own = compose(**{f"FL_APP_NODE_CONFIG_{number}": 'data="/data/data.yaml"'})
        (word,) = [w for w in own["services"][f"supernode-{number}"]["command"] if "=data=" in w]
        given = parse_config_args([word.removeprefix("--node-config=")])
        assert ClientConfig.from_run_config({}, given).data == "/data/data.yaml"
        mounted = [v.split(":")[1] for v in services[f"clientapp-{number}"]["volumes"]]
        assert "/data" in mounted


def test_mlflow_accepts_its_arguments_and_variables(services: dict[str, Service]) -> None:
    from mlflow import environment_variables
    from mlflow.cli import server

    program, subcommand, *arguments = command(services["mlflow"])
    assert (program, subcommand) == ("mlflow", "server")
    context = server.make_context("server", arguments)
    assert "mlflow:5000" in context.params["allowed_hosts"].split(",")
    variables = services["mlflow"]["environment"]
    options = {option.envvar for option in server.params if isinstance(option.envvar, str)}
    named = {name for name in variables if name.startswith("MLFLOW_")}
    assert named <= options | set(vars(environment_variables))
    assert {"MLFLOW_BACKEND_STORE_URI", "MLFLOW_ARTIFACTS_DESTINATION"} <= named & options
    postgres = services["postgres"]["environment"]
    user, name = postgres["POSTGRES_USER"], postgres["POSTGRES_DB"]
    address = f"postgresql+psycopg://{user}@postgres:5432/{name}"
    assert variables["MLFLOW_BACKEND_STORE_URI"] == address


def test_the_gateway_s_configuration_finds_its_files(services: dict[str, Service]) -> None:
    gateway = services["fleet-gateway"]
    (volume,) = gateway["volumes"]
    source, target, mode = volume.split(":")
    text = (FILE.parent / source).read_text()
    assert target in gateway["command"]
    assert mode == "ro"
    assert set(re.findall(r"/run/secrets/[\w./-]+\w", text)) == set(secrets(gateway))
    assert "https://superlink:8000" in text


def test_a_container_may_do_nothing_but_its_work(services: dict[str, Service]) -> None:
    for name, service in services.items():
        assert service["user"] == VARIABLES["FL_APP_COMPOSE_USER"], name
        assert service["read_only"], name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert "/tmp" in service["tmpfs"], name  # noqa: S108 - a container's
        assert not {"privileged", "cap_add", "pid", "devices"} & set(service), name


def test_ports_are_open_on_this_machine_only(services: dict[str, Service]) -> None:
    published = {
        name: [port.rpartition(":")[0] for port in service["ports"]]
        for name, service in services.items()
        if "ports" in service
    }
    assert published == {
        "mlflow": ["127.0.0.1:5000"],
        "superlink": ["127.0.0.1:8000"],
        "serverapp": ["127.0.0.1:5001"],
        "fleet-gateway": ["127.0.0.1:8443"],
    }
    table = SECTION.split("| port on this machine |")[1].split("\n\n")[0]
    numbers = {port.rpartition(":")[2] for ports in published.values() for port in ports}
    assert set(re.findall(r"^\| (\d+) \|", table, re.MULTILINE)) == numbers


def test_supernodes_reach_the_gateway_and_nothing_else(services: dict[str, Service]) -> None:
    networks = compose()["networks"]
    joined = {n: set(s["networks"]) for n, s in services.items() if "networks" in s}
    assert {name for name, them in joined.items() if "nodes" in them} == {
        *("fleet-gateway", "supernode-1", "supernode-2"),
    }
    assert joined["supernode-1"] == joined["supernode-2"] == {"nodes"}
    assert {name for name, them in joined.items() if "database" in them} == {"postgres", "mlflow"}
    assert networks["nodes"]["internal"]
    assert networks["database"]["internal"]


def test_every_secret_is_a_file_and_is_used(services: dict[str, Service]) -> None:
    defined = compose()["secrets"]
    used: set[str] = set()
    for name, service in services.items():
        mounted = secrets(service)
        used |= set(mounted.values())
        variables = service.get("environment", {})
        written = [*service.get("command", []), *variables.values()]
        for path in re.findall(r"/run/secrets/[\w./-]+\w", " ".join(written)):
            assert path in mounted, (name, path)
        for variable, value in variables.items():
            secret = re.search("PASS|TOKEN|SECRET|KEY", variable)
            assert not secret or value.startswith("/run/secrets/"), (name, variable)
            assert not re.search(r"://[^\s/@]+:[^\s/@]+@", value), (name, variable)
    assert used == set(defined)
    assert all(set(secret) == {"file"} for secret in defined.values())
    assert [n for n in services if "node-1" in secrets(services[n]).values()] == ["supernode-1"]


def test_paths_that_are_written_are_in_the_folder(services: dict[str, Service]) -> None:
    for name, service in services.items():
        mounts = [volume.split(":")[:2] for volume in service.get("volumes", [])]
        targets = [*(target for _, target in mounts), *service["tmpfs"], *secrets(service)]
        for word in [*service.get("command", []), *service.get("environment", {}).values()]:
            path = PurePosixPath(word.rpartition("=")[2])
            if path.is_absolute():
                assert any(path.is_relative_to(target) for target in targets), (name, path)
        for source, _ in mounts:
            assert source.startswith((f"{FOLDER}/", "./k8s/")), (name, source)


def test_the_run_config_is_for_these_containers(services: dict[str, Service]) -> None:
    given = parse_config_args([str(RUN_CONFIG)])
    config = ServerConfig.from_run_config({**project()["tool"]["flwr"]["app"]["config"], **given})
    assert config.continuous
    assert config.api.allowed_hosts == ("serverapp",)
    assert services["serverapp"]["ports"] == [f"127.0.0.1:{config.api.port}:{config.api.port}"]
    assert config.api.token_file in secrets(services["serverapp"])
    address = services["serverapp"]["environment"]["FL_APP_MLFLOW_TRACKING_URI"]
    assert address == "http://mlflow:5000"


def test_the_documented_commands_make_the_folder(tmp_path: Path) -> None:
    script = BLOCKS[0].replace("uv run ", "")
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=tmp_path,
        env={
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": os.environ.get("PYTHONPATH", ""),
            "HOME": str(tmp_path),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "fl-app-compose"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    here = compose(FL_APP_COMPOSE_FOLDER=str(folder))
    for secret in here["secrets"].values():
        file = Path(secret["file"])
        public = file.suffix == ".crt"
        assert public or stat.S_IMODE(file.stat().st_mode) == 0o600, file
    volumes = [v for service in here["services"].values() for v in service.get("volumes", [])]
    sources = {volume.split(":")[0] for volume in volumes}
    assert all(Path(source).is_dir() for source in sources if source.startswith(str(folder)))
    *_, password = (folder / "secrets" / "pgpass").read_text().strip().split(":")
    assert password == (folder / "secrets" / "postgres-password").read_text().strip()


def test_the_other_documented_commands_exist(
    services: dict[str, Service], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    composed = [shlex.split(line) for line in LINES if line.startswith("docker compose")]
    assert [words[4] for words in composed] == ["up", "ps", "exec"]
    assert all(words[2:4] == ["-f", "deploy/compose.yaml"] for words in composed)
    assert composed[-1][5] in services
    for line in [line for line in LINES if line.startswith("uv run flwr")]:
        taken, name = get_command(flwr), "flwr"
        left = shlex.split(line)[3:]
        while hasattr(taken, "commands"):
            name, *left = left
            taken = taken.commands[name]
        assert taken.make_context(name, left).params["superlink"] == "compose"
    assert str(RUN_CONFIG.relative_to(ROOT)) in " ".join(LINES)
    (text,) = re.findall(r"```toml\n(.*?)```", SECTION, re.DOTALL)
    monkeypatch.setenv("FLWR_HOME", str(tmp_path))
    (tmp_path / "config.toml").write_text(text)
    connection = read_superlink_connection("compose")
    assert connection.address == "localhost:8000"
    assert not connection.insecure
