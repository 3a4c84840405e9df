# SPDX-License-Identifier: Apache-2.0
"""Whether a home has what its store says, and its move to another folder."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from fl_registry.errors import ArtifactError, RegistryError
from fl_registry.files.artifacts import WEIGHTS_FILE
from fl_registry.home import sqlite_address
from fl_registry.mlflow.connection import Connection
from fl_registry.mlflow.locations import local_folder

_LOCKS = ("checkpoints/*/lock", "leases/*.lock")
_AT_ONCE = 10_000  # versions requested at a time


@dataclass(frozen=True)
class HomeState:
    """What a home has, and what it should have.

    Attributes
    ----------
    now, noted : Path | None
        The folder of the store, and the one that MLflow has noted; None where a server has the
        files, or nothing was stored yet.
    versions : int
        Versions with files on this machine, of all registered models.
    missing : tuple[str, ...]
        Those whose files are not there, each with its place.
    outside : tuple[str, ...]
        Those whose files are outside of the folder, each with its place.
    served : Path | None
        A folder in the home where an MLflow server has its files, if there is one.
    links : tuple[Path, ...]
        Links in the home that lead out of it: a copy of the home would share what they lead to.
    """

    now: Path | None = None
    noted: Path | None = None
    versions: int = 0
    missing: tuple[str, ...] = ()
    outside: tuple[str, ...] = ()
    served: Path | None = None
    links: tuple[Path, ...] = ()


def look(connection: Connection) -> HomeState:
    """Compare a home with its store; changes nothing."""
    links = tuple(_links(connection.home))
    is_new = connection.file is not None and not connection.file.exists()
    if connection.is_server:
        return HomeState(served=_served_in(connection), links=links)
    if is_new or (folder := connection.folder) is None:
        return HomeState(links=links)
    here, missing, outside = 0, list[str](), list[str]()
    search = connection.client.search_model_versions
    with connection.errors("list the versions"):
        for row in connection.rows(search, max_results=_AT_ONCE):
            name, source = f"{row.name} {row.version}", str(row.source)
            if not source.startswith(("/", "file:")):
                continue
            try:
                found = local_folder(connection.here(source))
            except ArtifactError:
                outside.append(f"{name} ({source})")
                continue
            here += 1
            file = (found or Path()) / (WEIGHTS_FILE if "sha256" in row.tags else "")
            if not file.exists():
                missing.append(f"{name} ({file})")
    return HomeState(folder.now, folder.noted, here, tuple(missing), tuple(outside), links=links)


def move_home(tracking_uri: str | None, source: Path, target: Path) -> Connection:
    """Move a home, and note in MLflow where its files are now; return the connection to it there.

    A move that was cut short is finished by `Connection.settle` in the new folder: until then no
    location is changed.

    Raises
    ------
    RegistryError
        It cannot be moved there, or a session runs in it; the home is as it was.
    """
    target = target.expanduser().absolute()
    if not source.is_dir():
        raise RegistryError(f"There is no folder {source} to move; set FL_APP_HOME to the home.")
    if target.resolve().is_relative_to(source):
        raise RegistryError(f"{target} is in the home itself; name a folder outside of {source}.")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise RegistryError(f"{target} exists and is not empty; name a new folder.")
    before = Connection(tracking_uri, source)
    file = before.file
    if file is None:
        before.check()  # where it is away, nothing could be noted after the move
    if before.is_server and (served := _served_in(before)) is not None:
        raise RegistryError(
            f"{before.place} is a server that has its files in {served}, and no call moves them; "
            "end it, and give `fl-app home move` the address of its database as --tracking-uri."
        )
    within = file is not None and file.resolve().is_relative_to(source)
    if file is not None and within:  # it moves along, whatever named it
        moved = target / file.resolve().relative_to(source)
        tracking_uri = before.uri.replace(sqlite_address(file), sqlite_address(moved))
    with _nobody_in(source):
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            if target.exists():
                target.rmdir()
            _rename(source, target)
        except OSError as error:
            raise RegistryError(
                f"{source} could not be moved to {target} ({error.strerror}); make room there, or "
                "name a folder that you may write to. The home is as it was."
            ) from error
    after = Connection(tracking_uri, target)
    if after.file is None or after.file.exists():
        after.settle(source)
    return after


def _served_in(connection: Connection) -> Path | None:
    """Return a folder in the home that a server has noted for an experiment's files, or None."""
    with connection.errors("look where files are"):
        for experiment in connection.rows(connection.client.search_experiments):
            folder = local_folder(str(experiment.artifact_location))
            if folder is not None and folder.resolve().is_relative_to(connection.home):
                return folder
    return None


def _rename(source: Path, target: Path) -> None:
    """Move a folder; to another disk it is copied whole before the original goes."""
    try:
        source.rename(target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        try:
            shutil.copytree(source, target, symlinks=True)
        except shutil.Error as failed:
            shutil.rmtree(target, ignore_errors=True)
            raise OSError(0, str(failed)[:200]) from failed
        except OSError:
            shutil.rmtree(target, ignore_errors=True)
            raise
        shutil.rmtree(source)


@contextmanager
def _nobody_in(home: Path) -> Iterator[None]:
    """Lock all sessions of a home; raise `RegistryError` if one runs."""
    from filelock import FileLock, Timeout

    with ExitStack() as stack:
        for pattern in _LOCKS:
            for path in sorted(home.glob(pattern)):
                try:
                    stack.enter_context(FileLock(path, timeout=0))
                except Timeout:
                    raise RegistryError(
                        f"A session runs in {home} ({path.relative_to(home)} is locked); wait for "
                        "its end, and end `fl-app serve` there too."
                    ) from None
        yield


def _links(home: Path) -> Iterator[Path]:
    for place, folders, files in os.walk(home):
        for name in (*folders, *files):
            path = Path(place, name)
            if path.is_symlink() and not path.resolve().is_relative_to(home):
                yield path
