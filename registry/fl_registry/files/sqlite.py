# SPDX-License-Identifier: Apache-2.0
"""SQLite files: made for their owner alone, looked at, and what to do about a damaged one."""

from __future__ import annotations

import os
import re
import sqlite3
from contextlib import closing, suppress
from pathlib import Path
from shlex import quote

_DAMAGED = re.compile(r"disk image is malformed|not a database|malformed database schema")


def create_private(file: Path) -> None:
    """Make an empty file for its owner alone if there is none; SQLite keeps its permissions."""
    with suppress(FileExistsError):
        os.close(os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))


def is_damage(reason: object) -> bool:
    """Return whether the text of an error says that a SQLite file is damaged."""
    return bool(_DAMAGED.search(str(reason)))


def advice(file: Path | str, reason: object) -> str:
    """Return what to do about a damaged SQLite file, so that nothing more of it is lost."""
    shown = quote(str(file))
    return (
        f"The SQLite database {file} is damaged ({reason}). Stop what uses it, and copy it with "
        "the files beside it whose names begin the same. Then put a backup in its place, or what "
        f"`sqlite3 {shown} .recover | sqlite3 {shown}.saved` saves. Where sqlite3 has no .recover, "
        f"type `sqlite3 {shown} .dump | sed 's/^ROLLBACK.*/COMMIT;/' | sqlite3 {shown}.saved`. "
        "If it never was a database, name another file."
    )


def problem(file: Path) -> str:
    """Return what is wrong with a SQLite file, having read all of it; empty if it is whole.

    A file that is locked, or is not there, is taken to be whole.
    """
    if not file.exists():
        return ""
    try:
        with closing(sqlite3.connect(f"{file.as_uri()}?mode=ro", 5, uri=True)) as database:
            (found,) = database.execute("PRAGMA quick_check(1)").fetchone()
    except sqlite3.OperationalError as error:
        return advice(file, error) if is_damage(error) else ""
    except sqlite3.DatabaseError as error:
        return advice(file, error)
    return "" if found == "ok" else advice(file, str(found).splitlines()[-1])
