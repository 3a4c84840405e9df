# SPDX-License-Identifier: Apache-2.0
"""Drift through Flower's loop in one process: nodes with the mod, the strategy, the monitor."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg
from pydantic import TypeAdapter
from support.local_grid import LocalGrid, add_one, model

from fl_app import LifecycleStrategy, RetrainingManager
from fl_app.client.mods.data_summary import data_summary_mod
from fl_app.client.summary.reference import load_reference
from fl_app.retraining import DriftSettings, MonitorStore, RetrainRequest, train_and_retrain
from fl_app.retraining.drift.state import DriftState
from fl_app.strategy import RoundSettings, SessionReport
from fl_app.wire.data_summary import SUMMARY_RECORD
from fl_registry import InMemoryModelStore, InMemoryTracker

NO_SEASON = DriftSettings(season=None)
MOVED, LAST = 14, 17
"""The round in which data move, when the monitor knows how checks differ, and the last round."""


class Federation:
    """Nodes whose data grow by 60 rows a message; from round ``begin`` on, two nodes' are wrong."""

    def __init__(self, folder: Path, begin: int = 10**6, **options: Any) -> None:
        self.folder, self.begin = folder, begin
        self.rng = np.random.default_rng(3)
        self.data = {node: self.rng.normal(node, 1, (100, 3)) for node in (11, 12, 13, 14)}
        self.messages = dict.fromkeys(self.data, 0)
        self.options = options
        self.apps = {node: self.app(node) for node in self.data}

    def app(self, node: int) -> ClientApp:
        def features(message: Message, context: Context) -> np.ndarray:
            self.messages[node] += 1
            wrong = self.messages[node] >= self.begin and node in (11, 12)
            more = self.rng.normal(node, 1, (60, 3)) * ([1, 1, 0.2] if wrong else 1)
            more[:, 1] += 2 * wrong
            self.data[node] = np.concatenate([self.data[node], more])
            return self.data[node]

        def train(message: Message, context: Context) -> Message:
            return Message(add_one(node, message), reply_to=message)

        app = ClientApp(mods=[data_summary_mod(features, **self.options)])
        app.train()(train)
        app.evaluate()(train)
        return app

    def answer(self, node: int, message: Message) -> RecordDict | Error:
        config: dict[str, Any] = {"data-summaries": str(self.folder / str(node))}
        context = Context(
            run_id=7, node_id=node, node_config=config, state=RecordDict(), run_config={}
        )
        return self.apps[node](message, context).content

    def grid(self, spoil: Callable[[int, RecordDict], None] | None = None) -> LocalGrid:
        def answer(node: int, message: Message) -> RecordDict | Error:
            reply = self.answer(node, message)
            if spoil is not None and isinstance(reply, RecordDict):
                spoil(node, reply)
            return reply

        return LocalGrid(answer, list(self.data))


def session(
    monitor: RetrainingManager, grid: LocalGrid, rounds: int, *artifacts: Any
) -> InMemoryTracker:
    tracker = InMemoryTracker()
    strategy = LifecycleStrategy(
        FedAvg(),
        metric="accuracy",
        store=InMemoryModelStore(),
        tracker=tracker,
        monitor=monitor,
        artifacts=artifacts,
        rounds=RoundSettings(pipeline=False),
    )
    strategy.start(grid, model(), num_rounds=rounds)
    return tracker


@pytest.fixture
def monitor(tmp_path: Path) -> RetrainingManager:
    store = MonitorStore(f"sqlite:///{tmp_path / 'monitor.db'}")
    return RetrainingManager(drift=NO_SEASON, store=store, now=slow_clock())


def slow_clock() -> Callable[[], datetime]:
    """A clock by which rounds take minutes."""
    begin, minutes = datetime(2026, 1, 1, tzinfo=UTC), itertools.count(step=5)
    return lambda: begin + timedelta(minutes=next(minutes))


def drift_reasons(monitor: RetrainingManager) -> list[str]:
    return [entry["reason"] for entry in monitor.trigger_history if entry["kind"] == "drift"]


def test_two_nodes_that_moved_start_a_session_that_names_what_moved(
    monitor: RetrainingManager, tmp_path: Path
) -> None:
    nodes = Federation(tmp_path, begin=MOVED)
    sessions: list[RetrainRequest | None] = []

    def run_session(number: int, request: RetrainRequest | None) -> None:
        sessions.append(request)
        session(monitor, nodes.grid(), LAST if number == 1 else 4)

    train_and_retrain(run_session, monitor, max_retrains=3)
    (reason,) = drift_reasons(monitor)
    assert len(sessions) == 2
    assert sessions[1] is not None
    assert sessions[1].reason == reason
    assert reason.startswith(tuple(f"in round {n}" for n in range(MOVED, LAST + 1)))
    assert "column 1 higher" in reason or "column 2" in reason
    assert "2 of 4 nodes" in reason
    # The second session's nodes compare with what they have now.
    reference = load_reference(tmp_path / "11" / "reference.npz")
    assert reference is not None
    assert reference.name == sessions[1].id
    assert monitor.drift.reference == sessions[1].id


