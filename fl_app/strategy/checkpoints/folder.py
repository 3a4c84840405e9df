# SPDX-License-Identifier: Apache-2.0
"""The folder of a session: its lock and its record; and what waits in all of them for MLflow."""

from __future__ import annotations

import json
import logging
import shutil
import threading
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from fl_app.strategy.checkpoints.record import SessionRecord, disk_errors, write_file
from fl_app.strategy.errors import CheckpointError, SessionOverError
from fl_registry.files.atomic import sync_folder
from fl_registry.redaction import one_line

if TYPE_CHECKING:
    from filelock import FileLock

logger = logging.getLogger("flwr.fl_app")

CHECKPOINTS = "checkpoints"
SESSION_FILE, TROUBLE_FILE = "session.json", "trouble.json"
APART = ".failed"
"""What the names of the folders end with that were set apart."""


class SessionFolder:
    """The folder of one session, locked by the process that runs it.

    Parameters
    ----------
    path : Path
        The folder.
    record : SessionRecord
        The session's record.
    lock : FileLock
        Its lock, which this process has.

    Raises
    ------
    CheckpointError
        From `create`: the disk is full.
    """

    def __init__(self, path: Path, record: SessionRecord, lock: FileLock) -> None:
        self.path = path
        self.record = record
        self.over = False
        """Whether this process has ended the session, and must not write to it any more."""
        self._lock = lock
        self._noting = threading.Lock()  # both threads of a session change its record

    @classmethod
    def create(cls, path: Path, record: SessionRecord) -> SessionFolder:
        """Create and lock the folder of a new session, whole or not at all."""
        draft = _unfinished(path)
        lock = folder_lock(draft)
        try:
            with disk_errors(f"the session's folder {path} could not be created"):
                draft.mkdir(parents=True)
                lock.acquire()
                write_file(draft / SESSION_FILE, record)
                draft.rename(path)
                sync_folder(path.parent)
        except BaseException:
            lock.release()
            shutil.rmtree(draft, ignore_errors=True)
            raise
        return cls(path, record, lock)

    def release(self) -> None:
        """Release the lock."""
        self._lock.release()

    def note(self, **changes: object) -> None:
        """Change the session's record, in memory and, if the disk accepts it, on disk."""
        if self.over:
            return
        with self._noting:
            self.record = replace(self.record, **changes)  # type: ignore[arg-type]
            try:
                write_file(self.path / SESSION_FILE, self.record)
            except CheckpointError as error:
                logger.warning("%s", error)

    def note_trouble(self, why: str) -> None:
        """Write down why rounds wait, for other processes to show; an empty text for none."""
        try:
            write_file(self.path / TROUBLE_FILE, why)
        except CheckpointError as error:
            logger.info("%s", error)

    def require_open(self) -> None:
        """Raise SessionOverError if this process has ended the session.

        The worker may outlive the session, whose MLflow run is then no longer the current one.
        """
        if self.over:
            raise SessionOverError(
                "The session is over; its remaining rounds are for the next one."
            )

    def remove(self) -> None:
        """Delete the session, all of which is in the registry."""
        remove_session(self.path)


def folder_lock(path: Path) -> FileLock:
    """Return the lock of a session's folder; ``acquire`` raises TimeoutError if another has it."""
    from filelock import FileLock

    return FileLock(path / "lock", timeout=0, thread_local=False)


def remove_session(path: Path) -> None:
    """Delete the folder of a session."""
    # By a rename first: no process may see it half deleted.
    gone = _unfinished(path)
    try:
        path.rename(gone)
    except OSError as error:
        logger.warning("%s could not be deleted: %s", path, error.strerror)
    shutil.rmtree(gone, ignore_errors=True)


def set_apart(path: Path, why: str) -> Path:
    """Rename a session's folder so that no session resumes it; its files stay, with the reason."""
    apart = path.with_name(path.name + APART)
    try:
        write_file(path / TROUBLE_FILE, one_line(why, 500))
        path.rename(apart)
    except (OSError, CheckpointError) as error:
        logger.warning("%s could not be set apart: %s", path, one_line(error))
    return apart


def _unfinished(path: Path) -> Path:
    """Return a name that `session_folders` ignores and a clean-up finds."""
    return path.with_name(f".{path.name}.tmp")


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

    A session whose record is damaged may be this model's.
    """
    paths = sorted((home / CHECKPOINTS).glob(f"[!.]*/{SESSION_FILE}"))
    named = (p for p in paths if not p.parent.name.endswith(APART))
    return [p.parent for p in named if _record_of(p).get("model", model) == model]


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
