# SPDX-License-Identifier: Apache-2.0
"""Which session a run goes on with, where it begins, and what becomes of one that is left."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAdam, FedAvg, Result, Strategy
from support.local_grid import LocalGrid, add_one, model

from fl_app import LifecycleStrategy, RoundReport
from fl_app.events import Event, SessionEnded, SessionStarted
from fl_app.strategy import (
    Origin,
    Resume,
    ResumeError,
    RoundSettings,
    SessionSettings,
)
from fl_app.strategy.session.start import is_cut_short
from fl_registry import InMemoryModelStore, InMemoryTracker, Stage

Lines = Callable[[], str]


class Stopped(BaseException):
    """What ends a process in the middle of a round, as SIGTERM does."""


def holdout(server_round: int, arrays: ArrayRecord) -> MetricRecord:
    return MetricRecord({"accuracy": float(arrays.to_numpy_ndarrays()[0].mean()) / 100})


class World:
    """A store, a tracker and a home that several processes use, one after the other."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.store, self.tracker = InMemoryModelStore(), InMemoryTracker()
        self.events: list[Event] = []
        self.asked: list[tuple[str, int]] = []
        self.holdout = holdout

    def start(
        self,
        strategy: Strategy | None = None,
        *,
        stop: tuple[str, int] | None = None,
        rounds: int = 5,
        arrays: ArrayRecord | None = None,
        train_config: ConfigRecord | None = None,
        **named: Any,
    ) -> Result:
        """Run a session in a process that is told to end as a round's phase begins, if at all."""
        self.tracker.run = None
        lifecycle = LifecycleStrategy(
            strategy or FedAvg(),
            metric="accuracy",
            artifacts=[],
            home=self.home,
            **{
                "store": self.store,
                "tracker": self.tracker,
                "hooks": [self.events.append],
                **named,
            },
        )

        def answer(node_id: int, message: Message) -> Any:
            number = int(message.content["config"]["server-round"])
            if node_id == 11:
                self.asked.append((message.metadata.message_type, number))
            if (message.metadata.message_type, number) == stop:
                raise Stopped
            return add_one(node_id, message)

        return lifecycle.start(
            Ordered(answer),
            arrays or model(),
            num_rounds=rounds,
            train_config=train_config,
            evaluate_fn=self.holdout,
        )

    def stopped(self, phase: str, number: int, *arguments: Any, **named: Any) -> None:
        """Run a session that is cut short there."""
        with pytest.raises(Stopped):
            self.start(*arguments, stop=(phase, number), **named)

    def trained(self) -> list[int]:
        """The rounds that the nodes were asked to train."""
        return [number for phase, number in self.asked if phase == "train"]

    def versions(self) -> list[str]:
        rows = sorted(self.store.list_all_versions(), key=lambda row: int(row["version"]))
        return [row["tags"]["round"] for row in rows]


class Other(InMemoryModelStore):
    """The store of another model."""

    registered_model_name = "other"


class Ordered(LocalGrid):
    """Asks the nodes in the order of their ids."""

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        ordered = sorted(messages, key=lambda message: message.metadata.dst_node_id)
        return super().send_and_receive(ordered, timeout=timeout)


@pytest.fixture
def world(home: Path) -> World:
    return World(home)


def test_a_session_goes_on_at_the_next_round(world: World, lines: Lines) -> None:
    world.stopped("train", 3)
    assert is_cut_short(world.home, "fl-global-model")
    assert [run.status for run in world.tracker.runs] == ["KILLED"]
    result = world.start()
    assert world.trained() == [1, 2, 3, 3, 4, 5]
    assert world.versions() == ["1", "2", "3", "4", "5"]
    assert result.arrays.to_numpy_ndarrays()[0][0, 0] == 5
    assert "interrupted in round 3 of 5" in lines()
    assert sorted(result.train_metrics_clientapp) == [3, 4, 5]
    assert sorted(result.evaluate_metrics_serverapp) == [0, 1, 2, 3, 4, 5]
    assert not is_cut_short(world.home, "fl-global-model")


def test_it_is_the_same_mlflow_run_with_the_same_curve(world: World) -> None:
    world.stopped("train", 3)
    world.start()
    (run,) = world.tracker.runs
    assert run.status == "FINISHED"
    assert run.metrics["accuracy"] == [(n, pytest.approx(n / 100)) for n in range(6)]
    assert run.tags["resumed_after_round.2"] == "7"


