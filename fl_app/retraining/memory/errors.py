# SPDX-License-Identifier: Apache-2.0
"""What goes wrong in the monitor's memory: its own error, and those of the database below it."""

from __future__ import annotations

MEMORY = "the monitor's memory"
"""Name of this part in ``Health``."""


class MonitorStoreError(ValueError):
    """The monitor's memory cannot be opened or read; the text has the reason and no password."""


def memory_errors() -> tuple[type[Exception], ...]:
    """Return the exceptions of a database, or of the disk below it, that does not work."""
    from sqlalchemy.exc import SQLAlchemyError

    return SQLAlchemyError, OSError
