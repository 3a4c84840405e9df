# SPDX-License-Identifier: Apache-2.0
"""`fl-app recover`: what could not be finished is listed, handed over or discarded."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Message
from support.local_grid import LocalGrid, add_one, model

from fl_app import LifecycleStrategy
from fl_app.backlog import backlog, unfinished_sessions
from fl_app.cli import main as cli
from fl_app.strategy import MetricError
from fl_registry import FederatedLearningTracker, ModelManager

NAME = "fl-global-model"


@pytest.fixture
def apart(home: Path) -> str:
    """Return a session with three rounds that was set apart, since its metric does not exist."""

    def strategy() -> LifecycleStrategy:
        return LifecycleStrategy(
            metric="no",
            artifacts=[],
            store=ModelManager(),
            tracker=FederatedLearningTracker(),
        )

    def silent(node_id: int, message: Message) -> Any:
        raise AssertionError("no round is run")

    with pytest.raises(MetricError):
        strategy().start(LocalGrid(add_one), model(), 3)
    strategy().start(LocalGrid(silent), model(), 0)
    (session,) = unfinished_sessions(home, NAME)
    assert session.apart
    assert "MetricError" in session.why
    return session.id


def typed(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit):
        cli.main(words)
    said = capsys.readouterr()
    return " ".join((said.out + said.err).split())


def statuses() -> list[str]:
    """The states of the runs of sessions, in MLflow."""
    client = ModelManager().client
    found = client.search_runs([client.get_experiment_by_name("fl-app").experiment_id])
    return [run.info.status for run in found]


def test_it_is_named_everywhere_and_handed_over(
    apart: str, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "RUNNING" not in statuses()
    assert "1 session set apart: `fl-app recover` lists them" in typed(capsys, "status")
    assert f"session {apart[:8]} set apart: MetricError" in typed(capsys, "status")
    assert f"`fl-app recover {apart}` hands them over" in typed(capsys, "doctor")
    listed = typed(capsys, "recover")
    assert apart in listed
    assert "set apart" in listed
    rounds = backlog(home, NAME)
    assert (rounds.rounds, rounds.apart) == (0, 1)
    said = typed(capsys, "recover", apart[:8])
    assert said.endswith(f"rounds of session {apart} are in MLflow now.")
    rows = ModelManager().list_all_versions()
    assert rows
    assert all("promote it by hand" in row["tags"]["reason"] for row in rows)
    assert {row["stage"] for row in rows} == {"None"}
    assert typed(capsys, "recover") == "No session of fl-global-model is unfinished."
    assert "RUNNING" not in statuses()


def test_it_can_be_discarded(apart: str, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert f"no unfinished session 'x{apart}'" in typed(capsys, "recover", f"x{apart}")
    assert "is deleted" in typed(capsys, "recover", apart, "--discard")
    assert list((home / "checkpoints").iterdir()) == []
    assert ModelManager().list_all_versions() == []
    assert "RUNNING" not in statuses()


def test_a_session_whose_record_is_damaged_leaves_no_run_active(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def died(node_id: int, message: Message) -> Any:
        raise KeyboardInterrupt

    parts = {"store": ModelManager(), "tracker": FederatedLearningTracker()}
    with pytest.raises(KeyboardInterrupt):
        LifecycleStrategy(artifacts=[], **parts).start(LocalGrid(died), model(), 3)
    (path,) = (home / "checkpoints").glob("[!.]*")
    (path / "session.json").write_text("{")
    assert f"session {path.name[:8]} damaged, to be set apart:" in typed(capsys, "status")
    client = parts["store"].client
    (run,) = client.search_runs([client.get_experiment_by_name("fl-app").experiment_id])
    client.update_run(run.info.run_id, status="RUNNING")  # as after kill -9
    LifecycleStrategy(artifacts=[], **parts).start(LocalGrid(add_one), model(), 1)
    assert sorted(statuses()) == ["FAILED", "FINISHED"]
    assert "damaged or cannot be read" in typed(capsys, "recover", path.name)
    assert "is deleted" in typed(capsys, "recover", path.name, "--discard")
    shutil.rmtree(home / "checkpoints")
