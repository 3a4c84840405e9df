# SPDX-License-Identifier: Apache-2.0
"""Too few nodes, all nodes failing, one that hangs: what becomes of the run on a SuperLink."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.deployment import WaitingRun, deployment, start, wait_until
from support.flower import Flower
from support.small_apps import small_app

from fl_registry import ModelManager

pytestmark = [pytest.mark.slow, pytest.mark.chaos]


def finished(flower: Flower, app: Path, case: str, superlink: str) -> tuple[WaitingRun, str]:
    """Run a case to its end; the run and its status."""
    run = start(flower, app, f"case='{case}'", superlink)
    status: str = wait_until(
        lambda: found if "finished:" in (found := run.status()) else "", 120, f"the end of {case}"
    )
    return run, status


def mlflow_run(flower: Flower, run: WaitingRun) -> tuple[str, dict[str, str]]:
    """Status and tags of the run's one session."""
    client = ModelManager(home=flower.fl_app_home).client
    experiment = client.get_experiment_by_name("fl-app")
    (session,) = client.search_runs(
        [experiment.experiment_id], f"tags.flower_run_id = '{run.run_id}'"
    )
    return session.info.status, session.data.tags


def test_what_becomes_of_a_run_that_cannot_go_on(own: Flower, tmp_path: Path) -> None:
    app = small_app(
        tmp_path / "app",
        "stuck",
        server="stuck_server:app",
        client="stuck_client:app",
        config='case = ""\napi-port = 0',
    )
    with deployment(own, [Path("0"), Path("1")]) as superlink:
        run, status = finished(own, app, "too few nodes", superlink)
        assert "finished:failed" in status
        log = " ".join(run.log().split())
        assert "TooFewNodesError: Too few nodes to train since" in log
        assert "2 connected, 3 needed, never more than 2 at once; start SuperNodes" in log
        assert mlflow_run(own, run)[0] == "FAILED"

        run, status = finished(own, app, "all fail", superlink)
        assert "finished:failed" in status
        log = " ".join(run.log().split())
        assert "3 rounds in a row gave no model" in log
        assert log.count("[ROUND ") == 3
        ended, tags = mlflow_run(own, run)
        assert ended == "FAILED"
        assert [name for name in tags if name.startswith("failed_round.")] == [
            f"failed_round.{number}" for number in (1, 2, 3)
        ]
        assert ModelManager(None, "all fail", home=own.fl_app_home).list_all_versions() == []

        run, status = finished(own, app, "one hangs", superlink)
        assert "finished:completed" in status
        (row,) = ModelManager(None, "one hangs", home=own.fl_app_home).list_all_versions()
        (node,) = json.loads(row["tags"]["nodes"])
        (silent,) = json.loads(row["tags"]["rejected"])
        assert silent["node_id"] != node["node_id"]
        assert silent["reason"] == "it sent no answer in time"
        assert f"node {silent['node_id']} is rejected" in run.log()
