# SPDX-License-Identifier: Apache-2.0
"""Where sessions are on disk, and what waits in them for MLflow. Imports nothing of Flower."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

CHECKPOINTS = "checkpoints"
SESSION_FILE, TROUBLE_FILE = "session.json", "trouble.json"
APART = ".failed"
"""What the names of the folders end with that were set apart."""


@dataclass(frozen=True)
class Backlog:
    """Closed rounds that are on disk and not yet in the registry.

    Attributes
    ----------
    rounds : int
        How many; one is usual while a session runs, as a round is finished during the next one.
    trouble : str
        Why they wait; empty while MLflow answers.
    apart : int
        Sessions that could not be finished and were set apart; their rounds are not counted.
    """

    rounds: int = 0
    trouble: str = ""
    apart: int = 0

    def __str__(self) -> str:
        """Return one line of text."""
        rounds = f"{self.rounds} round{'' if self.rounds == 1 else 's'}"
        line = f"{rounds}: {self.trouble}" if self.trouble else rounds
        return f"{line}; {self.problem}" if self.apart else line

    @property
    def problem(self) -> str:
        """What people should do about the sessions that were set apart; empty without any."""
        sessions = f"{self.apart} session{'' if self.apart == 1 else 's'}"
        return f"{sessions} set apart: `fl-app recover` lists them" if self.apart else ""


def backlog(home: Path, model: str) -> Backlog:
    """Return what waits under an app's home for a registered model.

    Only names of files are read, and which model a session belongs to.
    """
    rounds, trouble = 0, ""
    for folder in session_folders(home, model):
        rounds += len(list(folder.glob("closed-*.json")))
        trouble = trouble or str(_read_json(folder / TROUBLE_FILE) or "")
    apart = sum(session.apart for session in unfinished_sessions(home, model))
    return Backlog(rounds, trouble if rounds else "", apart)


@dataclass(frozen=True)
class UnfinishedSession:
    """A session on disk that is not over.

    Attributes
    ----------
    id : str
        The name of its folder.
    path : Path
        The folder.
    rounds : int
        Its closed rounds that are not in the registry.
    why : str
        Why they are not; empty if that is not known, as while it runs.
    apart : bool
        Whether it was set apart, so that no run finishes it.
    run_id : str
        Its MLflow run; empty if it has none, or if its record cannot be read.
    """

    id: str
    path: Path
    rounds: int
    why: str
    apart: bool
    run_id: str


def unfinished_sessions(home: Path, model: str) -> list[UnfinishedSession]:
    """Return the sessions of a model that are not over; those with a damaged record are any's."""
    found = []
    for path in sorted((home / CHECKPOINTS).glob("[!.]*/")):
        apart, fields = path.name.endswith(APART), _record_of(path / SESSION_FILE)
        if fields.get("model", model) != model:
            continue
        session = UnfinishedSession(
            id=path.name.removesuffix(APART),
            path=path,
            rounds=len(list(path.glob("closed-*.json"))),
            why=str(_read_json(path / TROUBLE_FILE) or ""),
            apart=apart,
            run_id=str(fields.get("run_id") or ""),
        )
        found.append(session)
    return found


def session_folders(home: Path, model: str) -> list[Path]:
    """Return the folders of a model's sessions; neither drafts nor those that were set apart.

    A session whose record is damaged or missing may be this model's.
    """
    paths = sorted((home / CHECKPOINTS).glob("[!.]*/"))
    named = (path for path in paths if not path.name.endswith(APART))
    return [p for p in named if _record_of(p / SESSION_FILE).get("model", model) == model]


def _record_of(path: Path) -> dict[str, object]:
    """Return the fields of a session's record; none if it is damaged."""
    match _read_json(path):
        case {"SessionRecord": dict(fields)}:
            return fields
    return {}


def _read_json(path: Path) -> object:
    """Return the value in a file; None if there is none, or it is damaged."""
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
