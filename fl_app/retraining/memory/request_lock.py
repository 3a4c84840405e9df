# SPDX-License-Identifier: Apache-2.0
"""The lock of the server that serves the running request; it ends with its process.

The database still has the request as running after its server crashed. This lock shows whether the
server is alive, since the operating system, or the database, releases it. A heartbeat in the
database would need a time-out, and clocks that agree.
"""

from __future__ import annotations

import hashlib
import threading
from contextlib import ExitStack, suppress
from pathlib import Path

from filelock import FileLock, Timeout
from sqlalchemy import Connection, func, select
from sqlalchemy.exc import SQLAlchemyError

from fl_app.retraining.memory.database import Database


class RequestLock:
    """A lock with one holder among all processes that share a database and a model.

    Parameters
    ----------
    database : Database
        The database and the model. For a SQLite file a file beside it is locked, for PostgreSQL it
        is an advisory lock; a database in memory belongs to this process alone.
    """

    def __init__(self, database: Database) -> None:
        self._engine = database.engine
        self._digest = hashlib.sha256(database.model.encode()).digest()
        self._mutex = threading.Lock()
        self._held: ExitStack | None = None

    def acquire(self) -> bool:
        """Acquire the lock without waiting; False if any object, this one included, holds it."""
        with self._mutex:
            if self._held is not None:
                return False
            with ExitStack() as stack:
                if self._acquired(stack):
                    self._held = stack.pop_all()
            return self._held is not None

    def release(self) -> None:
        """Release the lock, if this object holds it."""
        with self._mutex:
            if self._held is not None:
                self._held.close()
                self._held = None

    def _acquired(self, stack: ExitStack) -> bool:
        if self._engine.dialect.name == "postgresql":
            return self._lock_postgresql(stack)
        if self._engine.url.database:
            return self._lock_file(stack, Path(self._engine.url.database))
        return True

    def _lock_postgresql(self, stack: ExitStack) -> bool:
        connection = stack.enter_context(self._engine.connect())
        connection.execution_options(isolation_level="AUTOCOMMIT")
        # A detached connection is closed at the end, not returned to the pool with its lock.
        connection.detach()
        key = int.from_bytes(self._digest[:8], "big", signed=True)
        if not connection.execute(select(func.pg_try_advisory_lock(key))).scalar_one():
            return False
        # PostgreSQL notices a closed connection late; an explicit unlock takes effect at once.
        stack.callback(_unlock_postgresql, connection, key)
        return True

    def _lock_file(self, stack: ExitStack, database: Path) -> bool:
        path = database.with_name(f"{database.name}.{self._digest.hex()[:8]}.lock")
        try:
            stack.enter_context(FileLock(path, timeout=0, thread_local=False))
        except Timeout:
            return False
        return True


def _unlock_postgresql(connection: Connection, key: int) -> None:
    with suppress(SQLAlchemyError):  # a lost connection has released the lock already
        connection.execute(select(func.pg_advisory_unlock(key)))
