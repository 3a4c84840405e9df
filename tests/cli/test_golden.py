# SPDX-License-Identifier: Apache-2.0
"""What each command prints at 40, 80 and 200 columns and in a pipe, compared with golden files.

``UPDATE_GOLDEN=1 pytest tests/cli`` writes them anew; look at what changed in them.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from support.cli_store import HOME, UNFOLDED, known_machine, make_home
from support.terminal import as_terminal

from fl_app.cli import main
from fl_app.cli.main import COMMANDS

GOLDEN = Path(__file__).parent / "golden"
READS = {
    "status": ["status"],
    "versions": ["versions"],
    "versions-limit": ["versions", "--limit", "2", "--stage", "archived"],
    "versions-none": ["versions", "--since", "2100-01-01"],
    "versions-other-name": ["versions", "--name", "nope"],
    "compare": ["compare", "2", "4"],
    "history": ["history"],
    "card": ["card", "4"],
    "prune": ["prune", "--keep", "1"],
    "recover": ["recover"],
    "doctor": ["doctor"],
    "home-check": ["home", "check"],
    "approve-none": ["approve", "2"],
    "promote-archived": ["promote", "3"],
    "unknown-version": ["promote", "99"],
    "unknown-command": ["verions"],
    "unknown-stage": ["versions", "--stage", "prod"],
    "empty-reason": ["trigger", "--reason", " "],
    "version": ["--version"],
    "export": ["export", "4", "best.pt"],
    "evaluate": ["evaluate", "4", "--data", "data.yaml"],
    "people-list": ["people", "list"],
    "people-revoke": ["people", "revoke", "nobody"],
    "ui": ["ui", "--port", "5055"],
    "serve": ["serve", "--port", "5056"],
    "stop": ["stop"],
    "deploy-local": ["deploy-local", "--nodes", "3"],
    "run": ["run"],
    "supernode": ["supernode", "--superlink", "superlink.example:8000"],
    "keys": ["keys", f"{HOME}/keys", "--nodes", "1"],
}
"""By golden file: what changes nothing, in the registry at least."""
MOVES = [
    ("approve", ["approve", "--by", "Ada", "--note", "it sees sharks"]),
    ("approve-again", ["approve", "5"]),
    ("rollback", ["rollback", "--by", "Ada"]),
    ("rollback-nothing", ["rollback", "--to", "4"]),
    ("promote", ["promote", "5", "--by", "Ada"]),
    ("restore", ["restore", "3"]),
    ("archive", ["archive", "3", "--note", "not needed"]),
    ("archive-again", ["archive", "3"]),
    ("reject-none", ["reject"]),
    ("acknowledge-whole", ["acknowledge", "1"]),
    ("trigger", ["trigger", "--reason", "new pictures", "--by", "Ada"]),
    ("trigger-joined", ["trigger", "--reason", "more pictures", "--by", "Ada"]),
    ("prune-remove", ["prune", "--keep", "1", "--remove"]),
    ("versions-after", ["versions"]),
    ("recover-discard", ["recover", "aaaa", "--discard"]),
    ("home-move", ["home", "move", f"{HOME}-moved"]),
]
"""In this order: what moves, requests or removes something."""
WIDTHS = (40, 80, 200)


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    """A home with a store, always at the same place: its path is in what is printed."""
    with FileLock(f"{HOME}.lock"):
        shutil.rmtree(HOME, ignore_errors=True)
        make_home(HOME)
        yield HOME
        shutil.rmtree(HOME, ignore_errors=True)
        shutil.rmtree(f"{HOME}-moved", ignore_errors=True)


@pytest.fixture
def ready(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FL_APP_HOME", str(place))
    known_machine(monkeypatch)


def printed(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What a command prints, what it writes beside it, and how it ends."""
    with pytest.raises(SystemExit) as ended:
        main.main(words)
    said = capsys.readouterr()
    errors = f"--- standard error\n{said.err}" if said.err else ""
    text = f"$ fl-app {' '.join(words)}\n{said.out}{errors}--- status {ended.value.code or 0}\n"
    text = re.sub(r" +$", "", text, flags=re.MULTILINE)
    text = re.sub(r"\b[0-9a-f]{32}\b", "0" * 32, text)  # ids
    # What is not of the store, whose clock stands in 2025, is of now.
    return re.sub(r"\b(?!2025)\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\b", "2025-04-01 00:00:00", text)


def compare(name: str, text: str) -> None:
    file = GOLDEN / f"{name}.txt"
    if os.environ.get("UPDATE_GOLDEN"):
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
    assert file.read_text() == text, f"UPDATE_GOLDEN=1 writes {file.name} anew"


def in_all_widths(
    words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> str:
    texts = []
    for width in WIDTHS:
        with monkeypatch.context() as patch:
            as_terminal(patch, width)
            shown = printed(words, capsys)
        out = shown.partition("--- standard error")[0].splitlines()[1:]
        assert words[0] in UNFOLDED or max(map(len, out), default=0) <= width, (words, width)
        texts.append(f"=== {width} columns\n{shown}")
    monkeypatch.setenv("COLUMNS", "80")  # it is none: in a pipe nothing is folded
    return "".join([*texts, f"=== a pipe\n{printed(words, capsys)}"])


@pytest.mark.parametrize("name", READS)
@pytest.mark.usefixtures("ready")
def test_it_prints_what_the_golden_file_has(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    compare(name, in_all_widths(READS[name], capsys, monkeypatch))


@pytest.mark.usefixtures("ready")
def test_version_stage_and_reason_are_there_at_every_width() -> None:
    text = (GOLDEN / "versions.txt").read_text()
    narrow, usual, _, pipe = re.split(r"^=== .*$", text, flags=re.MULTILINE)[1:]
    assert [line.split()[:2] for line in narrow.splitlines() if re.match(r"\d", line)] == [
        [version, stage] for version, stage in zip("54321", ("Staging", *STAGES), strict=True)
    ]
    for part in (narrow, usual):
        assert "superseded by" in part
        assert "(pending approval)" in " ".join(part.split())
    rows = [line.split("\t") for line in pipe.splitlines() if "\t" in line]
    assert [row[0] for row in rows] == [*"54321"]
    assert {len(row) for row in rows} == {7}


STAGES = ("Production", "Archived", "Archived", "Archived")


@pytest.mark.usefixtures("ready")
def test_what_changes_something_prints_what_the_golden_files_have(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, words in MOVES:
        with monkeypatch.context() as patch:
            as_terminal(patch, 80)
            compare(name, printed(words, capsys))


def test_every_command_has_a_golden_file() -> None:
    shown = {words[0] for words in (*READS.values(), *(words for _, words in MOVES))}
    assert set(COMMANDS) - shown == set()


@pytest.mark.usefixtures("ready")
def test_json_has_what_the_texts_have(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def read(*words: str) -> Any:
        with pytest.raises(SystemExit):
            main.main([*words, "--json"])
        return json.loads(capsys.readouterr().out)

    if not place.exists():  # the last of the moves has moved it
        Path(f"{HOME}-moved").rename(place)
    assert read("stop") == {"port": 39999, "process": None}
    assert read("recover") == []
    assert set(read("home", "check")) >= {"now", "noted"}
