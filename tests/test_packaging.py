# SPDX-License-Identifier: Apache-2.0
"""What the package says of itself: ranges, extras, licences, types, citation."""

from __future__ import annotations

import re
import tomllib
from importlib.metadata import version
from pathlib import Path
from zipfile import ZipFile

import pytest
import yaml
from flwr.cli.constant import LOCAL_SUPERLINK_STARTUP_TIMEOUT
from flwr.supercore.exit.exit_code import ExitCode
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from support.environments import build_wheel
from support.flower import ROOT
from support.manifests import pinned, project

PACKAGES = ("fl_app", "registry/fl_registry", "models/fl_models")


def requirement(name: str) -> Requirement:
    (found,) = (
        each for each in map(Requirement, project()["project"]["dependencies"]) if each.name == name
    )
    return found


@pytest.mark.parametrize("name", ["flwr", "mlflow"])
def test_the_tested_set_is_in_the_range(name: str) -> None:
    allowed = requirement(name).specifier
    assert pinned()[name] in allowed
    assert version(name) in allowed


def test_examples_allow_the_same_flower() -> None:
    for file in (ROOT / "examples").glob("*/pyproject.toml"):
        needs = tomllib.loads(file.read_text())["project"]["dependencies"]
        (flower,) = (each for each in map(Requirement, needs) if each.name == "flwr")
        assert flower.specifier == requirement("flwr").specifier, file


def test_the_license_lists_every_file_that_is_agpl() -> None:
    listed = set(re.findall(r"^    (\S+\.py)$", (ROOT / "LICENSE").read_text(), re.MULTILINE))
    header = "# SPDX-License-Identifier: AGPL-3.0-or-later"
    folders = ("fl_app", "registry", "models", "tests", "benchmarks", "examples")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    agpl = {str(path.relative_to(ROOT)) for path in files if path.read_text().startswith(header)}
    assert listed == agpl


@pytest.mark.slow
def test_the_wheel_has_types_and_licences(tmp_path: Path) -> None:
    with ZipFile(build_wheel(tmp_path)) as wheel:
        names = wheel.namelist()
        (metadata,) = (wheel.read(n).decode() for n in names if n.endswith(".dist-info/METADATA"))
    for package in PACKAGES:
        assert f"{Path(package).name}/py.typed" in names
    tops = {name.split("/")[0] for name in names}
    assert tops == {"fl_app", "fl_registry", "fl_models", "fl_app-0.1.0.dist-info"}
    assert any(name.endswith("licenses/LICENSES/AGPL-3.0-or-later.txt") for name in names)
    extras = set(re.findall(r"^Provides-Extra: (\S+)$", metadata, re.MULTILINE))
    assert extras == {"simulation", "server", "yolo", "export", "postgres", "s3", "deploy"}
    core = [line for line in metadata.splitlines() if re.match("Requires-Dist: [^;]*$", line)]
    assert not [line for line in core if "==" in line or "ray" in line]


def test_the_citation_names_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == project()["project"]["version"]
    assert " AND ".join(citation["license"]) == project()["project"]["license"]


def test_python_s_range_is_that_of_the_classifiers() -> None:
    allowed = SpecifierSet(project()["project"]["requires-python"])
    named = re.findall(r"Python :: (3\.\d+)", " ".join(project()["project"]["classifiers"]))
    assert named == [f"3.{n}" for n in range(30) if f"3.{n}" in allowed]


def test_errors_name_the_ranges_of_the_metadata() -> None:
    places = {
        "flwr": "fl_app/flower_internals.py",
        "mlflow": "registry/fl_registry/mlflow/internals.py",
    }
    for name, file in places.items():
        named = re.findall(rf"{name}((?:[<>]=?\d+(?:\.\d+)+,?){{2}})", (ROOT / file).read_text())
        assert named
        assert {SpecifierSet(text) for text in named} == {requirement(name).specifier}


@pytest.mark.parametrize("readme", sorted((ROOT / "examples").glob("*/README.md")), ids=str)
def test_each_example_says_how_to_install_fl_app_and_how_to_run(readme: Path) -> None:
    text = readme.read_text()
    assert re.search(r"^uv run fl-app run", text, re.MULTILINE)
    assert "install `fl-app` from a clone" in text


def test_troubleshooting_knows_what_flower_ends_with() -> None:
    text = (ROOT / "docs" / "troubleshooting.md").read_text()
    codes = {value for name, value in vars(ExitCode).items() if isinstance(value, int)}
    for code in (608, 700, 701):
        assert code in codes, "Flower has given this failure another number"
        assert f"xit code {code}**" in text
    assert f"within {LOCAL_SUPERLINK_STARTUP_TIMEOUT:g}s" in text
