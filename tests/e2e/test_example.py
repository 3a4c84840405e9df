# SPDX-License-Identifier: Apache-2.0
"""The drop-in example in an environment of its own, which has neither PyTorch nor Ultralytics."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from flower import OWN_ENVIRONMENT, ROOT, Flower

from registry import ModelManager

pytestmark = pytest.mark.slow

EXAMPLE = ROOT / "examples" / "sklearn-digits"


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Flower]:
    """Flower in the example's environment, made by uv from the example's own pyproject."""
    folder = tmp_path_factory.mktemp("digits")
    environment = {"UV_PROJECT_ENVIRONMENT": str(folder / "venv"), "VIRTUAL_ENV": ""}
    flower = Flower(folder, {**OWN_ENVIRONMENT, **environment})
    flower.environment["PATH"] = flower.environment["PATH"].split(":", 1)[1]
    yield flower
    flower.stop()


def test_the_example_s_own_commands_reach_nine_in_ten(digits: Flower) -> None:
    block = (EXAMPLE / "README.md").read_text().split("```bash\n", 1)[1].split("```", 1)[0]
    done = digits.command("bash", "-euo", "pipefail", "-c", block, cwd=EXAMPLE)
    rows = ModelManager(None, "digits", home=digits.fl_app_home).list_all_versions()
    assert [row["tags"]["round"] for row in rows] == ["5", "4", "3", "2", "1"]
    assert rows[0]["metrics"]["accuracy"] > 0.9
    assert "Staging" in {row["stage"] for row in rows}
    assert "accuracy 0.9" in done.stdout


def test_that_environment_has_no_yolo(digits: Flower) -> None:
    names = "torch", "torchvision", "ultralytics"
    code = f"import importlib.util as u; print([n for n in {names} if u.find_spec(n)])"
    python = Path(digits.environment["UV_PROJECT_ENVIRONMENT"]) / "bin" / "python"
    assert digits.command(str(python), "-c", code, cwd=EXAMPLE).stdout.strip() == "[]"
