# SPDX-License-Identifier: Apache-2.0
"""Each file of a session on disk, damaged in each way: what the next run says and does."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from flwr.app import ArrayRecord, Message, MetricRecord
from flwr.serverapp.strategy import FedAdam
from support.disk_store import DiskStore, DiskTracker
from support.local_grid import LocalGrid, add_one, model

from fl_app import LifecycleStrategy
from fl_app.backlog import backlog, unfinished_sessions
from fl_app.cli.doctor import check_sessions
from fl_app.strategy import ResumeError, RoundSettings, SessionSettings
from fl_app.strategy.session.recover import discard, hand_over
from fl_registry import Stage, StoreUnavailable
from fl_registry.breaker import Breaker

NAME, ROUNDS = "fl-global-model", 6
Lines = Callable[[], str]


class Killed(BaseException):
    """What ends a process in the middle of a round."""


class Outcome(NamedTuple):
    """What the next run makes of a session that was killed in the evaluation of round 5.

    Its rounds 1 and 2 are in the registry, 3 and 4 wait on disk.
    """

    rounds: str
    """The rounds of the versions, oldest first."""
    says: str
    """What it says of the damage; empty if the session goes on."""


GOES_ON = Outcome("1 2 3 4 5 6", "")
# A new session has two rounds in these tests.
UNREAD = Outcome("1 2 1 2", "session.json is damaged or cannot be read")
DAMAGED: dict[str, tuple[Outcome, Outcome]] = {
    # file: with other bytes, and missing
    "session.json": (UNREAD, UNREAD),
    "done/done-0000.json": (
        Outcome("1 2 3 4 1 2", "done-0000.json is damaged or cannot be read"),
        Outcome("1 2 3 4 1 2", "there is no record of round 0"),
    ),
    "done/done-0002.json": (
        Outcome("1 2 3 4 1 2", "done-0002.json is damaged or cannot be read"),
        Outcome("1 2 3 4 1 2", "there is no record of round 2"),
    ),
    "closed-0003.json": (
        Outcome("1 2 4 1 2", "closed-0003.json is damaged or cannot be read"),
        Outcome("1 2 4 1 2", "there is no record of the end of round 3"),
    ),
    "closed-0004.json": (
        Outcome("1 2 3 1 2", "closed-0004.json is damaged or cannot be read"),
        Outcome("1 2 3 1 2", "there is no record of the end of round 4"),
    ),
    "aggregated-0005.json": (
        Outcome("1 2 3 4 1 2", "aggregated-0005.json is damaged or cannot be read"),
        GOES_ON,  # as if the process had ended a moment earlier
    ),
    "round-0003.safetensors": (
        Outcome("1 2 4 1 2", "round-0003.safetensors has changed since it was written"),
        Outcome("1 2 4 1 2", "round-0003.safetensors cannot be read (No such file"),
    ),
    "round-0005.safetensors": (
        Outcome("1 2 3 4 1 2", "round-0005.safetensors has changed since it was written"),
        Outcome("1 2 3 4 1 2", "round-0005.safetensors cannot be read (No such file"),
    ),
    "inner-0005-aggregated.safetensors": (
        Outcome("1 2 3 4 1 2", "inner-0005-aggregated.safetensors has changed since"),
        Outcome("1 2 3 4 1 2", "inner-0005-aggregated.safetensors cannot be read (No such"),
    ),
    "trouble.json": (GOES_ON, GOES_ON),
    "lock": (GOES_ON, GOES_ON),
    # What nobody needs any more.
    "inner-0004-aggregated.safetensors": (GOES_ON, GOES_ON),
    "aggregated-0004.json": (GOES_ON, GOES_ON),
}

DAMAGES: dict[str, Callable[[Path], object]] = {
    "cut": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "empty": lambda path: path.write_bytes(b""),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size or 10)),
    "noise": lambda path: path.write_bytes(random.Random(7).randbytes(path.stat().st_size or 10)),
    "missing": Path.unlink,
}


class World:
    """Processes that share a home, a store and a tracker that are on disk."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.store, self.tracker = DiskStore(home / "store"), DiskTracker(home / "runs")

    def start(self, rounds: int, answer: Any = add_one, **named: Any) -> None:
        def holdout(server_round: int, arrays: ArrayRecord) -> MetricRecord:
            return MetricRecord({"accuracy": float(arrays.to_numpy_ndarrays()[0].mean()) / 10})

        self.tracker.run = None
        LifecycleStrategy(
            FedAdam(eta=0.1),
            metric="accuracy",
            approval="auto",
            store=self.store,
            tracker=self.tracker,
            home=self.home,
            artifacts=[],
            rounds=RoundSettings(pipeline=False),
            session=SessionSettings(round_patience=0.02, retry=Breaker(0.01, 0.02)),
            **named,
        ).start(LocalGrid(answer), model(), num_rounds=rounds, evaluate_fn=holdout)

    def killed(self) -> None:
        """Run a session that is killed in the evaluation of round 5, without MLflow from 3 on."""

        def answer(node_id: int, message: Message) -> Any:
            number = int(message.content["config"]["server-round"])
            if (number, message.metadata.message_type) == (3, "train"):
                self.store.save_model_version = unavailable  # type: ignore[method-assign]
            if (number, message.metadata.message_type) == (5, "evaluate"):
                raise Killed
            return add_one(node_id, message)

        with pytest.raises(Killed):
            self.start(ROUNDS, answer)
        self.tracker.runs[0].status = "RUNNING"  # as after kill -9
        self.tracker._dump()

    @property
    def folder(self) -> Path:
        (path,) = (self.home / "checkpoints").glob("[!.]*")
        return path

    def rounds(self) -> str:
        rows = sorted(self.store.list_all_versions(), key=lambda row: int(row["version"]))
        return " ".join(row["tags"]["round"] for row in rows)

    def best(self) -> str:
        rows = self.store.list_all_versions()
        return str(max(rows, key=lambda row: row["metrics"]["accuracy"])["version"])


