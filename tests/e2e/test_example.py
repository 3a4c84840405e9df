# SPDX-License-Identifier: Apache-2.0
"""The examples' own commands, in an environment that has neither PyTorch nor Ultralytics."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from flower import OWN_ENVIRONMENT, ROOT, Flower

from fl_app.retraining import MonitorStore
from fl_app.retraining.store import default_url
from registry import ModelManager

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("example")]

EXAMPLES = ROOT / "examples"


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Flower]:
    """Flower in an environment that uv makes from the examples' own pyproject files."""
    folder = tmp_path_factory.mktemp("bare")
    environment = {"UV_PROJECT_ENVIRONMENT": str(folder / "venv"), "VIRTUAL_ENV": ""}
    flower = Flower(folder, {**OWN_ENVIRONMENT, **environment})
    flower.environment["PATH"] = flower.environment["PATH"].split(":", 1)[1]
    yield flower
    flower.stop()


def run_as_written(bare: Flower, example: str) -> str:
    """Run the commands of an example's README in its folder; what they printed."""
    folder = EXAMPLES / example
    block = (folder / "README.md").read_text().split("```bash\n", 1)[1].split("```", 1)[0]
    return bare.command("bash", "-euo", "pipefail", "-c", block, cwd=folder).stdout


def test_the_digits_reach_nine_in_ten(bare: Flower) -> None:
    printed = run_as_written(bare, "sklearn-digits")
    rows = ModelManager(None, "digits", home=bare.fl_app_home).list_all_versions()
    assert [row["tags"]["round"] for row in rows] == ["5", "4", "3", "2", "1"]
    assert rows[0]["metrics"]["accuracy"] > 0.9
    assert "Staging" in {row["stage"] for row in rows}
    assert "accuracy 0.9" in printed


def test_a_clinic_s_new_scanner_is_noticed(bare: Flower) -> None:
    bare.stop()  # a SuperLink knows only the app's packages that were there when it began
    printed = run_as_written(bare, "sklearn-clinics")
    (request,) = MonitorStore(default_url(bare.fl_app_home)).history()
    assert request["kind"] == "drift"
    assert "in round 3 the data moved" in str(request["reason"])
    assert "mean radius higher" in str(request["reason"])
    assert "mean radius higher" in " ".join(printed.split())


def test_that_environment_has_no_yolo(bare: Flower) -> None:
    names = "torch", "torchvision", "ultralytics"
    code = f"import importlib.util as u; print([n for n in {names} if u.find_spec(n)])"
    python = str(bare.folder / "venv" / "bin" / "python")
    assert bare.command(python, "-c", code, cwd=bare.folder).stdout.strip() == "[]"
