# SPDX-License-Identifier: Apache-2.0
"""Where sessions are on disk, and what waits in them for MLflow. Imports nothing of Flower."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

CHECKPOINTS = "checkpoints"
SESSION_FILE, TROUBLE_FILE = "session.json", "trouble.json"


@dataclass(frozen=True)
class Backlog:
    """Closed rounds that are on disk and not yet in the registry.

    Attributes
    ----------
    rounds : int
        How many; one is usual while a session runs, as a round is finished during the next one.
    trouble : str
        Why they wait; empty while MLflow answers.
    """

    rounds: int = 0
    trouble: str = ""

    def __str__(self) -> str:
        """Return one line of text."""
        rounds = f"{self.rounds} round{'' if self.rounds == 1 else 's'}"
        return f"{rounds}: {self.trouble}" if self.trouble else rounds


def backlog(home: Path, model: str) -> Backlog:
    """Return what waits under an app's home for a registered model.

    Only names of files are read, and which model a session belongs to.
    """
    rounds, trouble = 0, ""
    for folder in session_folders(home, model):
        rounds += len(list(folder.glob("closed-*.json")))
        trouble = trouble or str(_read_json(folder / TROUBLE_FILE) or "")
    return Backlog(rounds, trouble if rounds else "")


def session_folders(home: Path, model: str) -> list[Path]:
    """Return the folders of a model's sessions; neither drafts nor those that were set apart."""
    paths = sorted((home / CHECKPOINTS).glob(f"[!.]*/{SESSION_FILE}"))
    return [p.parent for p in paths if p.parent.suffix != ".failed" and _model_of(p) == model]


def _model_of(path: Path) -> object:
    match _read_json(path):
        case {"SessionRecord": {"model": model}}:
            return model
    return None


def _read_json(path: Path) -> object:
    """Return the value in a file; None if there is none, or it is damaged."""
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
