# SPDX-License-Identifier: Apache-2.0
"""New MLflow databases of a test's process: copies of one that MLflow made, by seventy migrations.

Those take more than a second, and hundreds of tests begin with a database of their own. Other
processes make theirs as users do.
"""

from __future__ import annotations

import sqlite3
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

_UTILS = "mlflow.store.db.utils"


class Copies:
    """Makes the tables of a new SQLite database by copying those of ``folder``'s.

    Parameters
    ----------
    folder : Path
        Where the one that is copied is kept; it is made with the first one that is asked for.
    """

    def __init__(self, folder: Path) -> None:
        self._first = folder / "mlflow.db"
        self._migrate: Callable[[Any], None] | None = None

    def take_over(self) -> None:
        """Be asked from now on, if MLflow has been imported."""
        utils = sys.modules.get(_UTILS)
        if utils is not None and self._migrate is None:
            self._migrate = utils._initialize_tables
            utils._initialize_tables = self.make

    def make(self, engine: Any) -> None:
        """Make the tables of a database that has none."""
        assert self._migrate is not None
        new = engine.url.database
        if engine.dialect.name != "sqlite" or not new:
            self._migrate(engine)
        elif not self._first.exists():
            self._migrate(engine)
            _copy(Path(new), self._first)
        else:
            _copy(self._first, Path(new))


def _copy(source: Path, target: Path) -> None:
    with closing(sqlite3.connect(source)) as old, closing(sqlite3.connect(target)) as new:
        old.backup(new)
