# SPDX-License-Identifier: Apache-2.0
"""The files of versions in MLflow, each version's in a logged model of its own.

What MLflow returns may have been written by anybody. A location is opened only if it is a folder
of the logged model that names it, on this machine or in an object store, and never at an address
that could be any server's.
"""

from __future__ import annotations

import logging
import math
import os
import re
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from fl_registry.backend import NewVersion, VersionFiles
from fl_registry.errors import ArtifactError, RegistryError, StoreUnavailable
from fl_registry.files.artifacts import WEIGHTS_FILE, Removal, own_bytes, read_small, remove_folder
from fl_registry.files.atomic import scratch_folder
from fl_registry.files.digests import file_digest
from fl_registry.mlflow.connection import Connection
from fl_registry.mlflow.journal import ModelName
from fl_registry.mlflow.locations import local_folder
from fl_registry.redaction import one_line
from fl_registry.versions import ModelVersion

logger = logging.getLogger(__name__)

CACHED = 8
"""Downloaded versions that stay on this machine."""
_MODEL_ID = re.compile(r"m-[0-9A-Za-z]{8,64}")
_IN_SOURCE = re.compile(r"m-[0-9A-Za-z]{8,64}(?![0-9A-Za-z])")
_STORES = frozenset({"s3", "r2", "b2", "gs", "abfss", "wasbs", "hdfs", "viewfs", "dbfs"})
_NO_HOST = ("dbfs", "hdfs", "viewfs")
_SIZED_SECONDS = 3600.0  # for which a server is not asked again for the size of a file
_DOWNLOADS, _DOWNLOAD_PAUSE = 3, 0.5  # attempts, and seconds between them


