# SPDX-License-Identifier: Apache-2.0
"""What docs/hooks.md says of hooks, run as it stands there."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from support.docs import run_block
from support.local_grid import LocalGrid, add_one, model

from fl_registry import InMemoryTracker, ModelManager


def test_the_snippet_runs_and_hears_of_a_rollback(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = run_block("hooks.md", "page_me")
    strategy, theirs = names["strategy"], ModelManager()
    strategy.setup = replace(strategy.setup, tracker=InMemoryTracker(), artifacts=())
    for start, version in enumerate("12"):
        strategy.start(LocalGrid(add_one), model(start), num_rounds=1)
        theirs.promote_to_production(version)
    theirs.rollback(actor="Ada", reason="it misses ships")
    strategy.setup.hooks.look()
    strategy.setup.hooks.flush(20)
    assert capsys.readouterr().out == "Ada brought version 1 back: it misses ships\n"
