# SPDX-License-Identifier: Apache-2.0
"""Where the local files of a database's store are now, wherever MLflow has noted them.

MLflow writes absolute locations into its tables, and has no call that changes them. A SQLite file
and its files are often copied or moved together, so here a local file is that one below the
folder in use, and nothing outside of this folder is read, written or deleted. Experiments that this
app creates say in a tag which folder that was. No MLflow.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from fl_registry.errors import ArtifactError, RegistryError
from fl_registry.redaction import one_line

JOURNAL_FOR_TAG = "journal_for"
"""The tag of a journal run: the name of the registered model."""
FOLDER_TAG = "fl_app.folder"
"""On experiments that this app created: the folder below which their files were."""
_LOCAL_SCHEMES = ("", "file")


def local_folder(location: str) -> Path | None:
    """Return the folder of a location on this machine; None for one elsewhere."""
    parts = urlsplit(location)
    return Path(unquote(parts.path)) if parts.scheme in _LOCAL_SCHEMES else None


def lacks_model(file: Path, name: str) -> bool:
    """Return whether MLflow's SQLite file surely has no registered model of this name, nor had one.

    The journal of a model is there after the model was deleted or renamed.

    Opening the file with MLflow takes as long as importing it, and makes one that is not there.
    """
    if not file.exists():
        return not lacks_database(file)
    try:
        with closing(sqlite3.connect(f"{file.as_uri()}?mode=ro", 1, uri=True)) as database:
            query = (
                "SELECT name FROM registered_models WHERE name = ? "
                "UNION ALL SELECT value FROM tags WHERE key = ? AND value = ? LIMIT 1"
            )
            return database.execute(query, (name, JOURNAL_FOR_TAG, name)).fetchone() is None
    except sqlite3.Error:  # MLflow itself tells what is wrong
        return False


def lacks_database(file: Path) -> bool:
    """Return whether a SQLite file is missing or empty, though there are versions' files of it."""
    if file.exists() and file.stat().st_size:
        return False
    return any((file.parent / "artifacts" / "models").glob("m-*"))


@dataclass(frozen=True)
class Folder:
    """The folder of a store, and the one that MLflow has noted for it.

    Attributes
    ----------
    now : Path
        The folder in use, without links.
    noted : Path
        What `FOLDER_TAG` says; the same if the folder was neither moved nor copied.
    others : int
        How many folders it names beside the one in use.
    """

    now: Path
    noted: Path
    others: int = 0

    def here(self, location: str) -> str:
        """Return where a location's files are now; one that is not on this machine stays.

        Raises
        ------
        ArtifactError
            They are outside of the folder in use.
        """
        folder = local_folder(location)
        if folder is None:
            return location
        if self._was_moved(folder):
            folder = self.now / folder.relative_to(self.noted)
            location = folder.as_uri()
        if not folder.resolve().is_relative_to(self.now):
            raise ArtifactError(
                f"MLflow has files of this store at {one_line(folder, 200)}, outside of its folder "
                f"{self.now}, so they are not touched; `fl-app home check` says what to do."
            )
        return location

    def _was_moved(self, folder: Path) -> bool:
        """Return whether a folder is one of those before the move."""
        if self.noted == self.now or not folder.is_relative_to(self.noted):
            return False
        # Into a folder of the old one: what is there already was noted after the move.
        inner = self.now.is_relative_to(self.noted)
        return not (inner and folder.is_relative_to(self.now))

    def rewrite(self, uri: str, columns: tuple[tuple[str, str], ...]) -> int:
        """Write the folder in use in the place of the noted one, and return how many rows changed.

        All in one transaction: a table is never half moved.

        Parameters
        ----------
        uri : str
            The database's address.
        columns : tuple[tuple[str, str], ...]
            Tables and their columns that hold locations.

        Raises
        ------
        RegistryError
            The database has no such table, or cannot be written.
        """
        import sqlalchemy as sa  # takes long to load, and is rarely needed here

        options = {"timeout": 20} if uri.startswith("sqlite") else {}
        engine = sa.create_engine(uri, poolclass=sa.NullPool, connect_args=options)
        # As it may be noted: a path, an address that is not escaped, and one that is.
        pairs = {str(self.noted): str(self.now), f"file://{self.noted}": self.now.as_uri()}
        pairs[self.noted.as_uri()] = self.now.as_uri()
        changed = 0
        try:
            with engine.begin() as connection:
                for name, column in columns:
                    place: sa.ColumnClause[str] = sa.column(column)
                    table = sa.table(name, place)
                    for old, new in pairs.items():
                        length = len(old) + 1
                        moved = sa.func.substr(place, 1, length) == f"{old}/"
                        if self.now.is_relative_to(self.noted):
                            moved &= sa.func.substr(place, 1, len(new) + 1) != f"{new}/"
                        value = sa.literal(f"{new}/").concat(sa.func.substr(place, length + 1))
                        change = table.update().where(moved).values({column: value})
                        changed += connection.execute(change).rowcount
                tags = sa.table("experiment_tags", sa.column("key"), sa.column("value"))
                noted = (tags.c.key == FOLDER_TAG, tags.c.value == str(self.noted))
                connection.execute(tags.update().where(*noted).values(value=str(self.now)))
        except sa.exc.SQLAlchemyError as error:
            reason = one_line(getattr(error, "orig", None) or type(error).__name__, 200)
            raise RegistryError(
                f"MLflow's notes of where files are could not be changed from {self.noted} to "
                f"{self.now} ({reason}); nothing was changed. Move the folder back, or try again."
            ) from None
        finally:
            engine.dispose()
        return changed
