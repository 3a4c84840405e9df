# SPDX-License-Identifier: Apache-2.0
"""`flwr run` whose ServerApp is killed (kill -9), and the same `flwr run` again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.deployment import start, wait_until
from support.flower import Flower
from support.killed_app import LAST, ROUNDS
from support.small_apps import small_app

from fl_app.backlog import backlog
from fl_registry import ModelManager

pytestmark = [pytest.mark.slow, pytest.mark.chaos]


def test_the_same_flwr_run_goes_on_at_the_next_round(own: Flower, tmp_path: Path) -> None:
    app = small_app(
        tmp_path / "app",
        "killed",
        server="killed_app:server",
        client="killed_app:client",
        config="api-port = 0",
    )
    home = own.fl_app_home

    killed = start(own, app, "")
    wait_until((home / "died").exists, 180, "the kill")
    wait_until(lambda: not killed.processes(), 30, "the end of the killed server")
    assert backlog(home, "killed").rounds == 1
    (run,) = sessions(home)
    assert run.info.status == "RUNNING"

    printed = own.run(app)
    assert f"interrupted in round {LAST + 1} of {ROUNDS}" in printed
    rows = ModelManager(None, "killed", home=home).list_all_versions()
    assert [int(row["tags"]["round"]) for row in reversed(rows)] == list(range(1, ROUNDS + 1))
    assert {row["tags"]["session"] for row in rows} == {"1"}
    (run,) = sessions(home)
    assert run.info.status == "FINISHED"
    assert backlog(home, "killed").rounds == 0
    assert len({row["tags"]["flower_run_id"] for row in rows}) == 2


def sessions(home: Path) -> list[Any]:
    """The MLflow runs of the app's sessions."""
    client = ModelManager(None, "killed", home=home).client
    experiment = client.get_experiment_by_name("fl-app")
    return list(client.search_runs([experiment.experiment_id], "tags.session = '1'"))
