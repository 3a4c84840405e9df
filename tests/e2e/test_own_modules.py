# SPDX-License-Identifier: Apache-2.0
"""Apps whose own modules are called `models` and `registry`, and the bundle by itself."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.environments import environment_without_fl_app, flower_in, install_wheel
from support.flower import Flower
from support.shipped_app import shipped_app
from support.small_apps import small_app

from fl_registry import ModelManager

pytestmark = pytest.mark.slow

MODELS = """import numpy as np


def first():
    return [np.zeros((2, 3))]


def score(arrays):
    return float(np.tanh(arrays[0]).mean())
"""


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment where fl-app is not installed."""
    return environment_without_fl_app(tmp_path_factory.mktemp("bare") / "venv")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Flower]:
    """Flower in an environment where fl-app is installed from its wheel."""
    folder = tmp_path_factory.mktemp("installed")
    programs = environment_without_fl_app(folder / "venv")
    install_wheel(folder / "venv", folder / "wheels")
    flower = flower_in(programs, folder / "flower")
    yield flower
    flower.stop()


@pytest.mark.parametrize("form", ["folders", "files"])
def test_an_app_keeps_its_own_modules(installed: Flower, tmp_path: Path, form: str) -> None:
    name = f"own-{form}"
    app = small_app(
        tmp_path / "app", name, server="own_modules_app:server", client="own_modules_app:client"
    )
    for module, text in (("models", MODELS), ("registry", f'NAME = "{name}"\n')):
        path = app / (f"{module}.py" if form == "files" else f"{module}/__init__.py")
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    installed.run(app)
    store = ModelManager(None, name, home=installed.fl_app_home)
    assert [row["version"] for row in store.list_all_versions()] == ["2", "1"]
    assert store.get_version("2").metrics["accuracy"] == pytest.approx(0.964, abs=0.001)


def test_the_bundle_runs_where_fl_app_is_not_installed(bare: Path, tmp_path: Path) -> None:
    flower = flower_in(bare, tmp_path / "flower")
    missing = flower.command("python", "-c", "import fl_registry", cwd=tmp_path, ok=False)
    assert "No module named 'fl_registry'" in missing.stdout
    try:
        flower.run(shipped_app(tmp_path / "app"), "num-server-rounds=1 image-size=32")
    finally:
        flower.stop()
    store = ModelManager(None, "fl-global-model", home=flower.fl_app_home)
    assert store.get_version("1").metrics["mAP50"] >= 0
