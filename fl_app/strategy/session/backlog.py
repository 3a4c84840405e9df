# SPDX-License-Identifier: Apache-2.0
"""How many closed rounds wait on disk to be handed to MLflow, and why; for whoever shows it.

Only names are read, and what tells which model they belong to. Who writes them is
``fl_app.strategy.session.folder``.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CHECKPOINTS = "checkpoints"
SESSION_FILE, TROUBLE_FILE = "session.json", "trouble.json"


@dataclass(frozen=True)
class Backlog:
    """Closed rounds that are on disk and not yet in the registry.

    Attributes
    ----------
    rounds : int
        How many; one is usual while a session runs, since a round is finished during the next one.
    trouble : str
        Why they wait; empty while MLflow answers.
    """

    rounds: int = 0
    trouble: str = ""

    def __str__(self) -> str:
        """One line for people."""
        rounds = f"{self.rounds} round{'' if self.rounds == 1 else 's'}"
        return f"{rounds}: {self.trouble}" if self.trouble else rounds


def backlog(home: Path, model: str) -> Backlog:
    """What waits under an app's home for a registered model.

    Parameters
    ----------
    home : Path
        The app's home.
    model : str
        The registered model's name.
    """
    rounds, trouble = 0, ""
    for folder in session_folders(home, model):
        rounds += len(list(folder.glob("closed-*.json")))
        trouble = trouble or str(read_json(folder / TROUBLE_FILE).get("why", ""))
    return Backlog(rounds, trouble if rounds else "")


def session_folders(home: Path, model: str) -> list[Path]:
    """The folders of a model's sessions; neither drafts nor those that were set apart."""
    found = sorted((home / CHECKPOINTS).glob(f"[!.]*/{SESSION_FILE}"))
    named = [path for path in found if read_json(path).get("model") == model]
    return [path.parent for path in named if path.parent.suffix != ".failed"]


def read_json(path: Path) -> dict[str, Any]:
    """The object in a file; empty where there is none, or something else."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
