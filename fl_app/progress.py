# SPDX-License-Identifier: Apache-2.0
"""What a running session writes down of itself for the page and the API. Without Flower."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

from pydantic import TypeAdapter, ValidationError

from fl_app.backlog import session_folders
from fl_app.events import RejectedReply

PROGRESS_FILE = "progress.json"
SILENT_AFTER = timedelta(seconds=60)
"""After so long without a new file the session's process is taken to hang or to be gone."""
MAX_NODES = 50
"""Nodes that the file names."""
Phase = Literal["starting", "waiting", "train", "evaluate", "finishing"]


def _now() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True)
class SessionProgress:
    """How far a session is.

    Attributes
    ----------
    id : str
        The name of its folder.
    run_id : str
        Its MLflow run.
    trigger : str
        Reason of the request that it serves; empty if a person started it.
    parent_version : str | None
        The version that it starts from; None for new weights.
    num_rounds : int
        How many rounds it has.
    round : int
        The round under way; 0 before the first one.
    phase : str
        ``waiting`` for nodes, ``train``, ``evaluate``; ``finishing`` after the last round.
    requested : int
        Nodes that were sent a message in this phase.
    answered : int
        How many of them have answered, rejected replies included.
    nodes : tuple[str, ...]
        Ids of those whose reply counts; `MAX_NODES` at most.
    rejected : tuple[RejectedReply, ...]
        Rejected replies of this round; `MAX_NODES` at most.
    rejected_before : tuple[RejectedReply, ...]
        Those of the round before.
    round_seconds : float | None
        Mean duration of its last rounds; None before the first one is over.
    started, round_started, written : datetime
        When the session and its round began, and when this was written, in UTC.
    """

    id: str
    run_id: str = ""
    trigger: str = ""
    parent_version: str | None = None
    num_rounds: int = 0
    round: int = 0
    phase: Phase = "starting"
    requested: int = 0
    answered: int = 0
    nodes: tuple[str, ...] = ()
    rejected: tuple[RejectedReply, ...] = ()
    rejected_before: tuple[RejectedReply, ...] = ()
    round_seconds: float | None = None
    started: datetime = field(default_factory=_now)
    round_started: datetime = field(default_factory=_now)
    written: datetime = field(default_factory=_now)

    def is_silent(self, now: datetime) -> bool:
        """Return whether the session's process hangs or is gone."""
        return now - self.written > SILENT_AFTER

    def seconds_left(self, now: datetime) -> float | None:
        """Return about how long the remaining rounds take; None while that is not known."""
        if self.round_seconds is None or self.phase == "finishing":
            return None
        elapsed = (now - self.round_started).total_seconds()
        left = self.num_rounds - self.round
        return left * self.round_seconds + max(0.0, self.round_seconds - elapsed)


_PROGRESS = TypeAdapter(SessionProgress)


def as_json(progress: SessionProgress) -> bytes:
    """Return the content of the file."""
    return _PROGRESS.dump_json(progress)


def read_progress(home: Path, model: str) -> SessionProgress | None:
    """Return what the session of a model wrote last; None if none is on disk, or it is damaged."""
    found = []
    for folder in session_folders(home, model):
        try:
            found.append(_PROGRESS.validate_json((folder / PROGRESS_FILE).read_bytes()))
        except (OSError, ValidationError):
            continue
    return max(found, key=lambda each: each.written, default=None)