class MlflowFiles(VersionFiles):
    """The files of one registered model's versions.

    Parameters
    ----------
    connection : Connection
        Where MLflow is.
    name : ModelName
        The registered model's name.
    cached : int
        Downloaded versions that stay on this machine, of all models: those that were used last.
    """

    def __init__(self, connection: Connection, name: ModelName, *, cached: int = CACHED) -> None:
        super().__init__()
        self._connection = connection
        self._name = name
        self._cached = cached
        self._cache = connection.home / "cache"
        self._scratch = connection.home / "tmp"
        self._sized: dict[str, float] = {}  # when the weights at a location had the right size

    def path(self, record: ModelVersion, name: str, sha256: str) -> Path:
        """Return where a file of a version is, or should be.

        One that lies elsewhere is fetched, unless it was before and is whole.
        """
        location = self._location(record)
        if (folder := local_folder(location)) is not None:
            return folder / name
        cached = self._cache / sha256 / name
        if self.whole.has(cached, sha256):
            with suppress(OSError):  # it was used now
                os.utime(cached.parent)
            return cached
        with self._connection.errors(f"download {name}"), scratch_folder(self._scratch) as scratch:
            downloaded = self._fetched(record, name, sha256, scratch)
            self._cache.mkdir(mode=0o700, exist_ok=True)
            cached.parent.mkdir(exist_ok=True)
            downloaded.replace(cached)
        self._bound_cache()
        return cached

    def _fetched(self, record: ModelVersion, name: str, sha256: str, scratch: Path) -> Path:
        """Download a file; what breaks off, or is shorter than what is stored, is tried again.

        Raises
        ------
        StoreUnavailable
            It broke off each time. A file of another content is returned.
        """
        location, problem = self._location(record), ""
        for left in reversed(range(_DOWNLOADS)):
            try:
                with self._connection.errors(f"download {name}"):
                    file = self._download(location, name, scratch)
            except StoreUnavailable as error:
                if not left or "timed out" in str(error):  # after MLflow's 120 seconds
                    raise
                logger.info("version %s: %s; it is tried again", record.version, error)
                time.sleep(_DOWNLOAD_PAUSE)
                continue
            if file_digest(file) == sha256:
                return file
            # A front that cuts a reply without a Content-Length looks as if all had arrived.
            arrived, stored = file.stat().st_size, self._stored_bytes(record, name)
            if arrived >= stored:
                return file
            problem = f"{arrived} of {stored} bytes arrived"
        # Nobody has changed the file, which is what another digest would mean.
        raise StoreUnavailable(
            f"The download of {name} of version {record.version} is cut off: {problem}, in "
            f"{_DOWNLOADS} attempts; look at what stands in front of MLflow, and try again."
        )

    def _stored_bytes(self, record: ModelVersion, name: str) -> int:
        """Return the size of a file as MLflow lists it; 0 if it is not known."""
        with self._connection.errors(f"list the files of version {record.version}"):
            listed = self._connection.client.list_logged_model_artifacts(record.tags["model_id"])
        return next((int(f.file_size or 0) for f in listed if f.path == name), 0)

    def is_local(self, record: ModelVersion) -> bool:
        """Return whether the files are known to be on this machine; makes no call."""
        location = self._connection.resolved.get(record.tags.get("model_id", ""))
        return location is not None and local_folder(location) is not None

    def read(self, record: ModelVersion, name: str) -> bytes | None:
        from mlflow.exceptions import MlflowException

        try:
            return self.content(self._location(record), name)
        except (OSError, ArtifactError, MlflowException) as error:
            logger.info("version %s: %s cannot be read: %s", record.version, name, type(error))
            return None

    def names(self, location: str, run_id: str) -> list[str]:
        """Return the names of a run's files at a location, those in folders left out."""
        if (folder := local_folder(location)) is not None:
            return sorted(path.name for path in folder.glob("*") if path.is_file())
        listed = self._connection.client.list_artifacts(run_id)
        return sorted(str(file.path) for file in listed if not file.is_dir)

    def content(self, location: str, name: str) -> bytes | None:
        """Return the content of a file; None for one that is larger than any of ours."""
        if (folder := local_folder(location)) is not None:
            return read_small(folder / name)
        with scratch_folder(self._scratch) as scratch:
            return read_small(self._download(location, name, scratch))

    def add(self, record: ModelVersion, file: Path) -> None:
        self._location(record)
        self._connection.settle_moved()
        with self._connection.errors(f"store {file.name} of version {record.version}"):
            self._connection.client.log_model_artifact(record.tags["model_id"], str(file))

    def is_whole(self, record: ModelVersion) -> bool:
        """Return whether the weights are whole; elsewhere, whether their size is right."""
        if not (location := self._location_or_none(record)):
            return False
        if (folder := local_folder(location)) is not None:
            return self.whole.has(folder / WEIGHTS_FILE, record.sha256)
        now = time.monotonic()
        if now - self._sized.get(location, -math.inf) < _SIZED_SECONDS:
            return True
        if self._stored_bytes(record, WEIGHTS_FILE) != record.size:
            return False
        self._sized[location] = now
        return True

    def size(self, record: ModelVersion) -> int:
        if not (location := self._location_or_none(record)):
            return 0
        with self._connection.errors(f"look at the files of version {record.version}"):
            return self._bytes(location)

    def remove(self, record: ModelVersion, *, users: str = "") -> Removal:
        """Remove a retired version's files, then its logged model, then the version itself.

        In this order doing it again finishes what was cut short.
        """
        connection, client = self._connection, self._connection.client
        model_id, location = record.tags.get("model_id", ""), self._location_or_none(record)
        with connection.errors(f"remove version {record.version}"):
            users = users if location else ""
            done = Removal(left=f"{users} still refers to its files" if users else "")
            if location and not users:
                done = self._delete(location)
                if done.left:
                    return done
                connection.or_none(client.delete_logged_model, model_id)
                connection.resolved.pop(model_id, None)
                self._sized.pop(location, None)
                if (folder := local_folder(location)) is not None:
                    self.whole.forget(folder / WEIGHTS_FILE)
            if record.sha256:  # a downloaded copy on this machine
                remove_folder(self._cache / record.sha256)
            connection.or_none(
                connection.marker.delete_model_version, self._name.now, record.version
            )
        return done

    def check(self, location: str) -> None:
        """Store a small file in a folder of its own below a location, and read it back.

        Raises
        ------
        RegistryError
            It was not taken, or is not what comes back.
        """
        name, content = "check", uuid.uuid4().hex
        location = self._connection.here(f"{location.rstrip('/')}/fl-app-check-{content}")
        with ExitStack() as stack:
            stack.enter_context(self._connection.errors("store a file and read it back"))
            store = self._store(location)
            scratch = stack.enter_context(scratch_folder(self._scratch))
            for folder in ("sent", "received"):
                (scratch / folder).mkdir()
            sent = scratch / "sent" / name
            sent.write_text(content, encoding="utf-8")
            store.log_artifact(str(sent))
            try:
                received = self._read_back(location, name, content, scratch / "received")
            finally:
                with suppress(NotImplementedError):  # then it stays, with its 32 bytes
                    store.delete_artifacts()
        if received != content:
            raise ArtifactError(
                f"MLflow's store at {one_line(location, 200)} gives back another file than it was "
                "given, so no version would be safe there; mend the store before training."
            )

    def _read_back(self, location: str, name: str, content: str, folder: Path) -> str:
        """Return what a store has of a small file; a front may cut a download half way."""
        for left in reversed(range(_DOWNLOADS)):
            try:
                with self._connection.errors(f"download {name}"):
                    received = self._download(location, name, folder).read_text("utf-8", "replace")
            except StoreUnavailable:
                if not left:
                    raise
                continue
            if received == content:
                break
        return received

    def upload(self, model_id: str, location: str, new: NewVersion) -> None:
        """Store the files of a version as those of a logged model that was just created.

        MLflow's client would ask again where they go, and always copies them.
        """
        self._connection.resolved[model_id] = here = self._checked(location, model_id)
        folder, target = new.artifact.folder, local_folder(here)
        if not (new.final and target is not None and _linked(folder, target)):
            self._store(here).log_artifacts(str(folder))

    def discard(self, model_id: str, location: str) -> None:
        """Remove what is there of a logged model that no version refers to, as far as that goes."""
        from mlflow.exceptions import MlflowException

        with suppress(ArtifactError):
            if (folder := local_folder(self._checked(location, model_id))) is not None:
                _remove(folder)  # first: where the disk is full the database takes nothing
        try:
            self._connection.client.delete_logged_model(model_id)
        except (MlflowException, RegistryError, OSError) as error:
            logger.info("the logged model %s is left without files: %s", model_id, type(error))

    def _bound_cache(self) -> None:
        """Remove the copies that were not used for the longest time."""
        used: dict[Path, float] = {}
        for folder in self._cache.iterdir():
            with suppress(OSError):  # another process removes it
                used[folder] = folder.stat().st_mtime
        for folder in sorted(used, key=lambda folder: used[folder])[: -self._cached]:
            remove_folder(folder)

    def _delete(self, location: str) -> Removal:
        """Remove files, and look whether they are gone."""
        if (folder := local_folder(location)) is not None:
            return _remove(folder)
        before = self._bytes(location)
        try:
            if before:
                self._store(location).delete_artifacts()
        except NotImplementedError:
            return Removal(left=f"MLflow cannot delete files at {location}; remove them there")
        after = self._bytes(location)
        return Removal(before - after, f"{after} bytes are still at {location}" if after else "")

    def _location(self, record: ModelVersion) -> str:
        """Return where a version's files are; not asked again, since that never changes."""
        connection, model_id = self._connection, record.tags.get("model_id", "")
        if model_id in connection.resolved:
            return connection.resolved[model_id]
        if not is_model_id(model_id):
            raise ArtifactError(
                f"Version {record.version} does not say which logged model holds its files; "
                "save its file with save_model_version again."
            )
        with connection.errors(f"find the files of version {record.version}"):
            model = connection.or_none(connection.client.get_logged_model, model_id)
        if model is None:
            raise ArtifactError(
                f"The logged model {model_id}, which holds the files of version "
                f"{record.version}, was deleted in MLflow; restore it, or use another version."
            )
        location = self._checked(str(model.artifact_location), model_id)
        return connection.resolved.setdefault(model_id, location)

    def _location_or_none(self, record: ModelVersion) -> str | None:
        with suppress(ArtifactError):
            return self._location(record)
        return None

    def _checked(self, location: str, model_id: str) -> str:
        checked = checked_location(location, model_id, tracking_uri=self._connection.uri)
        return self._connection.here(checked)

    def _bytes(self, location: str) -> int:
        folder = local_folder(location)
        return sum(_walk(self._store(location))) if folder is None else own_bytes(folder)

    def _download(self, location: str, name: str, folder: Path) -> Path:
        return Path(self._store(location).download_artifacts(name, str(folder)))

    def _store(self, location: str) -> Any:
        from fl_registry.mlflow.internals import get_artifact_repository

        return get_artifact_repository(location, tracking_uri=self._connection.uri)


