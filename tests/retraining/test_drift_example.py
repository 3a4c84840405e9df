# SPDX-License-Identifier: Apache-2.0
"""The example with tables, in one process: its mod, its monitor, and the lines its README names."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Context, Message, RecordDict
from support.local_grid import LocalGrid

from fl_app import RetrainingManager

EXAMPLE = Path(__file__).parents[2] / "examples" / "sklearn-clinics"


def context(node: int, **run_config: Any) -> Context:
    config: dict[str, Any] = {"partition-id": node, "num-partitions": 2}
    return Context(
        run_id=7, node_id=node, node_config=config, state=RecordDict(), run_config=run_config
    )


@pytest.mark.slow
@pytest.mark.parametrize("new_scanner", [3, 0])
def test_a_new_scanner_is_named_and_without_one_there_is_nothing(
    monkeypatch: pytest.MonkeyPatch, new_scanner: int
) -> None:
    monkeypatch.syspath_prepend(EXAMPLE)
    from clinics_app import client_app, server_app

    settings = {"num-server-rounds": 4, "new-scanner-in-round": new_scanner}

    def answer(node: int, message: Message) -> RecordDict:
        return client_app.app(message, context(node, **settings)).content

    server_app.app(LocalGrid(answer, [0, 1]), context(0, **settings))
    monitor = RetrainingManager(model="clinics")
    assert monitor.drift.checks == 2  # the first round is the reference, the last too few
    reasons = [entry["reason"] for entry in monitor.trigger_history]
    assert len(reasons) == (1 if new_scanner else 0)
    for reason in reasons:
        assert "in round 3 the data moved" in reason
        assert "radius higher" in reason or "perimeter higher" in reason
        assert "2 of 2 nodes" in reason


def test_the_client_loads_nothing_of_the_server_s() -> None:
    heavy = ("torch", "ultralytics", "mlflow", "sqlalchemy", "matplotlib", "scipy.stats")
    code = (
        "import sys; import fl_app.client.mods.data_summary;"
        f"print([m for m in {heavy} if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=EXAMPLE
    )
    assert done.stdout.strip() == "[]"


def test_the_readme_s_lines_are_the_client_s() -> None:
    readme = (EXAMPLE / "README.md").read_text()
    client = (EXAMPLE / "clinics_app" / "client_app.py").read_text().splitlines()
    added = [line[1:] for line in readme.splitlines() if line.startswith("+")]
    assert len(added) == 2
    assert all(line in client for line in added)
