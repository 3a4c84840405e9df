# SPDX-License-Identifier: Apache-2.0
"""A disk that takes no data at each write of a session: what it says, and what the next run does.

The registry's files are on the same disk. `tests/test_full_disk.py` has each writer by itself.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ArrayRecord, Message, MetricRecord
from flwr.serverapp.strategy import FedAvg
from sqlalchemy.exc import OperationalError
from support.local_grid import LocalGrid, add_one, model

from fl_app import LifecycleStrategy
from fl_app.backlog import backlog, session_folders
from fl_app.health import Health
from fl_app.strategy import SessionSettings
from fl_app.strategy.checkpoints import record, round_store
from fl_app.strategy.checkpoints.round_store import RoundFiles
from fl_app.strategy.errors import CheckpointError
from fl_registry import InMemoryModelStore, InMemoryTracker, Stage, StoreUnavailable, memory
from fl_registry.breaker import Breaker
from fl_registry.errors import disk_remedy, foreign_errors

NAME, ROUNDS = "fl-global-model", 3
ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EFBIG)
Lines = Callable[[], str]


class Disk:
    """Takes a number of writes and refuses later ones, once or for good."""

    def __init__(self) -> None:
        self.writes, self.takes, self.refuses = 0, 10**9, 0
        self.number = errno.ENOSPC

    def fails(self, after: int, *, times: int, number: int) -> None:
        self.writes, self.takes, self.refuses, self.number = 0, after, times, number

    def works(self) -> None:
        self.takes = 10**9

    def write(self) -> None:
        self.writes += 1
        if self.takes < self.writes <= self.takes + self.refuses:
            raise OSError(self.number, os.strerror(self.number))


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    disk = Disk()
    writers = [(record, "write_whole"), (round_store, "save_weights"), (memory, "_copy")]
    for module, name in writers:
        original = getattr(module, name)

        def write(*arguments: Any, original: Any = original, **named: Any) -> Any:
            disk.write()
            return original(*arguments, **named)

        monkeypatch.setattr(module, name, write)
    return disk


class World:
    """Runs of one process after the other on one disk."""

    def __init__(self, home: Path) -> None:
        self.home, self.health = home, Health()
        self.store, self.tracker = InMemoryModelStore(home / "store"), InMemoryTracker()

    def start(self, answer: Any = add_one, rounds: int = ROUNDS) -> None:
        def holdout(server_round: int, arrays: ArrayRecord) -> MetricRecord:
            return MetricRecord({"accuracy": float(arrays.to_numpy_ndarrays()[0].mean()) / 100})

        self.tracker.run = None
        LifecycleStrategy(
            FedAvg(),
            metric="accuracy",
            approval="auto",
            store=self.store,
            tracker=self.tracker,
            home=self.home,
            artifacts=[],
            session=SessionSettings(
                round_patience=0.02,
                drain_timeout=0.05,
                retry=Breaker(0.01, 0.02),
                health=self.health,
            ),
        ).start(LocalGrid(answer), model(), num_rounds=rounds, evaluate_fn=holdout)

    def rounds(self) -> list[int]:
        return sorted(int(row["tags"]["round"]) for row in self.store.list_all_versions())

    def production(self) -> str:
        """The round of the version in Production; empty for none."""
        version = self.store.get_latest_version(Stage.PRODUCTION)
        return self.store.get_version(version).tags["round"] if version else ""

    def waiting(self) -> list[int]:
        """The rounds of which all is on disk that the next run needs."""
        found = []
        for folder in session_folders(self.home, NAME):
            rounds, damage = RoundFiles(folder).load()
            assert not damage
            found += [each.closed.round for each in rounds if each.phase == "closed"]
        return found


def check(world: World, error: Exception | None, said: str) -> None:
    """Check that a session has told what is so, and promoted nothing but the best."""
    on_disk, registered = world.waiting(), world.rounds()
    assert world.production() in ({"", "3"} if registered == [1, 2, 3] else {""})
    claims = [int(number) for number in re.findall(r"(\d+) rounds wait on disk", said)]
    assert claims in ([], [backlog(world.home, NAME).rounds])
    if error is None:
        assert ROUNDS in {*on_disk, *registered}, "the last model is neither there nor there"
        assert {*on_disk, *registered} == {1, 2, 3}
    else:
        assert disk_remedy(str(error)), error  # names what is wrong with the disk
        assert "MLflow" not in str(error)
        assert ROUNDS not in registered


def attempt(world: World, disk: Disk, after: int, times: int, number: int) -> Exception | None:
    disk.fails(after, times=times, number=number)
    try:
        world.start()
    except (CheckpointError, StoreUnavailable) as error:
        return error
    finally:
        disk.works()
    return None


def writes(home: Path, disk: Disk) -> int:
    """Return how many writes a session makes if all is well."""
    disk.fails(10**9, times=1, number=errno.ENOSPC)
    World(home).start()
    return disk.writes


@pytest.mark.parametrize("times", [1, 10**9], ids=["once", "for-good"])
def test_a_write_that_fails(
    home: Path, disk: Disk, lines: Lines, caplog: pytest.LogCaptureFixture, times: int
) -> None:
    count, ended = writes(home / "whole", disk), 0
    assert count > 15
    for after in range(count):
        number, world = ERRORS[after % len(ERRORS)], World(home / str(after))
        caplog.clear()
        error = attempt(world, disk, after, times, number)
        check(world, error, lines())
        ended += error is not None
        if error is None and world.rounds() == [1, 2, 3] and world.production() == "3":
            continue
        # With room again the same run goes on, and all of it is there in the end.
        world.start()
        assert {*world.rounds()} == {1, 2, 3}, after
        assert world.production() == "3", after
        assert {run.status for run in world.tracker.runs} <= {"FINISHED", "FAILED", "KILLED"}
        assert world.health.failing == {}
        assert not [*(world.home / "checkpoints").iterdir()]
    assert ended <= 3 if times == 1 else ended > count / 2


def full_from_round_3(disk: Disk) -> Callable[[int, Message], Any]:
    """Nodes that answer, while the server's disk has no room from round 3 on."""

    def answer(node_id: int, message: Message) -> Any:
        if int(message.content["config"]["server-round"]) == 3:
            disk.fails(0, times=10**9, number=errno.ENOSPC)
        return add_one(node_id, message)

    return answer


