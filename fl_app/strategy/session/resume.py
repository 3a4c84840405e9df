# SPDX-License-Identifier: Apache-2.0
"""Which session that was cut short a new one goes on with, and which others are to be settled.

How it goes on is in `fl_app.strategy.session.run`.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from fl_app.strategy.errors import CheckpointError, ResumeError
from fl_app.strategy.session.backlog import session_folders
from fl_app.strategy.session.folder import Checkpoint, SessionFolder
from fl_app.strategy.session.record import SessionRecord

logger = logging.getLogger("flwr.fl_app")

ResumeMode = Literal["auto", "require", "fresh"]


@dataclass(frozen=True)
class Resume:
    """What to do with a session of the same model that was cut short.

    It is the same session if model, request, number of rounds, arrays, the classes of the inner
    strategy, its numbers and texts, the params and the configs are the same.

    Parameters
    ----------
    mode : "auto" | "require" | "fresh"
        ``auto`` goes on with it if it is the same, and else begins anew. ``require`` goes on with
        it or refuses. ``fresh`` always begins anew.
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
        """The settings that must be the same, as they are on disk."""
        kept = {name: value for name, value in settings.items() if name not in self.ignoring}
        return dict(json.loads(json.dumps(kept)))


@dataclass(frozen=True)
class Found:
    """A session on disk that nobody runs; its folder is held.

    Attributes
    ----------
    folder : SessionFolder
        Where it is.
    record : SessionRecord
        Who it is.
    rounds : tuple[Checkpoint, ...]
        Its rounds, from round 0, which is what it started with.
    """

    folder: SessionFolder
    record: SessionRecord
    rounds: tuple[Checkpoint, ...] = field(default=())

    @property
    def cut_short(self) -> bool:
        """Whether it can go on: its process ended in the middle, after it had begun."""
        return bool(self.record.state == "training" and self.record.run_id and self.rounds)

    @property
    def waiting(self) -> list[Checkpoint]:
        """The rounds that are closed and not finished, oldest first."""
        return [checkpoint for checkpoint in self.rounds if checkpoint.phase == "closed"]


def find(home: Path, model: str) -> list[Found]:
    """Return the sessions of a model that nobody runs, the newest first, and hold their folders.

    One whose files are damaged is set apart with a warning.
    """
    found = []
    for path in session_folders(home, model):
        folder = SessionFolder(path)
        if not folder.acquire():
            continue
        try:
            record = SessionRecord.from_json(folder.read_session())
            found.append(Found(folder, record, tuple(folder.checkpoints())))
        except (CheckpointError, KeyError, TypeError, ValueError) as error:
            logger.warning("%s cannot be read and is set apart: %s", folder.set_apart(), error)
            folder.release()
    return sorted(found, key=lambda each: each.record.started, reverse=True)


def is_cut_short(home: Path, model: str, request_id: str = "") -> bool:
    """Whether a session that served this request, or none, waits to go on."""
    sessions = find(home, model)
    for each in sessions:
        each.folder.release()
    return any(s.cut_short and s.record.origin.request_id == request_id for s in sessions)


def choose(found: Sequence[Found], now: SessionRecord, resume: Resume) -> Found | None:
    """Return the session to go on with; None to begin a new one.

    Raises
    ------
    ResumeError
        There is none, though one is required.
    """
    mine = [s for s in found if s.cut_short and s.record.origin.request_id == now.origin.request_id]
    why = []
    for each in mine:
        differences = each.record.differences(now)
        if resume.mode == "require":
            differences += _not_kept(each.rounds[-1].inner.missing)
        if resume.mode != "fresh" and not differences:
            return each
        why.append("; ".join(differences) or "a fresh one is asked for")
        last = each.rounds[-1].closed.round
        logger.warning("the session that was cut short in round %d is left: %s", last, why[-1])
    if resume.mode == "require":
        raise ResumeError(
            f"No session of {now.model!r} can go on here"
            + (f": {why[0]}" if why else ", since none was cut short")
            + "; use resume='auto' to begin a new one where there is none."
        )
    return None


def _not_kept(missing: Iterable[str]) -> list[str]:
    return [f"{place.strip('/')} of its strategy is not on disk" for place in missing]
