# SPDX-License-Identifier: Apache-2.0
"""The tours: each command as it stands, with the output that is shown, but for numbers."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from support.docs import blocks, page
from support.terminal import as_terminal

from fl_app.cli import main
from fl_registry import ModelManager
from fl_registry.files.weights import save_weights

NUMBER = r"[+-]?\d[\d.:-]*"


def tour(name: str) -> list[tuple[list[str], list[str]]]:
    """Each command, as words after `uv run fl-app`, and the lines that are shown of its output."""
    block = "".join(blocks(page(name), "console"))
    steps = [step.splitlines() for step in block.split("$ uv run fl-app ")[1:]]
    return [(shlex.split(first), [line for line in shown if line]) for first, *shown in steps]


def without_numbers(line: str) -> str:
    line = re.sub(r"\b[0-9a-f]{32}\b", "ID", line)
    return " ".join(re.sub(NUMBER, "N", line).split())


@pytest.fixture
def trained(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModelManager:
    """Eight versions, as after the first run."""
    as_terminal(monkeypatch, 100)
    monkeypatch.setattr("getpass.getuser", lambda: "ada")
    manager = ModelManager()
    for number in range(1, 9):
        path = tmp_path / f"{number}.safetensors"
        save_weights({"w": np.full(3, number, dtype=np.float32)}, path)
        metrics = {"mAP50": number / 9, "mAP50/circle": number / 8, "train/loss": 9.0 - number}
        manager.save_model_version(path, metrics=metrics, tags={"metric": "mAP50"})
    return manager


def wait_for_approval(manager: ModelManager, version: str) -> None:
    manager.promote_to_staging(version)
    manager.set_version_tags(version, {"approval": "pending"})


def second_session(manager: ModelManager, tmp_path: Path) -> None:
    """What `fl-app run` does in the tour: the request is served, and version 16 goes to Staging."""
    for number in range(9, 17):
        path = tmp_path / f"{number}.safetensors"
        save_weights({"w": np.full(3, number, dtype=np.float32)}, path)
        manager.save_model_version(path, metrics={"mAP50": 0.9}, tags={"metric": "mAP50"})
    manager.promote_to_staging("16")


@pytest.mark.parametrize(
    ("name", "waits", "served", "length"),
    [("README.md", "8", "8", 3), ("tutorial.md", "7", "7", 10)],
)
def test_a_tour_goes_as_it_is_shown(
    *,
    trained: ModelManager,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    name: str,
    waits: str,
    served: str,
    length: int,
) -> None:
    wait_for_approval(trained, waits)
    steps = tour(name)
    assert len(steps) >= length
    for words, shown in steps:
        if words == ["run"]:
            second_session(trained, tmp_path)
            continue
        with pytest.raises(SystemExit) as ended:
            main.main(words)
        told = capsys.readouterr()
        assert not ended.value.code, told
        lines = [without_numbers(line) for line in told.out.splitlines()]
        expected = [without_numbers(line) for line in shown if line != "..."]
        assert expected
        assert [line for line in lines if line in expected] == expected, words
    assert trained.get_latest_version("Production") == served
