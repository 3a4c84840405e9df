# SPDX-License-Identifier: Apache-2.0
"""What the README says of hooks, run as it stands there."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.local_grid import LocalGrid, add_one, model

from fl_registry import InMemoryTracker, ModelManager

README = Path(__file__).parents[2] / "README.md"


def test_the_snippet_runs_and_hears_of_a_rollback(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    section = README.read_text().split("\n## Hooks\n", 1)[1].split("\n## ", 1)[0]
    snippet = section.split("```python\n", 1)[1].split("```", 1)[0]
    names: dict[str, Any] = {}
    exec(compile(snippet, "README.md", "exec"), names)  # noqa: S102 - our own README
    strategy, theirs = names["strategy"], ModelManager()
    strategy.setup = replace(strategy.setup, tracker=InMemoryTracker(), artifacts=())
    for start, version in enumerate("12"):
        strategy.start(LocalGrid(add_one), model(start), num_rounds=1)
        theirs.promote_to_production(version)
    theirs.rollback(actor="Ada", reason="it misses ships")
    strategy.setup.hooks.look()
    strategy.setup.hooks.flush(20)
    assert capsys.readouterr().out == "Ada brought version 1 back: it misses ships\n"
