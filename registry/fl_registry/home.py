# SPDX-License-Identifier: Apache-2.0
"""Where the app keeps its files on this machine, and the lock that guards their creation."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fl_registry.errors import StoreUnavailable


def app_home(home: str | Path | None = None) -> Path:
    """Return the app's folder as an absolute path, and create it.

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
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError, RuntimeError) as error:  # the last ones: it is no path at all
        said = getattr(error, "strerror", None) or error
        raise StoreUnavailable(
            f"The app's folder {str(chosen)[:300]} cannot be created ({said}); set home, or "
            "FL_APP_HOME, to a folder that you may write to."
        ) from error
    return folder


@contextmanager
def file_lock(path: Path) -> Iterator[None]:
    """Hold an exclusive lock between processes; it ends with the process, so none is left behind.

    Where the system has no ``fcntl`` the block runs without a lock.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    with path.open("a") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(handle, fcntl.LOCK_UN)
