# SPDX-License-Identifier: Apache-2.0
"""Containers of the manifests use options, files, variables, settings and Secrets that exist."""

from __future__ import annotations

import argparse
import os
import re
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
import yaml
from flwr.common.config import parse_config_args
from flwr.supercore.cli.flower_superexec import _parse_args
from flwr.superlink.cli.flower_superlink import _parse_args_run_superlink
from flwr.supernode.cli.flower_supernode import _parse_args_run_supernode
from support.manifests import K8S, KUBECTL, OVERLAYS, ROOT, Pod, containers, name, of_kind, project

from fl_app.config import ClientConfig, ServerConfig

PAGE = (ROOT / "docs" / "kubernetes.md").read_text()
BIN = Path(sys.executable).parent
each_overlay = pytest.mark.parametrize("overlay", OVERLAYS)

FLOWER: dict[str, Callable[[], argparse.ArgumentParser]] = {
    "flower-superlink": _parse_args_run_superlink,
    "flower-supernode": _parse_args_run_supernode,
    "flower-superexec": _parse_args,
}
OTHERS = ("mlflow", "nginx", "curl", "postgres")


def filled(text: str, values: dict[str, str]) -> str:
    """Put variables in as Kubernetes does; those that only a cluster knows become 0."""
    return re.sub(r"\$\((\w+)\)", lambda match: values.get(match[1], "0"), text)


def variables(container: dict[str, Any]) -> dict[str, str]:
    """The variables that have their values in the manifest."""
    values: dict[str, str] = {}
    for variable in container.get("env", []):
        if "value" in variable:
            values[variable["name"]] = filled(variable["value"], values)
    return values


def words(container: dict[str, Any]) -> list[str]:
    """Command and arguments with the variables put in."""
    written = [*container.get("command", []), *container.get("args", [])]
    return [filled(word, variables(container)) for word in written]


@each_overlay
def test_flower_s_programs_accept_these_arguments(overlay: str) -> None:
    started = {}
    for _, container, where in containers(overlay):
        program, *arguments = words(container) or [container["name"]]
        if program in FLOWER:
            started[where] = FLOWER[program]().parse_args(arguments)
        else:
            assert program in OTHERS, where
    node = started["supernode/supernode"]
    assert (node.isolation, node.host, node.insecure) == ("process", "127.0.0.1", False)
    assert started["supernode/superexec"].runtime_api_address == f"{node.host}:{node.port}"
    if overlay != "site":
        link = started["superlink/superlink"]
        assert (link.isolation, link.insecure) == ("process", False)
        assert link.enable_supernode_auth
        assert not started["serverapp/superexec"].insecure
        assert started["serverapp/superexec"].runtime_api_address == f"superlink:{link.port}"


def test_an_option_that_flower_does_not_have_is_an_error() -> None:
    with pytest.raises(SystemExit):
        FLOWER["flower-superlink"]().parse_args(["--isolation=process", "--enable-node-auth"])


@pytest.mark.parametrize("overlay", ["local", "production"])
def test_mlflow_accepts_these_arguments_and_variables(overlay: str) -> None:
    from mlflow import environment_variables
    from mlflow.cli import server

    (container,) = [c for _, c, where in containers(overlay) if where == "mlflow/mlflow"]
    context = server.make_context("server", words(container)[2:])
    assert (context.params["host"], context.params["port"]) == ("0.0.0.0", 5000)  # noqa: S104
    assert "mlflow:5000" in context.params["allowed_hosts"].split(",")
    (settings,) = [c for c in of_kind(overlay, "ConfigMap") if "mlflow-settings" in name(c)]
    given = {v["name"] for v in container["env"]} | set(settings["data"])
    options = {option.envvar for option in server.params if isinstance(option.envvar, str)}
    of_mlflow = {variable for variable in given if variable.startswith("MLFLOW_")}
    assert of_mlflow <= options | set(vars(environment_variables))
    assert {"MLFLOW_BACKEND_STORE_URI", "MLFLOW_ARTIFACTS_DESTINATION"} <= of_mlflow & options


@each_overlay
def test_a_variable_is_used_only_after_its_definition(overlay: str) -> None:
    for _, container, where in containers(overlay):
        known: set[str] = set()
        for variable in container.get("env", []):  # kustomize may put a patched one first
            assert set(re.findall(r"\$\((\w+)\)", variable.get("value", ""))) <= known, where
            known.add(variable["name"])
        for word in [*container.get("command", []), *container.get("args", [])]:
            assert set(re.findall(r"\$\((\w+)\)", word)) <= known, where


