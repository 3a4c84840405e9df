# SPDX-License-Identifier: Apache-2.0
"""The tours: each command as it stands, with the output that is shown, but for numbers."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from support.docs import blocks, page

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
    """Eight versions, of which the last waits for approval, as after the first run."""
    for name, value in {
        "COLUMNS": "100",
        "TTY_COMPATIBLE": "1",
        "TERM": "dumb",
        "LINES": "50",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("getpass.getuser", lambda: "ada")
    manager = ModelManager()
    for number in range(1, 9):
        path = tmp_path / f"{number}.safetensors"
        save_weights({"w": np.full(3, number, dtype=np.float32)}, path)
        metrics = {"mAP50": number / 9, "mAP50/circle": number / 8, "train/loss": 9.0 - number}
        manager.save_model_version(path, metrics=metrics, tags={"metric": "mAP50"})
    manager.archive_version("7", reason="replaced")
    manager.promote_to_staging("8")
    manager.set_version_tags("8", {"approval": "pending"})
    return manager


@pytest.mark.parametrize(("name", "length"), [("README.md", 3)])
def test_a_tour_goes_as_it_is_shown(
    trained: ModelManager, capsys: pytest.CaptureFixture[str], name: str, length: int
) -> None:
    steps = tour(name)
    assert len(steps) >= length
    for words, shown in steps:
        with pytest.raises(SystemExit) as ended:
            main.main(words)
        told = capsys.readouterr()
        assert not ended.value.code, told
        lines = [without_numbers(line) for line in told.out.splitlines()]
        expected = [without_numbers(line) for line in shown if line != "..."]
        assert expected
        assert [line for line in lines if line in expected] == expected, words
    assert trained.get_latest_version("Production") == "8"
