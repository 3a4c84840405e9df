# SPDX-License-Identifier: Apache-2.0
"""What is known of the monitor's memory before SQLAlchemy is loaded: its name and its errors."""

from __future__ import annotations

MEMORY = "the monitor's memory"
"""Name of this part in ``Health``."""
IN_MEMORY = "sqlite://"
"""URL of a database that lasts as long as the object that opened it."""


class MonitorStoreError(ValueError):
    """The monitor's memory cannot be opened or read; the text has the reason and no password."""


def memory_errors() -> tuple[type[Exception], ...]:
    """Return the exceptions of a database, or of the disk below it, that does not work."""
    from sqlalchemy.exc import SQLAlchemyError

    return SQLAlchemyError, OSError