@each_overlay
def test_node_configs_are_what_the_app_reads(overlay: str) -> None:
    (container,) = [c for _, c, where in containers(overlay) if where == "supernode/supernode"]
    (given,) = [w for w in words(container) if w.startswith("--node-config=")]
    config = parse_config_args([given.removeprefix("--node-config=")])
    settings = ClientConfig.from_run_config({}, config)
    if overlay == "local":
        replicas = of_kind(overlay, "StatefulSet")
        (count,) = [s["spec"]["replicas"] for s in replicas if name(s) == "supernode"]
        assert settings.num_partitions == count
    else:
        assert settings.data == "/data/data.yaml"
        (runner,) = [c for _, c, where in containers(overlay) if where == "supernode/superexec"]
        assert "/data" in {mount["mountPath"] for mount in runner["volumeMounts"]}


@pytest.mark.parametrize("overlay", ["local", "production"])
def test_run_configs_are_settings_of_the_app(overlay: str) -> None:
    given = parse_config_args([str(K8S / "overlays" / overlay / "run-config.toml")])
    whole = {**project()["tool"]["flwr"]["app"]["config"], **given}
    config = ServerConfig.from_run_config(whole)
    assert config.continuous
    (service,) = [s for s in of_kind(overlay, "Service") if name(s) == "fl-server"]
    assert config.api.allowed_hosts == (name(service),)
    assert config.api.port == service["spec"]["ports"][0]["port"]
    server = next(c for pod, c, _ in containers(overlay) if pod.name == "serverapp")
    folder = str(PurePosixPath(config.api.token_file or "").parent)
    assert folder in {mount["mountPath"] for mount in server["volumeMounts"]}
    mlflow = variables(server)["FL_APP_MLFLOW_TRACKING_URI"]
    assert mlflow in {f"http://{name(s)}:5000" for s in of_kind(overlay, "Service")}


def paths(container: dict[str, Any]) -> Iterator[PurePosixPath]:
    """The absolute paths in its arguments and variables, but for its data."""
    written = [*words(container), *variables(container).values()]
    for word in written:
        for part in word.split("="):
            if part.startswith("/"):
                yield PurePosixPath(part)


def mount_of(container: dict[str, Any], path: PurePosixPath) -> dict[str, Any] | None:
    mounts = sorted(container.get("volumeMounts", []), key=lambda m: -len(m["mountPath"]))
    return next((m for m in mounts if path.is_relative_to(m["mountPath"])), None)


@each_overlay
def test_a_path_in_an_argument_or_a_variable_is_mounted(overlay: str) -> None:
    for pod, container, where in containers(overlay):
        for path in paths(container):
            mount = mount_of(container, path)
            assert mount is not None, (where, path)
            is_kept = not {"secret", "configMap"} & set(pod.volumes[mount["name"]])
            assert is_kept or mount["readOnly"], (where, path)


@each_overlay
def test_every_mount_has_its_volume_and_every_volume_its_mount(overlay: str) -> None:
    used: dict[str, set[str]] = {}
    volumes: dict[str, set[str]] = {}
    for pod, container, _ in containers(overlay):
        volumes[pod.name] = set(pod.volumes)
        mounts = {mount["name"] for mount in container.get("volumeMounts", [])}
        used[pod.name] = used.get(pod.name, set()) | mounts
    assert used == volumes


def references(overlay: str) -> Iterator[tuple[str, str, str]]:
    """Kind, name and key of everything that pods take from Secrets and ConfigMaps."""
    for pod, container, _ in containers(overlay):
        for source in container.get("envFrom", []):
            yield "ConfigMap", source["configMapRef"]["name"], ""
        for variable in container.get("env", []):
            if secret := variable.get("valueFrom", {}).get("secretKeyRef"):
                yield "Secret", secret["name"], secret["key"]
        for path in (*paths(container), *in_settings(overlay, pod)):
            mount = mount_of(container, path)
            if mount is not None:
                yield from _files(pod, mount, path)


def in_settings(overlay: str, pod: Pod) -> Iterator[PurePosixPath]:
    """The Secrets' files that the ConfigMaps which a pod mounts speak of."""
    mounted = {v["configMap"]["name"] for v in pod.volumes.values() if "configMap" in v}
    for settings in of_kind(overlay, "ConfigMap"):
        if name(settings) in mounted:
            for text in settings["data"].values():
                yield from map(PurePosixPath, re.findall(r"/run/secrets/[\w./-]+", text))


def _files(pod: Pod, mount: dict[str, Any], path: PurePosixPath) -> Iterator[tuple[str, str, str]]:
    volume = pod.volumes[mount["name"]]
    keys = [str(path.relative_to(mount["mountPath"]))]
    if "subPathExpr" in mount:
        assert mount["subPathExpr"] == "$(POD_NAME)"
        keys = [f"{pod.name}-{number}" for number in range(pod.owner["spec"]["replicas"])]
    for key in keys:
        if "secret" in volume:
            yield "Secret", volume["secret"]["secretName"], key
        if "configMap" in volume:
            yield "ConfigMap", volume["configMap"]["name"], key