def test_a_session_without_room_for_its_last_rounds_ends_with_an_error(
    home: Path, disk: Disk, lines: Lines
) -> None:
    world = World(home)
    answer = full_from_round_3(disk)
    with pytest.raises(CheckpointError) as raised:
        world.start(answer, rounds=8)
    said = str(raised.value)
    assert "rounds 3 to 8 are lost" in said
    assert "No space left on device" in said
    assert "no version is promoted by rule" in said
    assert "a run with the same settings resumes after round 2" in said
    assert "the session is over" not in lines()
    assert world.rounds() in ([1], [1, 2])  # round 2 may wait
    assert [run.status for run in world.tracker.runs] == ["FAILED"]
    assert world.production() == ""
    disk.works()
    world.start(rounds=8)
    assert world.rounds() == [1, 2, 3, 4, 5, 6, 7, 8]
    assert world.production() == "8"


def test_with_other_settings_the_next_run_does_not_promote_an_older_model(
    home: Path, disk: Disk
) -> None:
    world = World(home)
    answer = full_from_round_3(disk)
    with pytest.raises(CheckpointError):
        world.start(answer, rounds=4)
    disk.works()
    world.start(rounds=1)
    assert world.rounds() == [1, 1, 2]
    assert world.production() == ""  # round 1 does not beat round 2, which is not the best


@pytest.mark.parametrize("number", ERRORS)
def test_each_kind_has_its_remedy(number: int) -> None:
    assert disk_remedy(os.strerror(number))


def test_a_full_disk_below_mlflow_is_named_and_mlflow_is_not_blamed() -> None:
    with (
        pytest.raises(StoreUnavailable) as raised,
        foreign_errors("save the version", uri="sqlite:////home/me/mlflow.db"),
    ):
        raise OperationalError(
            "(raised as a result of Query-invoked autoflush)\n(sqlite3.OperationalError) INSERT",
            {},
            Exception("database or disk is full"),
        )
    assert str(raised.value).startswith("The disk of sqlite:////home/me/mlflow.db took no data")
    assert "database or disk is full" in str(raised.value)
    assert str(raised.value).endswith("make room on it.")
