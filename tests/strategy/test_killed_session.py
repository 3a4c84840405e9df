# SPDX-License-Identifier: Apache-2.0
"""Sessions that are killed (kill -9) at a point drawn at random, or at any moment, and run again.

Each ends with the very weights of one that nobody killed, and has trained one round twice at most.
"""

from __future__ import annotations

import json
import random
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from support.fork_context import fork_context
from support.killed_session import ROUNDS, STRATEGIES, outcome, run

from fl_registry.files.digests import file_digest
from fl_registry.files.weights import load_weights

NIGHTLY = settings.get_current_profile_name() == "nightly"
KILLS = 50 if NIGHTLY else 3
"""Of each kind, for each strategy."""
SECONDS_TO_END = 5
"""What Flower gives a process that is told to end."""
pytestmark = [pytest.mark.slow, pytest.mark.chaos]


class Whole:
    """A session that nobody killed."""

    def __init__(self, folder: Path, kind: str) -> None:
        folder.mkdir()
        began = time.monotonic()
        assert ended(started(folder, kind)) == 0
        self.seconds = time.monotonic() - began
        self.points = int((folder / "points").read_text())
        self.digest = file_digest(folder / "end.safetensors")
        self.outcome = outcome(folder)


def started(folder: Path, kind: str, die_at: int = 0) -> Any:
    process = fork_context("support.killed_session").Process(
        target=run, args=(folder, kind, die_at)
    )
    process.start()
    return process


def ended(process: Any) -> int:
    process.join(120)
    assert process.exitcode is not None
    return int(process.exitcode)


@pytest.fixture(scope="module", params=STRATEGIES)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def whole(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    return Whole(tmp_path_factory.mktemp("whole") / kind, kind)


def is_over(folder: Path) -> bool:
    """Whether the session had come to its end, and only its process had not."""
    kept = list((folder / "home" / "checkpoints").glob("*/session.json"))
    noted = (folder / "notes").exists() and f"evaluate {ROUNDS}" in (folder / "notes").read_text()
    return noted and all(
        json.loads(path.read_bytes())["SessionRecord"]["state"] == "ending" for path in kept
    )


def goes_on(folder: Path, kind: str, whole: Whole) -> None:
    """Run the session again, and compare it with the one that nobody killed."""
    if is_over(folder):
        assert outcome(folder)["versions"] == whole.outcome["versions"]
        return
    assert ended(started(folder, kind, die_at=-1)) == 0
    assert file_digest(folder / "end.safetensors") == whole.digest
    assert len(load_weights(folder / "end.safetensors")) == 2
    assert outcome(folder) == whole.outcome
    trained = Counter(
        line for line in (folder / "notes").read_text().splitlines() if line.startswith("train")
    )
    assert sorted(trained) == sorted(f"train {n}" for n in range(1, ROUNDS + 1))
    assert sum(trained.values()) <= ROUNDS + 1
    releases = folder / "releases"
    if releases.exists():
        assert releases.read_text() == str(ROUNDS)
    assert list((folder / "home" / "checkpoints").glob("[!.]*")) == []


def test_a_session_killed_at_any_point_ends_as_if_nobody_had(
    kind: str, whole: Whole, tmp_path: Path
) -> None:
    assert whole.points > 300
    chance = random.Random(f"points of {kind}")
    for number in range(KILLS):
        folder = tmp_path / str(number)
        folder.mkdir()
        point = chance.randint(1, whole.points)
        assert ended(started(folder, kind, point)) == -9, point
        goes_on(folder, kind, whole)


def test_a_session_killed_at_any_moment_ends_as_if_nobody_had(
    kind: str, whole: Whole, tmp_path: Path
) -> None:
    chance = random.Random(f"moments of {kind}")
    for number in range(KILLS):
        folder = tmp_path / str(number)
        folder.mkdir()
        process = started(folder, kind, die_at=-1)
        time.sleep(chance.uniform(0, whole.seconds))
        process.kill()
        process.join()
        if (folder / "end.safetensors").exists():
            continue  # it was quicker
        goes_on(folder, kind, whole)


@pytest.mark.parametrize("registry", ["disk", "silent"])
def test_a_session_that_is_told_to_end_does_so_and_goes_on_later(
    kind: str, whole: Whole, tmp_path: Path, registry: str
) -> None:
    chance = random.Random(f"ends of {kind}")
    for number in range(KILLS if registry == "disk" else 1):
        folder = tmp_path / str(number)
        folder.mkdir()
        process = fork_context("support.killed_session").Process(
            target=run, args=(folder, kind, -1, registry)
        )
        process.start()
        if registry == "silent":
            until(folder / "notes", f"train {ROUNDS}")  # no round waits for it
        else:
            until(folder / "notes", f"train {chance.randint(1, ROUNDS)}")
        process.terminate()
        process.join(SECONDS_TO_END)
        assert process.exitcode == 0
        goes_on(folder, kind, whole)


def until(notes: Path, line: str) -> None:
    """Wait until there is a line in the notes."""
    deadline = time.monotonic() + 60
    while not (notes.exists() and line in notes.read_text().splitlines()):
        assert time.monotonic() < deadline, f"no {line!r}"
        time.sleep(0.005)


def test_a_session_killed_again_and_again_ends_as_if_nobody_had(
    kind: str, whole: Whole, tmp_path: Path
) -> None:
    chance = random.Random(f"deaths of {kind}")
    for _ in range(3):  # each dies in the first half of what would be left
        assert ended(started(tmp_path, kind, chance.randint(20, whole.points // 2))) == -9
    assert ended(started(tmp_path, kind, die_at=-1)) == 0
    assert file_digest(tmp_path / "end.safetensors") == whole.digest
    assert outcome(tmp_path) == whole.outcome
