# SPDX-License-Identifier: Apache-2.0
"""Which interrupted session a new one resumes, and which others are only finished."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from fl_app.strategy.checkpoints.backlog import session_folders
from fl_app.strategy.checkpoints.folder import SessionFolder, set_apart
from fl_app.strategy.checkpoints.record import Checkpoint, SessionRecord
from fl_app.strategy.checkpoints.round_files import RoundFiles
from fl_app.strategy.errors import CheckpointError, ResumeError

logger = logging.getLogger("flwr.fl_app")

ResumeMode = Literal["auto", "require", "fresh"]


@dataclass(frozen=True)
class Resume:
    """What to do with a session of the same model that was interrupted.

    It is the same session if model, request, number of rounds, arrays, the classes of the inner
    strategy, its numbers and texts, the params and the configs are the same.

    Parameters
    ----------
    mode : "auto" | "require" | "fresh"
        ``auto`` resumes it if it is the same, and else starts a new one. ``require`` resumes it or
        raises. ``fresh`` always starts a new one.
    ignoring : frozenset[str]
        Params that may have changed, since they shape no model.

    Raises
    ------
    ValueError
        If ``mode`` is another word.
    """

    mode: ResumeMode = "auto"
    ignoring: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        if self.mode not in get_args(ResumeMode):
            raise ValueError(f"resume is {self.mode!r}, expected 'auto', 'require' or 'fresh'.")

    def compared(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Return the settings that must be the same, as they are read back from disk."""
        compared = {name: value for name, value in settings.items() if name not in self.ignoring}
        return dict(json.loads(json.dumps(compared)))


@dataclass(frozen=True)
class Interrupted:
    """A session on disk that no process runs; its folder is locked by this one.

    Attributes
    ----------
    folder : SessionFolder
        Its folder.
    rounds : tuple[Checkpoint, ...]
        Its rounds, from round 0, which is what it started with.
    """

    folder: SessionFolder
    rounds: tuple[Checkpoint, ...] = field(default=())

    @property
    def resumable(self) -> bool:
        """Whether its process ended in the middle, after it had started."""
        return _resumable(self.folder.record) and bool(self.rounds)

    @property
    def waiting(self) -> list[Checkpoint]:
        """The rounds that are closed and not finished, oldest first."""
        return [checkpoint for checkpoint in self.rounds if checkpoint.phase == "closed"]


def lock_interrupted(home: Path, model: str) -> list[Interrupted]:
    """Return the sessions of a model that no process runs, the newest first, and lock them.

    One whose files are damaged is set apart with a warning.
    """
    sessions = []
    for folder in _locked(home, model):
        try:
            rounds = tuple(RoundFiles(folder.path).load())
        except CheckpointError as error:
            apart = set_apart(folder.path)
            logger.warning("%s cannot be read and is set apart: %s", apart, error)
            folder.release()
        else:
            sessions.append(Interrupted(folder, rounds))
    return sorted(sessions, key=lambda each: each.folder.record.started, reverse=True)


def is_cut_short(home: Path, model: str, request_id: str = "") -> bool:
    """Return whether a session that served this request, or none, can be resumed."""
    resumable = False
    for folder in _locked(home, model):
        begun = (folder.path / "done-0000.json").exists()
        same = folder.record.origin.request_id == request_id
        resumable |= begun and same and _resumable(folder.record)
        folder.release()
    return resumable


def _locked(home: Path, model: str) -> Iterable[SessionFolder]:
    return filter(None, map(SessionFolder.open, session_folders(home, model)))


def _resumable(record: SessionRecord) -> bool:
    return record.state == "training" and bool(record.run_id)


def choose(
    sessions: Sequence[Interrupted], now: SessionRecord, resume: Resume
) -> Interrupted | None:
    """Return the session to resume; None to start a new one.

    Raises
    ------
    ResumeError
        There is none, though one is required.
    """
    why = []
    for each in sessions:
        record = each.folder.record
        if not each.resumable or record.origin.request_id != now.origin.request_id:
            continue
        differences = record.differences(now)
        if resume.mode == "require":
            differences += _not_on_disk(each.rounds[-1].inner.missing)
        if resume.mode != "fresh" and not differences:
            return each
        # With other settings it is not resumed: a run that is half of one and half of another
        # learning rate is neither. Settings that shape no model are not compared (`ignoring`).
        why.append("; ".join(differences) or "a fresh one is requested")
        last = each.rounds[-1].closed.round
        logger.warning("the session interrupted in round %d is not resumed: %s", last, why[-1])
    if resume.mode == "require":
        raise ResumeError(
            f"No session of {now.model!r} can be resumed here"
            + (f": {why[0]}" if why else ", since none was interrupted")
            + "; use resume='auto' to start a new one then."
        )
    return None


def _not_on_disk(missing: Iterable[str]) -> list[str]:
    return [f"{place.strip('/')} of its strategy is not on disk" for place in missing]