def unavailable(*_: object, **__: object) -> Any:
    raise StoreUnavailable("MLflow does not answer (in a test).")


@pytest.fixture
def world(home: Path, tmp_path_factory: pytest.TempPathFactory) -> World:
    killed = tmp_path_factory.getbasetemp() / "killed-session"
    if not killed.exists():  # one for all tests
        World(killed).killed()
    shutil.copytree(killed, home, dirs_exist_ok=True)
    return World(home)


def test_the_table_has_each_kind_of_file(world: World) -> None:
    def kind(name: str) -> str:
        return name.partition("-")[0] + name[name.rfind(".") :]

    files = (path for path in world.folder.rglob("*") if path.is_file())
    names = {str(path.relative_to(world.folder)) for path in files}
    assert {*map(kind, names)} == {*map(kind, DAMAGED)}
    assert names >= DAMAGED.keys()


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_file(world: World, lines: Lines, name: str, damage: str) -> None:
    session = world.folder.name
    DAMAGES[damage](world.folder / name)
    expected = DAMAGED[name][damage == "missing"]
    assert check_sessions(world.home, NAME)[0] is not bool(expected.says)
    if not expected.says:
        world.start(ROUNDS)
        assert world.rounds() == expected.rounds
        assert [run.status for run in world.tracker.runs] == ["FINISHED"]
        assert world.store.get_latest_version(Stage.PRODUCTION) == world.best()
        assert not unfinished_sessions(world.home, NAME)
        return
    assert expected.says in check_sessions(world.home, NAME)[1]
    if damage == "cut":
        with pytest.raises(ResumeError, match="can be resumed here"):
            world.start(ROUNDS, resume="require")
    # The session is never half resumed: a new one starts, and what is whole is not lost.
    world.start(2)
    assert world.rounds() == expected.rounds
    assert [run.status for run in world.tracker.runs] == ["FAILED", "FINISHED"]
    assert f"session {session} is damaged" in lines()
    assert expected.says in lines()
    assert world.store.get_latest_version(Stage.PRODUCTION) in {None, world.best()}
    (left,) = unfinished_sessions(world.home, NAME)
    assert (left.id, left.apart) == (session, True)
    assert expected.says in left.why
    ok, told = check_sessions(world.home, NAME)
    assert not ok
    assert session in told
    assert expected.says in told
    assert backlog(world.home, NAME).apart == 1


def test_what_killed_saves_have_left_goes_at_the_next_start(world: World) -> None:
    left = [
        world.home / "tmp" / ".save.x.tmp" / "weights.safetensors",
        world.home / "checkpoints" / ".other.tmp" / "session.json",
    ]
    for path in left:
        path.parent.mkdir(parents=True)
        path.write_bytes(bytes(10))
        os.utime(path.parent, (0, 0))
    world.start(ROUNDS)
    assert [path for path in left if path.parent.exists()] == []


@pytest.mark.parametrize("name", ["session.json", "closed-0003.json"])
def test_what_was_set_apart_is_handed_over_once_and_discarded(world: World, name: str) -> None:
    (world.folder / name).write_bytes(b"")
    world.start(2)
    before = world.rounds()
    (left,) = unfinished_sessions(world.home, NAME)
    with pytest.raises(ResumeError, match=f"`fl-app recover {left.id} --discard` deletes"):
        hand_over(left, world.store, world.tracker, world.home)
    assert world.rounds() == before
    (left,) = unfinished_sessions(world.home, NAME)
    assert left.apart
    discard(left, world.tracker)
    assert check_sessions(world.home, NAME)[0]
    assert {run.status for run in world.tracker.runs} == {"FAILED", "FINISHED"}
