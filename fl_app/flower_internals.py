# SPDX-License-Identifier: Apache-2.0
"""What this package uses of Flower that Flower does not document."""

from __future__ import annotations

from pathlib import Path

from fl_registry.home import sqlite_address


def open_state(database: Path) -> None:
    """Bring a SuperLink's state database to this Flower's revision, as its SuperLink does.

    Raises
    ------
    Exception
        Of Alembic or SQLAlchemy: it cannot be opened.
    """
    from flwr.supercore.state.alembic.utils import run_migrations
    from sqlalchemy import create_engine

    engine = create_engine(sqlite_address(database))
    try:
        run_migrations(engine)
    finally:
        engine.dispose()
