# SPDX-License-Identifier: Apache-2.0
"""A registry that goes away in the middle of a session: nothing is lost, doubled or held up."""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ArrayRecord, Message, MetricRecord
from flwr.serverapp.strategy import FedAvg
from support.local_grid import LocalGrid, add_one, model
from support.outage import Server, behind

from fl_app import LifecycleStrategy
from fl_app.backlog import backlog
from fl_app.events import Event, RoundReport, SessionEnded
from fl_app.health import Health
from fl_app.strategy import MetricError, RoundSettings, SessionSettings
from fl_app.strategy.checkpoints import record, round_store
from fl_registry import InMemoryModelStore, InMemoryTracker, Stage, StoreUnavailable
from fl_registry.breaker import Breaker

Answer = Callable[[int, Message], Any]


def impatient(**named: Any) -> SessionSettings:
    """Wait for hundredths of a second where the app waits for seconds."""
    return SessionSettings(round_patience=0.05, retry=Breaker(0.01, 0.02), **named)


class Monitor:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[int, float]] = []

    def start_from(self, version: str, score: float) -> None: ...

    def update_metrics(self, accuracy: float, round_num: int) -> None:
        self.told.append((round_num, round(accuracy, 6)))

    def update_data(self, summaries: Mapping[str, Mapping[str, object]], round_num: int) -> None:
        pass

    def data_orders(self) -> Mapping[str, str | bool]:
        return {}