def is_model_id(text: str) -> bool:
    """Return whether a text can be MLflow's id of a logged model."""
    return _MODEL_ID.fullmatch(text) is not None


def named_models(source: str, tags: Mapping[str, str]) -> set[str]:
    """Return the ids of the logged models whose files a version refers to."""
    return {*_IN_SOURCE.findall(source), *filter(None, [tags.get("model_id", "")])}


def checked_location(location: str, model_id: str, *, tracking_uri: str) -> str:
    """Return the location of a logged model's files, if it may be opened.

    Parameters
    ----------
    location : str
        The location, as MLflow has it.
    model_id : str
        The logged model whose files these are; a part of the path must be called so.
    tracking_uri : str
        MLflow's address; ``mlflow-artifacts`` may name no other server.

    Raises
    ------
    ArtifactError
        It may not.
    """
    good = False
    with suppress(ValueError):  # it is not even an address
        parts = urlsplit(location)
        path, host = unquote(parts.path), parts.netloc
        server = urlsplit(tracking_uri).netloc.rpartition("@")[2]
        here = local_folder(location) is not None and host in ("", "localhost")
        here = here and path.startswith("/")
        proxied = parts.scheme == "mlflow-artifacts" and host in ("", server)
        stored = parts.scheme in _STORES and bool(host or parts.scheme in _NO_HOST)
        good = (
            (here or proxied or stored)
            and is_model_id(model_id)
            and model_id in path.split("/")
            and ".." not in path.split("/")
            and not (parts.query or parts.fragment)
            and (location + path).isprintable()  # urlsplit leaves line breaks out
        )
    if not good:
        raise ArtifactError(
            f"{one_line(location, 80)} is not a folder of the logged model "
            f"{one_line(model_id, 80)}, on this machine or in an object store, so it is not "
            "opened; save the version's file again with save_model_version."
        )
    return location


def _walk(store: Any, folder: str | None = None) -> Iterator[int]:
    for file in store.list_artifacts(folder):
        if file.is_dir:
            yield from _walk(store, file.path)
        else:
            yield int(file.file_size or 0)


def _linked(folder: Path, target: Path) -> bool:
    """Give all files of a folder a further name in another one; False if that cannot be done."""
    try:
        target.mkdir(parents=True, exist_ok=True)
        for file in sorted(folder.rglob("*")):  # folders before what is in them
            named = target / file.relative_to(folder)
            if file.is_dir():
                named.mkdir()
            else:
                os.link(file, named)
    except OSError:  # another disk, or one without hard links
        remove_folder(target)  # MLflow cannot copy a file onto another name of it
        return False
    return True


def _remove(folder: Path) -> Removal:
    """Remove the files of a logged model, and MLflow's folder around them, named by its id."""
    done = remove_folder(folder)
    if is_model_id(folder.parent.name):
        with suppress(OSError):  # something else is in it
            folder.parent.rmdir()
    return done
