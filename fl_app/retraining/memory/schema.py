# SPDX-License-Identifier: Apache-2.0
"""The form of the monitor's database: its version, and the migrations to the present one.

Alembic runs the files in ``migrations/versions``. A change of the tables is a further file there,
whose ``revision`` becomes `HEAD`.
"""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa

HEAD = "0001"
"""The form that the tables in `database.py` have."""
VERSION_TABLE = "fl_app_monitor_version"
"""Not alembic's usual name, which MLflow has in a database that both share."""
MIGRATIONS = Path(__file__).with_name("migrations")
_MIGRATING = 0x666C2D617070
"""Key of the advisory lock under which tables are changed; "fl-app" in ASCII."""


class NewerSchemaError(Exception):
    """The database has a form that this version of the package does not know."""


def upgrade(engine: sa.Engine, to: str = HEAD) -> None:
    """Bring the database into a form; one process at a time, all of it or nothing.

    Raises
    ------
    NewerSchemaError
        It has a form that is not known; the text names it.
    """
    with engine.begin() as connection:
        if _form(connection) == to:
            return
        if engine.dialect.name == "postgresql":
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_MIGRATING)))
        elif engine.dialect.name == "sqlite":
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        if (form := _form(connection)) == to:  # another process was first
            return
        # Imported here: it takes long to load, and nearly all files have the present form.
        from alembic import command
        from alembic.config import Config
        from alembic.script import ScriptDirectory

        config = Config()
        config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
        config.set_main_option("path_separator", "os")
        known = {each.revision for each in ScriptDirectory.from_config(config).walk_revisions()}
        if form and form not in known:
            raise NewerSchemaError(form)
        config.attributes["connection"] = connection
        command.upgrade(config, to)


def _form(connection: sa.Connection) -> str:
    """Return the form of a database; empty if it has none, as before there were versions."""
    if not sa.inspect(connection).has_table(VERSION_TABLE):
        return ""
    table = sa.table(VERSION_TABLE, sa.column("version_num", sa.String))
    return connection.execute(sa.select(table.c.version_num)).scalar() or ""
