# SPDX-License-Identifier: Apache-2.0
"""The Dockerfile, which is not built here: its lines are compared with what they name."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from support.manifests import ROOT, containers, pinned, project

FOLDER = ROOT / "deploy" / "docker"
DOCKERFILE = FOLDER / "Dockerfile"
Instruction = tuple[str, str]


def stages() -> dict[str, list[Instruction]]:
    """The instructions of each stage; those before the first are under the empty name."""
    text = re.sub(r"^#.*\n", "", DOCKERFILE.read_text(), flags=re.MULTILINE)
    found: dict[str, list[Instruction]] = {"": []}
    for line in re.sub(r"\\\n\s*", "", text).splitlines():
        if line:
            word, rest = line.split(None, 1)
            if word == "FROM":
                found[rest.split(" AS ")[1]] = []
            found[list(found)[-1]].append((word, rest))
    return found


def values(stage: str, word: str) -> list[str]:
    return [rest for name, rest in stages()[stage] if name == word]


def test_hadolint_finds_nothing_wrong() -> None:
    hadolint = Path(sys.executable).parent / "hadolint"
    done = subprocess.run(
        [str(hadolint), str(DOCKERFILE)], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_its_base_is_flower_s_image_with_the_version_of_the_manifests() -> None:
    (image,) = values("", "ARG")
    tag = image.removeprefix("FLWR_IMAGE=flwr/superexec:")
    (link,) = {c["image"] for _, c, where in containers("local") if where == "superlink/superlink"}
    assert link == f"flwr/superlink:{tag}"
    assert tag.startswith(f"{pinned()['flwr']}-")
    for stage in ("wheel", "fl-app"):
        assert values(stage, "FROM") == [f"${{FLWR_IMAGE}} AS {stage}"]


def test_its_python_is_one_that_the_project_supports() -> None:
    lowest, below = re.findall(r"3\.(\d+)", project()["project"]["requires-python"])
    tags = re.findall(r"py3\.(\d+)|python:3\.(\d+)", DOCKERFILE.read_text())
    assert tags
    assert all(int(lowest) <= int(a or b) < int(below) for a, b in tags)


def test_all_files_of_the_wheel_are_copied() -> None:
    copied = {word for rest in values("wheel", "COPY") for word in rest.split()[:-1]}
    built = project()
    packages = built["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    wanted = {package.split("/")[0] for package in packages}
    wanted |= {built["project"]["readme"], "pyproject.toml"}
    wanted |= {pattern.split("/")[0] for pattern in built["project"]["license-files"]}
    assert copied == wanted


def test_the_context_has_what_is_copied_and_nothing_more() -> None:
    lines = (FOLDER / "Dockerfile.dockerignore").read_text().split()
    assert lines[0] == "*"
    let_in = {line[1:] for line in lines if line.startswith("!")}
    copied = {
        word
        for stage in ("wheel", "fl-app", "mlflow")
        for rest in values(stage, "COPY")
        for word in rest.split()[:-1]
    }
    assert let_in == copied
    assert all((ROOT / path).exists() for path in copied)


def test_the_app_s_wheel_is_installed_with_its_extras() -> None:
    (install,) = [rest for rest in values("fl-app", "RUN") if "uv pip install" in rest]
    (extras,) = re.findall(r"fl-app\[([\w,]+)\] @ file://\$\(echo /tmp/wheel/fl_app-", install)
    assert set(extras.split(",")) == {"server", "yolo", "postgres"}
    assert set(extras.split(",")) <= set(project()["project"]["optional-dependencies"])
    assert values("fl-app", "COPY") == ["pyproject.toml ./"]  # uv reads the exact versions there
    assert values("fl-app", "ENTRYPOINT") == ['["flower-superexec"]']


@pytest.mark.parametrize(
    ("stage", "image"), [("fl-app", "fl-app:0.1.0"), ("mlflow", "fl-app-mlflow:0.1.0")]
)
def test_an_image_s_user_is_the_one_of_its_pods(stage: str, image: str) -> None:
    user = values(stage, "USER")[-1]
    for pod, container, where in containers("local"):
        if container["image"] == image:
            of_pod = pod.spec["securityContext"]
            assert user == f"{of_pod['runAsUser']}:{of_pod['runAsGroup']}", where


def test_mlflow_s_packages_have_the_versions_that_are_tested() -> None:
    lines = (FOLDER / "mlflow-requirements.txt").read_text().splitlines()
    found = dict(line.split("==") for line in lines if not line.startswith("#"))
    assert {"mlflow", "psycopg", "psycopg-binary", "boto3"} <= set(found)
    assert found.items() <= pinned().items()
    (install,) = [rest for rest in values("mlflow", "RUN") if "pip install" in rest]
    assert "--no-deps -r /tmp/mlflow-requirements.txt" in install