def test_the_last_table_has_the_rounds_before_it(world: World, lines: Lines) -> None:
    world.stopped("train", 4)
    world.start()
    table = lines()[lines().rindex("version  round") :]
    rows = [line.split() for line in table.splitlines() if line[:1].isdigit()]
    assert [row[1] for row in rows] == ["1", "2", "3", "4", "5"]
    ended = [event for event in world.events if isinstance(event, SessionEnded)]
    assert [event.status for event in ended] == ["killed", "finished"]
    assert len(ended[1].versions) == 5


def test_hooks_hear_each_round_once(world: World) -> None:
    world.stopped("evaluate", 3)
    world.start()
    rounds = [event.round for event in world.events if isinstance(event, RoundReport)]
    assert rounds == [1, 2, 3, 4, 5]
    ids = {event.id for event in world.events if isinstance(event, SessionStarted)}
    assert len(ids) == 1


def test_what_the_nodes_have_seen_is_not_trained_again(world: World) -> None:
    # Round 3's model was on its way to be evaluated: what was sent is what stays.
    world.stopped("evaluate", 3, FedAdam())
    world.start(FedAdam())
    assert world.trained() == [1, 2, 3, 4, 5]
    assert [n for phase, n in world.asked if phase == "evaluate"] == [1, 2, 3, 3, 4, 5]


def test_the_best_so_far_is_known(world: World) -> None:
    world.stopped("train", 4)
    world.start()
    reports = [event for event in world.events if isinstance(event, RoundReport)]
    assert [report.stage for report in reports] == [Stage.STAGING] * 5
    assert world.store.list_all_versions()[0]["stage"] == "Staging"


