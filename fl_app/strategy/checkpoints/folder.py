# SPDX-License-Identifier: Apache-2.0
"""The folder of a session: its lock and its record."""

from __future__ import annotations

import logging
import shutil
import threading
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from fl_app.backlog import APART, SESSION_FILE, TROUBLE_FILE
from fl_app.strategy.checkpoints.record import SessionRecord, disk_errors, write_file
from fl_app.strategy.errors import CheckpointError, SessionOverError
from fl_registry.files.atomic import scratch_folder, sync_folder
from fl_registry.redaction import one_line

if TYPE_CHECKING:
    from filelock import FileLock

logger = logging.getLogger("flwr.fl_app")


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
        failed = f"the session's folder {path} could not be created"
        with disk_errors(failed), scratch_folder(path.parent, name=path.name) as scratch:
            draft = scratch / path.name
            lock = folder_lock(draft)
            try:
                draft.mkdir()
                lock.acquire()
                write_file(draft / SESSION_FILE, record)
                draft.rename(path)
                sync_folder(path.parent)
            except BaseException:
                lock.release()
                raise
        return cls(path, record, lock)

    def release(self) -> None:
        """Release the lock."""
        self._lock.release()

    def note(self, **changes: object) -> bool:
        """Change the session's record, in memory and on disk; False if the disk takes it not."""
        if self.over:
            return False
        with self._noting:
            self.record = replace(self.record, **changes)  # type: ignore[arg-type]
            try:
                write_file(self.path / SESSION_FILE, self.record)
            except CheckpointError as error:
                logger.warning("%s", error)
                return False
        return True

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
    gone = path.with_name(f".{path.name}.tmp")  # a name that the clean-up of a later run finds
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
    except CheckpointError as error:  # the disk is full; a rename takes no room
        logger.warning("%s", one_line(error))
    try:
        path.rename(apart)
    except OSError as error:
        logger.warning("%s could not be set apart: %s", path, one_line(error))
    return apart
