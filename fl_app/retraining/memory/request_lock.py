# SPDX-License-Identifier: Apache-2.0
"""Who serves a request now: a lock that ends with its process, so that a crash cannot hide.

A request is written down as running as long as it is served, also when the server is gone. Whether
it still lives is what this lock tells: the operating system, or the database, lets go of it.
"""

from __future__ import annotations

import hashlib
import threading
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine


class Serving:
    """One holder at a time among all processes that share a database and a model.

    Parameters
    ----------
    engine : Engine
        The database. Beside a SQLite file lies a file that is locked, PostgreSQL has advisory
        locks; a database in memory is this process's own.
    model : str
        The registered model.
    """

    def __init__(self, engine: Engine, model: str) -> None:
        self._engine = engine
        self._digest = hashlib.sha256(model.encode()).digest()
        self._mutex = threading.Lock()
        self._held: ExitStack | None = None

    def acquire(self) -> bool:
        """Take it if nobody has it, not even this object; never wait."""
        with self._mutex:
            if self._held is not None:
                return False
            with ExitStack() as stack:
                if self._lock(stack):
                    self._held = stack.pop_all()
            return self._held is not None

    def release(self) -> None:
        """Let go of it; without it, do nothing."""
        with self._mutex:
            if self._held is not None:
                self._held.close()
                self._held = None

    def _lock(self, stack: ExitStack) -> bool:
        if self._engine.dialect.name == "postgresql":
            return self._lock_postgresql(stack)
        if self._engine.url.database:
            return self._lock_file(stack, Path(self._engine.url.database))
        return True

    def _lock_postgresql(self, stack: ExitStack) -> bool:
        from sqlalchemy import func, select

        connection = stack.enter_context(self._engine.connect())
        connection.execution_options(isolation_level="AUTOCOMMIT")
        connection.detach()  # it is closed, not given back, and the lock with it
        key = int.from_bytes(self._digest[:8], "big", signed=True)
        if not connection.execute(select(func.pg_try_advisory_lock(key))).scalar_one():
            return False
        # The server notices a closed connection some time later: whoever asks at once must get it.
        stack.callback(_unlock_postgresql, connection, key)
        return True

    def _lock_file(self, stack: ExitStack, database: Path) -> bool:
        from filelock import FileLock, Timeout

        path = database.with_name(f"{database.name}.{self._digest.hex()[:8]}.lock")
        try:
            stack.enter_context(FileLock(path, timeout=0, thread_local=False))
        except Timeout:
            return False
        return True


def _unlock_postgresql(connection: Connection, key: int) -> None:
    """Give the lock back; a connection that is lost has given it back already."""
    from sqlalchemy import func, select
    from sqlalchemy.exc import SQLAlchemyError

    with suppress(SQLAlchemyError):
        connection.execute(select(func.pg_advisory_unlock(key)))
