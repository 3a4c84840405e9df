# SPDX-License-Identifier: Apache-2.0
"""What docs/gates.md says of the registry's history, run as it stands there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from support.docs import run_block

from fl_registry import ModelManager


def test_the_snippet_on_the_journal_runs(
    weights: Callable[[float], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    manager = ModelManager()
    for number in range(1, 15):
        manager.save_model_version(weights(number))
    for version in "12":
        manager.promote_to_production(version, reason="better")
    run_block("gates.md", "manager.history()")
    said = capsys.readouterr().out
    assert "promote 1 better" in said
    assert "promote 2 better" in said
    assert "follow one another: 2" in said
    assert "moved by others: ()" in said
    assert "would remove: ('3', '4')" in said