def test_the_same_federation_without_the_change_asks_for_nothing(
    monitor: RetrainingManager, tmp_path: Path
) -> None:
    session(monitor, Federation(tmp_path).grid(), 11)
    assert drift_reasons(monitor) == []
    assert monitor.drift.checks == 10


def test_evidence_and_reference_outlive_the_process(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'monitor.db'}"
    first = RetrainingManager(drift=NO_SEASON, store=MonitorStore(url), now=slow_clock())
    session(first, Federation(tmp_path, begin=MOVED).grid(), LAST)
    again = RetrainingManager(drift=NO_SEASON, store=MonitorStore(url))
    states = TypeAdapter(DriftState)
    assert states.dump_json(again.drift) == states.dump_json(first.drift)
    assert again.drift.last == first.drift.last
    assert again.drift.last is not None
    assert again.data_orders() == first.data_orders() == {"data-reference": "", "data-hold": True}


def test_an_alarm_in_the_cooldown_is_written_down_and_asked_again_a_day_later(
    tmp_path: Path,
) -> None:
    time = datetime(2026, 1, 1, tzinfo=UTC)
    later = slow_clock()
    monitor = RetrainingManager(
        drift=NO_SEASON,
        store=MonitorStore("sqlite://"),
        now=lambda: time + (later() - datetime(2026, 1, 1, tzinfo=UTC)),
    )
    monitor.manual_trigger()
    request = monitor.take()
    assert request is not None
    with monitor.running(request):
        session(monitor, Federation(tmp_path, begin=MOVED).grid(), LAST)
    outcomes = [e["outcome"] for e in monitor.trigger_history if e["kind"] == "drift"]
    assert outcomes == ["suppressed"]
    time += timedelta(hours=25)
    session(monitor, Federation(tmp_path, begin=1).grid(), 2)
    outcomes = [e["outcome"] for e in monitor.trigger_history if e["kind"] == "drift"]
    assert outcomes == ["suppressed", "pending"]


def test_a_hostile_node_is_dropped_and_the_round_goes_on(
    monitor: RetrainingManager, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def spoil(node: int, reply: RecordDict) -> None:
        if node == 13 and SUMMARY_RECORD in reply.config_records:
            reply[SUMMARY_RECORD] = ConfigRecord(
                {**reply.config_records[SUMMARY_RECORD], "node-id": "11"}
            )
        if node == 14 and reply.array_records:
            reply[SUMMARY_RECORD] = ConfigRecord({"counts": b"\xff" * 10})

    tracker = session(monitor, Federation(tmp_path).grid(spoil), 3)
    assert len(tracker.runs) == 1
    assert "dropped the data summary of node 13: its node id is 11" in caplog.text
    assert "dropped the data summary of node 14: version: Field required" in caplog.text
    assert monitor.drift.last is not None
    assert monitor.drift.last.nodes == 2


def test_a_round_without_summaries_is_no_check(monitor: RetrainingManager) -> None:
    session(monitor, LocalGrid(add_one), 3)
    assert monitor.drift.checks == 0
    assert monitor.drift.last is None


def test_the_session_s_run_gets_a_picture_and_a_table_of_drift(
    monitor: RetrainingManager, tmp_path: Path
) -> None:
    from fl_app.retraining.drift.plot import drift_artifacts

    artifacts: dict[str, bytes] = {}

    def keep(report: SessionReport, folder: Path) -> list[Path]:
        paths = list(drift_artifacts(monitor)(report, folder))
        artifacts.update({path.name: path.read_bytes() for path in paths})
        return paths

    session(monitor, Federation(tmp_path, begin=MOVED).grid(), LAST, keep)
    assert set(artifacts) == {"drift.png", "drift.csv"}
    assert artifacts["drift.png"].startswith(b"\x89PNG")
    lines = artifacts["drift.csv"].decode().splitlines()
    assert lines[0] == "feature,direction,effect,evidence,p,nodes_moved,drifted"
    assert {line.split(",")[0] for line in lines[1:]} == {"column 0", "column 1", "column 2"}
    rows = {line.split(",")[0]: line.split(",")[-1] for line in lines[1:]}
    assert rows["column 1"] == "yes"
    assert rows["column 0"] == "no"


def test_without_drift_data_there_is_no_picture(monitor: RetrainingManager, tmp_path: Path) -> None:
    from fl_app.retraining.drift.plot import drift_artifacts

    assert list(drift_artifacts(monitor)(None, tmp_path)) == []
