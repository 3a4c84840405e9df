# SPDX-License-Identifier: Apache-2.0
"""The wheel beside the oldest and the newest Flower that its metadata allow, as pip resolves them.

Each in a fresh environment: the scikit-learn example by `flwr run`, a session over a SuperLink with
two SuperNodes, and all of Flower's strategies. The newest is what all other tests run on, so its
environment is resolved each time and used in `make nightly` only.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import settings
from support.deployment import wait_until
from support.environments import build_wheel
from support.flower import OWN_ENVIRONMENT, ROOT, Flower, free_port

from fl_app.deploy.processes import answers
from fl_registry import ModelManager

pytestmark = pytest.mark.slow

EXAMPLE = ROOT / "examples" / "sklearn-digits"
OLDEST, NEWEST = "1.40.*", "1.42.0"
NIGHTLY = settings().max_examples > 100
TESTS = ["tests/strategy/test_shipped_strategies.py"]


@pytest.fixture(
    scope="module",
    params=[OLDEST, pytest.param(NEWEST, marks=pytest.mark.skipif(not NIGHTLY, reason="nightly"))],
)
def fresh(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Flower]:
    """Flower of a version, in an environment where pip has resolved it beside the wheel."""
    folder = tmp_path_factory.mktemp("flower-version")
    wheel = build_wheel(folder)
    flower = Flower(folder, {**OWN_ENVIRONMENT, "VIRTUAL_ENV": "", "PYTHONPATH": ""})
    flower.command("uv", "venv", "--no-config", str(folder / "venv"), cwd=folder)
    needs = [f"{wheel}[simulation,server]", f"flwr=={request.param}", "scikit-learn", "pytest"]
    install = ["uv", "pip", "install", "--no-config", "--python", str(folder / "venv")]
    flower.command(*install, *needs, "hypothesis", cwd=folder)
    flower.environment["PATH"] = f"{folder / 'venv' / 'bin'}:{flower.environment['PATH']}"
    shown = flower.command("python", "-c", "import flwr; print(flwr.__version__)", cwd=folder)
    assert shown.stdout.strip().startswith(request.param.rstrip("*"))
    yield flower
    flower.stop()


def versions(flower: Flower) -> list[dict[str, str]]:
    listed = flower.command("fl-app", "versions", "--name", "digits", "--json", cwd=flower.folder)
    return list(json.loads(listed.stdout[listed.stdout.index("[") :]))


def test_a_simulation(fresh: Flower) -> None:
    fresh.run(EXAMPLE, "num-server-rounds=2")
    rows = versions(fresh)
    assert [row["version"] for row in rows] == ["2", "1"]
    assert "Staging" in {row["stage"] for row in rows}


def test_a_session_over_a_superlink_with_two_supernodes(fresh: Flower, tmp_path: Path) -> None:
    port = free_port()
    address, before = f"127.0.0.1:{port}", len(versions(fresh))
    links = ["flower-superlink", "--insecure", "--host", "127.0.0.1", "--port", str(port)]
    node = ["flower-supernode", "--insecure", "--superlink", address, "--host", "127.0.0.1"]
    commands = [[*links, "--database", str(tmp_path / "state.db")]]
    for number in range(2):
        config = f"partition-id={number} num-partitions=2"
        commands.append([*node, "--port", str(free_port()), "--node-config", config])
    with ExitStack() as stack:
        for number, command in enumerate(commands):
            log = stack.enter_context((tmp_path / f"{number}.log").open("wb"))
            process = subprocess.Popen(
                command, env=fresh.environment, cwd=tmp_path, stdout=log, stderr=log
            )
            stack.callback(process.wait)
            stack.callback(process.terminate)
            if number == 0:
                wait_until(lambda: answers(f"http://{address}/health"), 120, "the SuperLink")
            assert process.poll() is None
        config = fresh.folder / "flwr" / "config.toml"
        text = config.read_text()
        table = f'\n[superlink.remote]\naddress = "{address}"\ninsecure = true\n'
        config.write_text(text + table)
        run = ["flwr", "run", str(EXAMPLE), "remote", "--stream"]
        done = fresh.command(*run, "--run-config", "num-server-rounds=1", cwd=tmp_path)
        found = re.search(r"started run (\d+)", done.stdout)
        assert found, done.stdout[-4000:]
        config.write_text(text)
    rows = versions(fresh)
    assert len(rows) == before + 1, done.stdout[-4000:]
    nodes = ModelManager(None, "digits", home=fresh.fl_app_home).list_all_versions()[0]
    assert json.loads(nodes["tags"]["nodes"])


def test_the_strategies(fresh: Flower) -> None:
    command = ["python", "-m", "pytest", "-q", "-p", "no:cacheprovider", *TESTS]
    done = fresh.command(*command, "--confcutdir", str(ROOT / "tests"), cwd=ROOT)
    assert re.search(r"\d+ passed", done.stdout), done.stdout[-4000:]


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
def test_the_wheel_resolves_beside_it(version: str, tmp_path: Path) -> None:
    target = ["--python-version", "3.11", "--no-config", "--quiet", "-"]
    needs = f"{build_wheel(tmp_path)}\nflwr=={version}\nboto3\nnumpy>=2\nscikit-learn\n"
    done = subprocess.run(
        ["uv", "pip", "compile", *target], input=needs, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert re.search(rf"^flwr=={version.rstrip('*')}", done.stdout, re.MULTILINE)