class World:
    """A store and a tracker behind a server, a monitor, and hooks that keep what they hear."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.server, self.monitor = Server(), Monitor()
        self.store, self.tracker = InMemoryModelStore(), InMemoryTracker()
        behind(self.server, self.store, self.tracker)
        self.events: list[Event] = []

    def strategy(self, **named: Any) -> LifecycleStrategy:
        settings: dict[str, Any] = {
            "metric": "accuracy",
            "store": self.store,
            "tracker": self.tracker,
            "monitor": self.monitor,
            "hooks": [self.events.append],
            "home": self.home,
            "artifacts": [],  # plots take their time
            "session": impatient(),
        }
        return LifecycleStrategy(FedAvg(), **{**settings, **named})

    def left_behind(self) -> dict[str, Any]:
        """What is in the registry, the tracking, the journal and the monitor in the end."""
        self.server.away, self.server.fails = False, None
        rows = sorted(self.store.list_all_versions(), key=lambda row: int(row["version"]))
        return {
            "versions": [
                (r["tags"]["round"], r["stage"], r["tags"]["approval"], r["tags"]["reason"])
                for r in rows
            ],
            "runs": [
                (r.status, {name: sorted(points) for name, points in r.metrics.items()})
                for r in self.tracker.runs
            ],
            "journal": [(e.op, e.version) for e in self.store.history() if e.op != "lease"],
            "monitor": self.monitor.told,
            "rounds": [(e.round, e.version) for e in self.events if isinstance(e, RoundReport)],
        }


@pytest.fixture
def world(home: Path) -> World:
    return World(home)


def holdout(server_round: int, arrays: ArrayRecord) -> MetricRecord:
    return MetricRecord({"accuracy": float(arrays.to_numpy_ndarrays()[0].mean()) / 100})


def answers(at: Mapping[tuple[int, str], Callable[[], None]]) -> Answer:
    """Nodes that answer well; before the first answer of a phase of a round, something happens."""
    seen = set()

    def answer(node_id: int, message: Message) -> Any:
        where = (int(message.content["config"]["server-round"]), message.metadata.message_type)
        if where in at and where not in seen:
            seen.add(where)
            at[where]()
        return add_one(node_id, message)

    return answer


def goes(world: World, away: bool) -> Callable[[], None]:
    def act() -> None:
        world.server.away = away

    return act


@pytest.mark.parametrize("pipeline", [True, False])
def test_rounds_go_on_while_the_registry_is_away_and_are_handed_over_in_order(
    world: World, pipeline: bool
) -> None:
    # It comes back in the last round only, so all others end without it.
    answer = answers({(3, "train"): goes(world, True), (20, "evaluate"): goes(world, False)})
    result = world.strategy(rounds=RoundSettings(pipeline=pipeline)).start(
        LocalGrid(answer), model(), num_rounds=20, evaluate_fn=holdout
    )
    left = world.left_behind()
    assert [row[0] for row in left["versions"]] == [str(n) for n in range(1, 21)]
    assert [row[1:3] for row in left["versions"]] == [
        *[("Archived", "superseded")] * 19,
        ("Staging", "pending"),
    ]
    assert [n for n, _ in left["monitor"]] == list(range(1, 21))
    assert [n for n, _ in left["rounds"]] == list(range(1, 21))
    ((status, metrics),) = left["runs"]
    assert status == "FINISHED"
    assert [step for step, _ in metrics["accuracy"]] == list(range(21))
    assert sorted(result.evaluate_metrics_serverapp) == list(range(21))
    assert list((world.home / "checkpoints").iterdir()) == []


def test_what_is_left_at_the_end_is_handed_over_by_the_next_run(
    world: World, lines: Callable[[], str]
) -> None:
    answer = answers({(3, "train"): goes(world, True)})
    result = world.strategy(session=impatient(drain_timeout=0.2)).start(
        LocalGrid(answer), model(), 5, evaluate_fn=holdout
    )
    assert result.arrays.to_numpy_ndarrays()[0][0, 0] == 5
    waits = backlog(world.home, "fl-global-model")
    assert waits.rounds in (3, 4)
    assert str(waits).startswith(f"{waits.rounds} rounds: MLflow does not answer")
    assert f"{waits.rounds} rounds wait on disk" in lines()
    world.server.away = False
    assert [run.status for run in world.tracker.runs] == ["RUNNING"]

    world.strategy().start(LocalGrid(add_one), model(50), 1, evaluate_fn=holdout)
    left = world.left_behind()
    assert [row[0] for row in left["versions"]] == ["1", "2", "3", "4", "5", "1"]
    assert [status for status, _ in left["runs"]] == ["FINISHED", "FINISHED"]
    assert [step for step, _ in left["runs"][0][1]["accuracy"]] == list(range(6))
    assert [n for n, _ in left["monitor"]] == [1, 2, 3, 4, 5, 1]
    assert list((world.home / "checkpoints").iterdir()) == []
    assert backlog(world.home, "fl-global-model").rounds == 0


@pytest.mark.parametrize("cut_short", [False, True])
def test_what_a_session_starts_with_is_logged_later_if_the_registry_goes_just_then(
    world: World, cut_short: bool
) -> None:
    def lost(params: Mapping[str, object]) -> None:
        raise StoreUnavailable("MLflow does not answer (in a test).")

    real, world.tracker.log_params = world.tracker.log_params, lost  # type: ignore[method-assign]

    def stop() -> None:
        raise KeyboardInterrupt

    answer = answers({(2, "train"): stop} if cut_short else {})
    try:
        world.strategy(session=impatient(params={"lr": 0.5}, drain_timeout=0.2)).start(
            LocalGrid(answer), model(), 3, evaluate_fn=holdout
        )
    except KeyboardInterrupt:
        assert cut_short
    (logged,) = world.tracker.runs
    assert (logged.params, logged.metrics) == ({}, {})
    world.tracker.log_params = real  # type: ignore[method-assign]
    world.strategy(session=impatient(params={"lr": 0.5}, drain_timeout=0.2)).start(
        LocalGrid(add_one), model(), 3, evaluate_fn=holdout
    )
    left = world.left_behind()
    for logged, (_, metrics) in zip(world.tracker.runs, left["runs"], strict=True):
        assert (logged.params["lr"], logged.params["num-server-rounds"]) == ("0.5", "3")
        assert [step for step, _ in metrics["accuracy"]] == [0, 1, 2, 3]
    assert [status for status, _ in left["runs"]] == ["FINISHED"] * (1 if cut_short else 2)


def run_three_rounds(world: World, approval: str = "auto") -> None:
    world.strategy(approval=approval).start(LocalGrid(add_one), model(), 3, evaluate_fn=holdout)


def test_a_call_that_fails_once_changes_nothing_wherever_it_is(home: Path) -> None:
    whole = World(home / "whole")
    run_three_rounds(whole)
    expected, count = whole.left_behind(), whole.server.calls
    assert count > 30
    started = 0
    for number in range(1, count):
        for when in ("before", "after"):
            world = World(home / f"{number}-{when}")
            world.server.fails = (number, when)
            try:
                run_three_rounds(world)
            except StoreUnavailable:  # a session needs the registry to begin
                started = number
                continue
            if list((world.home / "checkpoints").iterdir()):  # its end is for the next run
                world.server.fails = None
                finish_left(world)
            assert world.left_behind() == expected, (number, when)
    assert started < 12


def finish_left(world: World) -> None:
    """Have the next session hand over what is left, and go no further itself."""

    def enough(node_id: int, message: Message) -> Any:
        raise RuntimeError("enough")

    events, runs = len(world.events), len(world.tracker.runs)
    with pytest.raises(RuntimeError, match="enough"):
        world.strategy(approval="auto").start(LocalGrid(enough), model(), 1)
    del world.events[events:], world.tracker.runs[runs:]


def test_what_people_did_meanwhile_stays(world: World) -> None:
    # The reply to the move of round 2's version is lost, and a person approves it meanwhile.
    run_two, moved = world.strategy(), []
    promote = world.store.promote_to_staging

    def lost(version: str, **why: Any) -> None:
        promote(version, **why)
        if version == "2" and not moved:
            moved.append(version)
            world.store.approve_version("2", actor="ann")
            raise StoreUnavailable("the reply was lost (in a test).")

    world.store.promote_to_staging = lost  # type: ignore[method-assign]
    run_two.start(LocalGrid(add_one), model(), 2, evaluate_fn=holdout)
    assert moved
    assert world.store.get_latest_version(Stage.PRODUCTION) == "2"
    assert world.store.get_version("2").tags["approval"] == "approved"
    reports = [event for event in world.events if isinstance(event, RoundReport)]
    assert [(r.round, r.stage, r.approval) for r in reports][-1] == (2, "Production", "approved")


def test_a_registry_that_refuses_for_good_still_ends_the_session(world: World) -> None:
    with pytest.raises(MetricError):
        world.strategy(metric="no").start(LocalGrid(add_one), model(), 3)
    assert [run.status for run in world.tracker.runs] == ["FAILED"]
    ended = [event for event in world.events if isinstance(event, SessionEnded)]
    assert [event.status for event in ended] == ["failed"]


def test_a_session_whose_start_the_registry_missed_goes_on_all_the_same(home: Path) -> None:
    def stop() -> None:
        raise KeyboardInterrupt

    cut_short = 0
    for number in range(1, 30):
        world = World(home / str(number))
        with pytest.raises(KeyboardInterrupt):
            world.strategy().start(
                LocalGrid(answers({(3, "train"): stop})), model(), 4, evaluate_fn=holdout
            )
        # The registry goes away just as the session is gone on with: that is no end of it.
        world.server.fails = (world.server.calls + number, "before")
        try:
            world.strategy().start(LocalGrid(add_one), model(), 4, evaluate_fn=holdout)
        except StoreUnavailable:
            cut_short += 1
            world.server.fails = None
            world.strategy().start(LocalGrid(add_one), model(), 4, evaluate_fn=holdout)
        if world.server.failed == "end_run":  # the last of all calls: the next session makes it
            world.strategy().start(LocalGrid(add_one), model(), 4, evaluate_fn=holdout)
        left = world.left_behind()
        assert [row[0] for row in left["versions"]][:4] == ["1", "2", "3", "4"]
        assert {status for status, _ in left["runs"]} == {"FINISHED"}
        assert len(left["runs"]) == (2 if world.server.failed == "end_run" else 1)
    assert cut_short > 1


def test_a_run_whose_end_the_registry_missed_is_ended_by_the_next_session(world: World) -> None:
    def lost(status: str = "FINISHED") -> None:
        raise StoreUnavailable("MLflow does not answer (in a test).")

    real, world.tracker.end_run = world.tracker.end_run, lost  # type: ignore[method-assign]
    world.strategy().start(LocalGrid(add_one), model(), 2, evaluate_fn=holdout)
    world.tracker.end_run = real  # type: ignore[method-assign]
    assert [status for status, _ in world.left_behind()["runs"]] == ["RUNNING"]
    world.strategy().start(LocalGrid(add_one), model(), 2, evaluate_fn=holdout)
    assert [status for status, _ in world.left_behind()["runs"]] == ["FINISHED"] * 2


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """A disk that takes nothing of a session while this is not empty."""
    taking: list[bool] = []
    writers = [
        (record, "write_whole"),
        (round_store, "save_weights"),
    ]
    for module, name in writers:
        original = getattr(module, name)

        def write(*arguments: Any, original: Any = original, **named: Any) -> Any:
            if taking:
                raise OSError(errno.ENOSPC, "No space left on device")
            return original(*arguments, **named)

        monkeypatch.setattr(module, name, write)
    return taking


def test_a_disk_that_is_full_for_some_rounds_costs_none(world: World, full: list[bool]) -> None:
    health = Health()
    failing: list[Mapping[str, str]] = []

    def begin() -> None:
        full.append(True)

    def end() -> None:
        failing.append(health.failing)
        full.clear()

    answer = answers({(3, "train"): begin, (5, "evaluate"): end})
    world.strategy(session=impatient(health=health)).start(
        LocalGrid(answer), model(), 6, evaluate_fn=holdout
    )
    left = world.left_behind()
    assert [row[0] for row in left["versions"]] == [str(n) for n in range(1, 7)]
    assert [n for n, _ in left["monitor"]] == list(range(1, 7))
    assert "could not be written" in failing[0]["round checkpoints"]
    assert health.failing == {}
    assert list((world.home / "checkpoints").iterdir()) == []


def test_what_is_too_much_for_memory_is_told_as_lost(world: World, full: list[bool]) -> None:
    answer = answers({(3, "train"): lambda: full.append(True), (9, "evaluate"): full.clear})
    result = world.strategy().start(LocalGrid(answer), model(), 9, evaluate_fn=holdout)
    assert result.arrays.to_numpy_ndarrays()[0][0, 0] == 9
    reports = [event for event in world.events if isinstance(event, RoundReport)]
    assert [report.round for report in reports] == list(range(1, 10))
    assert [report.round for report in reports if report.failed] == [3, 4, 5, 6]
    assert "the disk was full" in reports[3].reason
    assert [row[0] for row in world.left_behind()["versions"]] == ["1", "2", "7", "8", "9"]


def test_what_cannot_be_finished_is_set_apart_and_does_not_end_the_next_session(
    world: World, lines: Callable[[], str]
) -> None:
    with pytest.raises(MetricError):
        world.strategy(metric="no").start(LocalGrid(add_one), model(), 3)
    world.strategy(metric="no").start(LocalGrid(_without_accuracy), model(), 0)
    (left,) = (world.home / "checkpoints").iterdir()
    assert left.suffix == ".failed"
    assert (left / "round-0001.safetensors").is_file()
    assert f"`fl-app recover {left.stem}` tries again" in lines()
    assert backlog(world.home, "fl-global-model").rounds == 0


def _without_accuracy(node_id: int, message: Message) -> Any:
    raise AssertionError("no round is run")
