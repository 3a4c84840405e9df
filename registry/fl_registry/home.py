# SPDX-License-Identifier: Apache-2.0
"""The folder in which the app stores its files on this machine, and the usual model's name."""

from __future__ import annotations

import os
from pathlib import Path

from fl_registry.errors import StoreUnavailable

DEFAULT_MODEL_NAME = "fl-global-model"
"""The registered model's name where the user gives none."""


def sqlite_address(file: Path) -> str:
    """Return the SQLAlchemy URL of a SQLite file; ``?`` and ``%`` have a meaning in a URL."""
    return f"sqlite:///{str(file).replace('%', '%25').replace('?', '%3F')}"


def app_home(home: str | Path | None = None) -> Path:
    """Return the app's folder as an absolute path, and create it, for its owner alone.

    Parameters
    ----------
    home : str | Path | None
        The folder to use. Default: ``$FL_APP_HOME``, else ``~/.fl-app``.

    Raises
    ------
    StoreUnavailable
        The folder cannot be created.
    """
    chosen = home or os.environ.get("FL_APP_HOME") or "~/.fl-app"
    try:
        folder = Path(chosen).expanduser().resolve()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except (OSError, ValueError, RuntimeError) as error:  # the last two: it is not a path
        reason = getattr(error, "strerror", None) or error
        raise StoreUnavailable(
            f"The app's folder {str(chosen)[:300]} cannot be created ({reason}); set home, or "
            "FL_APP_HOME, to a folder that you may write to."
        ) from error
    return folder
