# SPDX-License-Identifier: Apache-2.0
"""The examples' own commands, one after another, each in what uv makes of its pyproject."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from support.flower import ROOT, Flower

from fl_app.retraining import MonitorStore
from fl_app.retraining.memory.store import default_url
from fl_registry import ModelManager
from fl_registry.files.weights import load_weights

pytestmark = pytest.mark.slow

EXAMPLES = ROOT / "examples"


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Flower]:
    """Flower whose commands see the environment in ``folder/venv`` and not that of the tests.

    There is one folder for all, whose files Python compiles once; `uv run` makes it exactly what
    the pyproject of each example asks for.
    """
    folder = tmp_path_factory.mktemp("bare")
    environment = {"UV_PROJECT_ENVIRONMENT": str(folder / "venv"), "VIRTUAL_ENV": ""}
    flower = Flower(folder, environment)
    flower.environment["PATH"] = flower.environment["PATH"].split(":", 1)[1]
    yield flower
    flower.stop()


def run_as_written(flower: Flower, example: str) -> str:
    """Run the commands of an example's README in its folder; what they printed.

    The SuperLink of the example before is up, and knows only the packages that were there then.
    """
    folder = EXAMPLES / example
    block = (folder / "README.md").read_text().split("```bash\n", 1)[1].split("```", 1)[0]
    return flower.command("bash", "-euo", "pipefail", "-c", block, cwd=folder).stdout


def versions(flower: Flower, model: str, rounds: int) -> list[dict[str, Any]]:
    """A model's versions, the newest first: one for each round, the best of them in Staging."""
    rows = ModelManager(None, model, home=flower.fl_app_home).list_all_versions()
    assert [row["tags"]["round"] for row in rows] == [str(n) for n in range(rounds, 0, -1)]
    (waiting,) = (row for row in rows if row["stage"] == "Staging")
    assert waiting["metrics"]["accuracy"] == max(row["metrics"]["accuracy"] for row in rows)
    return rows


def installed(flower: Flower, *names: str) -> dict[str, str]:
    """Where those of the packages are that the environment has."""
    code = (
        "import importlib.util as u, json, sys;"
        "found = {n: u.find_spec(n) for n in sys.argv[1:]};"
        "print(json.dumps({n: s.origin for n, s in found.items() if s}))"
    )
    python = str(flower.folder / "venv" / "bin" / "python")
    printed = flower.command(python, "-c", code, *names, cwd=flower.folder).stdout
    return dict(json.loads(printed))


def test_the_digits_need_no_yolo(bare: Flower) -> None:
    printed = run_as_written(bare, "sklearn-digits")
    rows = versions(bare, "digits", rounds=5)
    assert rows[0]["metrics"]["accuracy"] > 0.9
    assert "accuracy 0.9" in printed
    found = installed(bare, "fl_app", "torch", "torchvision", "ultralytics", "cv2")
    assert list(found) == ["fl_app"]


def test_a_clinic_s_new_scanner_is_noticed(bare: Flower) -> None:
    printed = run_as_written(bare, "sklearn-clinics")
    (request,) = MonitorStore(default_url(bare.fl_app_home), "clinics").requests.history()
    assert request["kind"] == "drift"
    assert "in round 3 the data moved" in str(request["reason"])
    assert "radius higher" in str(request["reason"]) or "perimeter higher" in str(request["reason"])
    assert "in round 3 the data moved" in " ".join(printed.split())
    assert list(installed(bare, "fl_app", "torch", "ultralytics")) == ["fl_app"]


def test_differential_privacy_inside_costs_what_its_readme_says(bare: Flower) -> None:
    printed = run_as_written(bare, "dp-digits")
    rows = versions(bare, "dp-digits", rounds=10)
    assert rows[0]["metrics"]["accuracy"] > 0.87  # ten seeds: 0.892 to 0.917
    (told,) = (line for line in printed.splitlines() if "after 10 releases" in line)
    assert "epsilon=6.236180 at delta=0.001" in told
    row = "| `2.0` (default) | 6.24 | 0.903 (0.892 to 0.917) |"
    assert row in (EXAMPLES / "dp-digits" / "README.md").read_text()


def test_fedadam_inside_trains_a_network_in_pytorch(bare: Flower) -> None:
    run_as_written(bare, "torch-fedadam")
    rows = versions(bare, "digits-cnn", rounds=5)
    assert rows[0]["metrics"]["accuracy"] > 0.8
    store = ModelManager(None, "digits-cnn", home=bare.fl_app_home)
    weights = load_weights(store.weights_path(rows[0]["version"]))
    assert {name: str(array.dtype) for name, array in weights.items()} == dict.fromkeys(
        ["0.weight", "0.bias", "2.weight", "2.bias", "6.weight", "6.bias"], "float32"
    )