def test_a_worse_model_after_a_crash_does_not_pass(world: World) -> None:
    def falls(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        return MetricRecord({"accuracy": 0.9 if server_round <= 2 else 0.5})

    world.holdout = falls
    world.stopped("train", 3)
    world.start()
    reports = [event for event in world.events if isinstance(event, RoundReport)]
    stages = [report.stage for report in reports]
    assert stages == [Stage.STAGING, Stage.NONE, Stage.NONE, Stage.NONE, Stage.NONE]


def test_a_config_that_the_strategy_changes_goes_on(world: World) -> None:
    seen: list[float] = []

    class Halving(FedAvg):
        """As Flower's documentation does it: the config itself is the memory."""

        def configure_train(
            self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
        ) -> Iterable[Message]:
            config["lr"] = config["lr"] * 0.5  # type: ignore[operator]
            seen.append(float(config["lr"]))
            return super().configure_train(server_round, arrays, config, grid)

    world.stopped("train", 3, Halving(), train_config=ConfigRecord({"lr": 1.0}))
    world.start(Halving(), train_config=ConfigRecord({"lr": 1.0}))
    assert seen == [0.5, 0.25, 0.125, 0.125, 0.0625, 0.03125]


@pytest.mark.parametrize(
    ("other", "why"),
    [
        ({"rounds": 6}, "it has 5 rounds, and 6 are requested"),
        ({"strategy": FedAdam()}, "its strategy is FedAvg, not FedAdam"),
        ({"strategy": FedAvg(fraction_train=0.5)}, "strategy/fraction_train was 1.0 and is 0.5"),
        ({"session": SessionSettings(params={"lr": 0.2})}, "lr was '0.1' and is '0.2'"),
        ({"train_config": ConfigRecord({"lr": 1.0})}, "train-config was"),
        ({"arrays": ArrayRecord([np.zeros(3)])}, "its model has other arrays"),
    ],
)
def test_another_session_is_not_gone_on_with(
    world: World, lines: Lines, other: dict[str, Any], why: str
) -> None:
    params = {"session": SessionSettings(params={"lr": 0.1})}
    world.stopped("train", 3, **params)
    with pytest.raises(ResumeError, match="No session of 'fl-global-model' can be resumed here: "):
        world.start(**{**params, "resume": "require", **other})
    world.start(**{**params, **other})
    assert f"the session interrupted in round 2 is not resumed: {why}" in lines()
    assert [run.status for run in world.tracker.runs] == ["KILLED", "FINISHED"]
    assert world.versions()[:2] == ["1", "2"]
    assert list((world.home / "checkpoints").glob("[!.]*")) == []


def test_params_that_shape_no_model_may_change(world: World) -> None:
    resume = Resume(ignoring=frozenset({"port"}))
    world.stopped("train", 3, session=SessionSettings(params={"port": 1}), resume=resume)
    world.start(session=SessionSettings(params={"port": 2}), resume=resume)
    assert world.trained() == [1, 2, 3, 3, 4, 5]


def test_fresh_begins_anew_and_ends_the_old_run(world: World, lines: Lines) -> None:
    world.stopped("train", 3)
    world.start(resume="fresh")
    assert world.trained() == [1, 2, 3, 1, 2, 3, 4, 5]
    assert [run.status for run in world.tracker.runs] == ["KILLED", "FINISHED"]
    assert "a fresh one is requested" in lines()


def test_require_refuses_where_there_is_nothing_to_go_on_with(world: World) -> None:
    with pytest.raises(ResumeError, match="none was interrupted; use resume='auto'"):
        world.start(resume="require")
    assert world.tracker.runs == []


def test_require_refuses_a_strategy_whose_memory_is_not_on_disk(world: World) -> None:
    class Keeping(FedAvg):
        def aggregate_evaluate(self, *arguments: Any) -> MetricRecord | None:
            self.kept = object()
            return super().aggregate_evaluate(*arguments)

    world.stopped("train", 3, Keeping())
    with pytest.raises(ResumeError, match="kept of its strategy is not on disk"):
        world.start(Keeping(), resume="require")
    world.start(Keeping())
    assert world.trained() == [1, 2, 3, 3, 4, 5]


def test_a_word_that_is_no_mode_is_refused() -> None:
    with pytest.raises(ValueError, match="expected 'auto', 'require' or 'fresh'"):
        LifecycleStrategy(resume="yes")  # type: ignore[arg-type]


def test_a_request_goes_on_with_its_own_session_only(world: World) -> None:
    served = Origin(request_id="a" * 32, trigger="the score fell")
    world.stopped("train", 3, session=SessionSettings(origin=served))
    assert not is_cut_short(world.home, "fl-global-model")
    assert is_cut_short(world.home, "fl-global-model", "a" * 32)
    world.start(session=SessionSettings(origin=served))
    assert world.trained() == [1, 2, 3, 3, 4, 5]
    world.stopped("train", 2)
    world.start(session=SessionSettings(origin=served))
    assert world.trained()[6:] == [1, 2, 1, 2, 3, 4, 5]


def test_another_model_s_session_is_left_alone(world: World) -> None:
    world.stopped("train", 3, store=Other())
    world.start()
    assert world.trained() == [1, 2, 3, 1, 2, 3, 4, 5]
    assert is_cut_short(world.home, "other")


def test_a_session_that_lives_is_left_alone(world: World) -> None:
    def meanwhile(node_id: int, message: Message) -> Any:
        nested.start(rounds=1)
        raise Stopped

    nested = World(world.home)
    lifecycle = LifecycleStrategy(
        home=world.home, store=InMemoryModelStore(), tracker=InMemoryTracker()
    )
    with pytest.raises(Stopped):
        lifecycle.start(LocalGrid(meanwhile), model(), num_rounds=1)
    assert nested.versions() == ["1"]


def test_three_failures_in_a_row_are_counted_across_a_crash(world: World) -> None:
    def bad(node_id: int, message: Message) -> Any:
        number = int(message.content["config"]["server-round"])
        if (message.metadata.message_type, number) == ("train", stop[0]):
            raise Stopped
        answered = add_one(node_id, message)
        if message.metadata.message_type == "train" and number >= 2:
            arrays = [np.full_like(a, np.nan, dtype=np.float32) for a in _arrays(message)]
            answered["arrays"] = ArrayRecord(arrays)
        return answered

    def run() -> None:
        world.tracker.run = None
        LifecycleStrategy(
            home=world.home,
            store=world.store,
            tracker=world.tracker,
            rounds=RoundSettings(pipeline=False),
        ).start(LocalGrid(bad), ArrayRecord([np.zeros(2, np.float32)]), num_rounds=9)

    stop = [4]  # after two failed rounds
    with pytest.raises(Stopped):
        run()
    stop[0] = 0
    with pytest.raises(RuntimeError, match="3 rounds in a row gave no model"):
        run()
    assert [run.status for run in world.tracker.runs] == ["FAILED"]
    assert world.versions() == ["1"]


def _arrays(message: Message) -> list[np.ndarray]:
    return list(message.content["arrays"].to_numpy_ndarrays())


def test_what_is_on_disk_is_json_and_safetensors(world: World) -> None:
    world.stopped("train", 3, FedAdam())
    (folder,) = (world.home / "checkpoints").glob("[!.]*")
    assert {path.suffix for path in folder.iterdir()} == {".json", ".safetensors", ""}
    session = json.loads((folder / "session.json").read_bytes())
    assert session["SessionRecord"]["state"] == "training"
    assert session["SessionRecord"]["chain"] == {"tuple": ["FedAdam"]}
