# SPDX-License-Identifier: Apache-2.0
"""What this package uses of Flower that Flower does not document, in this file alone.

Without the names that are imported here nothing works, so their absence is an error at start.
Without `GRIDS` rounds work, but lose what `lost` says.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Literal

from flwr.serverapp import Grid

from fl_registry.home import sqlite_address

try:
    from flwr.clientapp.typing import ClientAppCallable, Mod
    from flwr.common.constant import ErrorCode
    from flwr.proto.node_pb2 import NodeInfo
    from flwr.supercore.differential_privacy import KEY_NORM_BIT
    from flwr.supercore.run import Run
except ImportError as error:
    raise ImportError(
        f"fl-app does not know Flower {version('flwr')}, in which something has moved ({error}); "
        "install a version that fl-app's metadata allow: flwr>=1.40,<1.43."
    ) from error

__all__ = [
    "CLIENT_APP",
    "KEY_NORM_BIT",
    "ClientAppCallable",
    "ErrorCode",
    "Mod",
    "NodeInfo",
    "Run",
    "app_files",
    "flower_home",
    "grid_kind",
    "lost",
    "open_state",
    "run_flower",
]

GridKind = Literal["superlink", "simulation"]
GRIDS: Mapping[GridKind, tuple[str, str]] = {
    "superlink": ("flwr.superlink.grid.http_grid", "HttpGrid"),
    "simulation": ("flwr.superlink.grid.inmemory_grid", "InMemoryGrid"),
}
"""Module and class of Flower's Grids."""
CLIENT_APP = "flwr.supernode.cli.flwr_clientapp:flwr_clientapp"
"""The function of the program `flwr-clientapp`."""


def flower_home() -> Path:
    """Return the folder of Flower's configuration and state: ``$FLWR_HOME``, else ``~/.flwr``."""
    from flwr.supercore.utils import get_flwr_home  # imports more than nodes need

    return Path(get_flwr_home())


def run_flower(words: Sequence[str]) -> int:
    """Run Flower's command line in this process, as its program `flwr` does.

    Parameters
    ----------
    words : Sequence[str]
        What follows `flwr`.

    Returns
    -------
    int
        Its exit status.
    """
    from flwr.cli import build  # takes half a second, and is needed for this alone
    from flwr.cli.app import app

    # Flower looks at each file below the app before it leaves out what is ignored: with an
    # environment in the folder that is 90,000 files and 5 s.
    vars(build)["collect_files"] = app_files
    try:
        app(list(words), prog_name="flwr")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0


def app_files(root: Path) -> dict[str, Path]:
    """Return the files below an app's folder that may be in its bundle, by relative POSIX path.

    That is what Flower's own walk returns, links left out, without the folders of which its bundle
    takes no file.
    """
    from flwr.cli.utils import build_pathspec, load_gitignore_patterns
    from flwr.supercore.constant import APP_PUBLISH_EXCLUDE_PATTERNS

    file = root / ".gitignore"
    ignored = [] if file.is_symlink() else load_gitignore_patterns(file)
    if any(pattern.startswith("!") for pattern in ignored):
        ignored = []  # a file may be taken from a folder that is left out
    left_out = build_pathspec([*APP_PUBLISH_EXCLUDE_PATTERNS, *ignored])
    found: dict[str, Path] = {}
    for place, folders, files in os.walk(root):
        here = Path(place).relative_to(root)
        folders[:] = [
            name
            for name in folders
            if not left_out.match_file((here / name / "any file").as_posix())
        ]
        for name in files:
            path = Path(place, name)
            if not path.is_symlink():
                found[(here / name).as_posix()] = path
    return found


def grid_kind(grid: Grid) -> GridKind | None:
    """Return which of Flower's Grids this is; None for any other.

    Their modules take long to import and are loaded where there is a Grid of theirs.
    """
    for kind, (module, name) in GRIDS.items():
        known = getattr(sys.modules.get(module), name, None)
        if known is not None and isinstance(grid, known):
            return kind
    return None


def lost(grids: Mapping[GridKind, tuple[str, str]] = GRIDS) -> tuple[str, ...]:
    """Return, in sentences, what does not work with this version of Flower, though rounds do."""
    try:
        for module, name in grids.values():
            getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        return (
            f"Flower {version('flwr')} has moved its Grids ({error}): replies are neither packed "
            "nor received one by one, and one that cannot be unpacked ends the round; install "
            "flwr>=1.40,<1.43",
        )
    return ()


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
