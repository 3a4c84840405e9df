# SPDX-License-Identifier: Apache-2.0
"""What a running session writes down of itself: its round, who answered, who was rejected."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

from flwr.app import Message, RecordDict
from support.local_grid import LocalGrid, add_one, model, reply

from fl_app.progress import PROGRESS_FILE, SILENT_AFTER, SessionProgress, as_json, read_progress
from fl_app.strategy import LifecycleStrategy
from fl_registry import InMemoryModelStore, InMemoryTracker

NOW = datetime(2026, 11, 30, 12, tzinfo=UTC)


def until(found: Callable[[], bool]) -> bool:
    for _ in range(200):
        if found():
            return True
        time.sleep(0.05)
    return False


def test_other_processes_see_the_round_who_answered_and_who_was_rejected(tmp_path: Path) -> None:
    seen: list[SessionProgress] = []
    store = InMemoryModelStore()
    strategy = LifecycleStrategy(store=store, tracker=InMemoryTracker(), home=tmp_path)
    name = strategy.setup.model_name

    def look() -> SessionProgress:
        found = read_progress(tmp_path, name)
        return found or SessionProgress("")

    def answer(node_id: int, message: Message) -> RecordDict:
        number = message.content["config"]["server-round"]
        evaluates = message.metadata.message_type == "evaluate"
        if evaluates and node_id == min(grid.get_node_ids()) and number == 2:
            assert until(lambda: look().round == 2 and look().phase == "evaluate")
            seen.append(look())
        if not evaluates and node_id == max(grid.get_node_ids()):
            return reply(loss=1.0)  # without a model
        return add_one(node_id, message)

    grid = LocalGrid(answer)
    strategy.start(grid, model(), num_rounds=2)
    (progress,) = seen
    assert (progress.round, progress.num_rounds, progress.requested) == (2, 2, 3)
    (bad,) = progress.rejected
    assert bad.node_id == str(max(grid.get_node_ids()))
    assert bad.in_a_row == 2
    assert "ArrayRecord" in bad.reason
    assert progress.rejected_before[0].node_id == bad.node_id
    assert progress.round_seconds is not None
    assert read_progress(tmp_path, name) is None  # the session is over
    assert [p for p in tmp_path.rglob("*") if "progress" in p.name] == []


def test_the_time_left_is_that_of_the_rounds_so_far() -> None:
    begun = SessionProgress("s", num_rounds=8, round=3, phase="train", round_started=NOW)
    assert begun.seconds_left(NOW) is None
    known = SessionProgress(
        "s", num_rounds=8, round=3, phase="train", round_started=NOW, round_seconds=10.0
    )
    assert known.seconds_left(NOW + timedelta(seconds=4)) == 5 * 10 + 6
    assert known.seconds_left(NOW + timedelta(seconds=400)) == 50


def test_a_process_that_writes_nothing_more_is_silent_and_damage_is_none(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints" / "s"
    folder.mkdir(parents=True)
    (folder / "session.json").write_text('{"SessionRecord": {"model": "m"}}')
    progress = SessionProgress("s", num_rounds=2, written=NOW)
    (folder / PROGRESS_FILE).write_bytes(as_json(progress))
    found = read_progress(tmp_path, "m")
    assert found == progress
    assert not found.is_silent(NOW + SILENT_AFTER)
    assert found.is_silent(NOW + SILENT_AFTER + timedelta(seconds=1))
    assert read_progress(tmp_path, "other") is None
    (folder / PROGRESS_FILE).write_text('{"id": 3')
    assert read_progress(tmp_path, "m") is None
