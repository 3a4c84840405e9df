# SPDX-License-Identifier: Apache-2.0
"""The folder of a session: its lock and its record."""

from __future__ import annotations

import logging
import shutil
import threading
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from fl_app.strategy.checkpoints.backlog import SESSION_FILE, TROUBLE_FILE
from fl_app.strategy.checkpoints.json_files import disk_errors, read, write
from fl_app.strategy.checkpoints.plain_json import encode
from fl_app.strategy.checkpoints.record import SessionRecord
from fl_app.strategy.errors import CheckpointError, SessionOverError
from fl_registry.files.atomic import sync_folder

logger = logging.getLogger("flwr.fl_app")

LOCK_FILE = "lock"


class SessionFolder:
    """The folder of one session, locked by the process that runs it.

    Parameters
    ----------
    path : Path
        The folder.
    record : SessionRecord
        The session's record.
    lock : ExitStack
        Releases the lock when it is closed.

    Raises
    ------
    CheckpointError
        From all methods that read or write: the disk is full, or a file is damaged.
    """

    def __init__(self, path: Path, record: SessionRecord, lock: ExitStack) -> None:
        self.path = path
        self.record = record
        self.over = False
        """Whether this process has ended the session, and must not write to it any more."""
        self._lock = lock
        self._noting = threading.Lock()  # both threads of a session change its record

    @classmethod
    def create(cls, path: Path, record: SessionRecord) -> SessionFolder:
        """Create and lock the folder of a new session, whole or not at all."""
        draft, lock = _unfinished(path), ExitStack()
        try:
            with disk_errors(f"the session's folder {path} could not be created"):
                draft.mkdir(parents=True)
                _acquire(draft, lock)
                write(draft / SESSION_FILE, encode(record))
                draft.rename(path)
                sync_folder(path.parent)
        except BaseException:
            lock.close()
            shutil.rmtree(draft, ignore_errors=True)
            raise
        return cls(path, record, lock)

    @classmethod
    def open(cls, path: Path) -> SessionFolder | None:
        """Lock a session's folder and read its record; None if another process runs it.

        A folder whose record cannot be read is set apart with a warning, and None is returned.
        """
        lock = ExitStack()
        if not _acquire(path, lock):
            return None
        try:
            return cls(path, read(path / SESSION_FILE, SessionRecord), lock)
        except CheckpointError as error:
            logger.warning("%s cannot be read and is set apart: %s", set_apart(path), error)
            lock.close()
            return None

    def release(self) -> None:
        """Release the lock."""
        self._lock.close()

    def note(self, **changes: object) -> None:
        """Change the session's record, in memory and, if the disk accepts it, on disk."""
        if self.over:
            return
        with self._noting:
            self.record = replace(self.record, **changes)  # type: ignore[arg-type]
            try:
                write(self.path / SESSION_FILE, encode(self.record))
            except CheckpointError as error:
                logger.warning("%s", error)

    def note_trouble(self, why: str) -> None:
        """Write down why rounds wait, for other processes to show; an empty text for none."""
        path = self.path / TROUBLE_FILE
        try:
            if why:
                write(path, why)
            else:
                path.unlink(missing_ok=True)
        except (OSError, CheckpointError) as error:
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
        # By a rename first: no process may see it half deleted.
        gone = _unfinished(self.path)
        try:
            self.path.rename(gone)
        except OSError as error:
            logger.warning("%s could not be deleted: %s", self.path, error.strerror)
        shutil.rmtree(gone, ignore_errors=True)


def set_apart(path: Path) -> Path:
    """Rename a session's folder so that no session resumes it; its files stay."""
    apart = path.with_name(f"{path.name}.failed")
    try:
        path.rename(apart)
    except OSError as error:
        logger.warning("%s could not be renamed: %s", path, error.strerror)
    return apart


def _acquire(path: Path, lock: ExitStack) -> bool:
    from filelock import FileLock, Timeout

    try:
        lock.enter_context(FileLock(path / LOCK_FILE, timeout=0, thread_local=False))
    except Timeout:
        return False
    return True


def _unfinished(path: Path) -> Path:
    """Return a name that `session_folders` ignores and a clean-up finds."""
    return path.with_name(f".{path.name}.tmp")