def blocks(section: str, language: str = "bash") -> list[str]:
    """The fenced blocks of one section of the page."""
    text = re.split(rf"^## {section}$", PAGE, flags=re.MULTILINE)[1]
    text = re.split(r"^## ", text, flags=re.MULTILINE)[0]
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def made_by(block: str, home: Path) -> list[dict[str, Any]]:
    """Run a block with a kubectl that says what it would make instead of asking a cluster."""
    programs = home / "bin"
    programs.mkdir(exist_ok=True)
    stand_in = programs / "kubectl"
    stand_in.write_text(
        f'#!/bin/sh\necho ---\n[ "$1" = apply ] && exec {KUBECTL} kustomize "$3"\n'
        f'exec {KUBECTL} "$@" --dry-run=client -o yaml\n'
    )
    stand_in.chmod(0o755)
    places = f"{programs}{os.pathsep}{BIN}{os.pathsep}{os.environ['PATH']}"
    given = {"MLFLOW_DATABASE": "postgresql+psycopg://u:p@db:5432/mlflow"}
    given |= {"AWS_ACCESS_KEY_ID": "an-id", "AWS_SECRET_ACCESS_KEY": "a-key", "LC_ALL": "C"}
    done = subprocess.run(
        ["bash", "-O", "expand_aliases", "-euo", "pipefail", "-c", block.replace("uv run ", "")],
        check=False,
        cwd=ROOT,
        env={"PATH": places, "HOME": str(home), **given},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    written = re.sub(r"^written: .*$", "---", done.stdout, flags=re.MULTILINE)
    return [document for document in yaml.safe_load_all(written) if document]


@pytest.fixture(scope="module")
def secrets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """What the page's commands make, by overlay."""
    home = tmp_path_factory.mktemp("home")
    common, local, production = blocks("Secrets")
    alias = 'alias k="kubectl -n federated-learning"\n'
    made = made_by(common, home)
    for file in ("ca.crt", "node-1"):
        (home / file).write_bytes((home / "fl-app-keys" / file).read_bytes())
    *_, site = blocks("Production")
    return {
        "local": made + made_by(alias + local, home),
        "production": made + made_by(alias + production, home),
        "site": made_by(alias + site, home),
    }


@each_overlay
def test_the_page_makes_every_secret_that_is_used_and_no_other(
    overlay: str, secrets: dict[str, list[dict[str, Any]]]
) -> None:
    made = {
        (document["kind"], name(document)): set(document.get("data", {}))
        for document in (*secrets[overlay], *of_kind(overlay, "ConfigMap"))
        if document["kind"] in ("Secret", "ConfigMap")
    }
    wanted = set(references(overlay))
    for kind, who, key in wanted:
        assert (kind, who) in made, (kind, who)
        assert not key or key in made[kind, who], (who, key)
    assert set(made) == {(kind, who) for kind, who, _ in wanted}
    for document in secrets[overlay]:
        if document["kind"] == "Secret":
            assert document["metadata"]["namespace"] == "federated-learning"


def test_the_certificate_is_valid_for_the_names_that_are_used(
    secrets: dict[str, list[dict[str, Any]]], tmp_path: Path
) -> None:
    import base64

    (made,) = [s for s in secrets["local"] if name(s) == "superlink-tls"]
    for file, value in made["data"].items():
        (tmp_path / file).write_bytes(base64.b64decode(value))
    client = ssl.create_default_context(cafile=str(tmp_path / "ca.crt"))
    client.verify_flags |= ssl.VERIFY_X509_STRICT  # the default from Python 3.13 on
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server.load_cert_chain(tmp_path / "tls.crt", tmp_path / "tls.key")
    for host in ("superlink", "fleet-gateway", "localhost", "fleet.example.com"):
        shake_hands(client, server, host)
    with pytest.raises(ssl.SSLCertVerificationError):
        shake_hands(client, server, "mlflow")


def shake_hands(client: ssl.SSLContext, server: ssl.SSLContext, host: str) -> None:
    """Let both ends agree in memory."""
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        client.wrap_bio(back, there, server_hostname=host),
        server.wrap_bio(there, back, server_side=True),
    ]
    while ends:
        for end in list(ends):
            try:
                end.do_handshake()
                ends.remove(end)
            except ssl.SSLWantReadError:
                pass


def test_files_and_services_that_the_page_names_exist() -> None:
    for path in set(re.findall(r"deploy/[\w./-]+\w", PAGE)):
        assert (ROOT / path).exists(), path
    for path in set(re.findall(r"`((?:overlays|components)/[\w./-]+)`", PAGE)):
        assert (K8S / path).exists(), path
    kinds = {"service": "Service", "deployment": "Deployment", "cronjob": "CronJob"}
    for kind, who in set(re.findall(r"\b(service|deployment|cronjob)/([\w-]+)", PAGE)):
        assert who in [name(d) for d in of_kind("local", kinds[kind])], who
    for service, port in re.findall(r"port-forward service/([\w-]+) \d+:(\d+)", PAGE):
        (found,) = [s for s in of_kind("local", "Service") if name(s) == service]
        assert int(port) in [p["port"] for p in found["spec"]["ports"]]
