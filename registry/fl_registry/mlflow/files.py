# SPDX-License-Identifier: Apache-2.0
"""The files of versions in MLflow, each version's in a logged model of its own."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from fl_registry.backend import VersionFiles
from fl_registry.errors import ArtifactError, RegistryError
from fl_registry.files.artifacts import DIGEST, WEIGHTS_FILE
from fl_registry.files.atomic import scratch_folder
from fl_registry.files.digests import file_digest
from fl_registry.files.strict_json import read_json
from fl_registry.files.version_files import own_bytes, read_small, remove_folder
from fl_registry.mlflow.artifact_locations import LOCAL_SCHEMES, checked_location, is_model_id
from fl_registry.mlflow.connection import Connection
from fl_registry.redaction import one_line
from fl_registry.retention import Removal
from fl_registry.versions import ModelVersion

logger = logging.getLogger(__name__)

_ELSEWHERE = "mlflow-artifacts:/"
_WORK = "retiring."  # tags on the registered model: what a clean-up still has to remove


@dataclass(frozen=True)
class _Note:
    """What an interrupted clean-up still has to remove."""

    model_id: str = ""
    location: str = ""
    sha256: str = ""
    wrong: str = ""  # why it is ignored; never written

    def encode(self) -> str:
        fields = asdict(self)
        del fields["wrong"]
        return json.dumps(fields)


class MlflowFiles(VersionFiles):
    """The files of one registered model's versions.

    Parameters
    ----------
    connection : Connection
        Where MLflow is.
    name : str
        The registered model's name.
    """

    def __init__(self, connection: Connection, name: str) -> None:
        super().__init__()
        self._connection = connection
        self._name = name
        self._locations: dict[str, str] = {}  # of logged models, by their id; checked

    def path(self, record: ModelVersion, name: str, sha256: str) -> Path:
        """Return where a file of a version is, or should be; one that lies elsewhere is fetched."""
        location = self._location(record)
        folder = local_folder(location)
        return self._fetched(location, name, sha256) if folder is None else folder / name

    def is_local(self, record: ModelVersion) -> bool:
        """Return whether the files are known to be on this machine; makes no call."""
        location = self._locations.get(record.tags.get("model_id", ""), _ELSEWHERE)
        return local_folder(location) is not None

    def read(self, record: ModelVersion, name: str) -> bytes | None:
        from mlflow.exceptions import MlflowException

        try:
            location = self._location(record)
            folder = local_folder(location)
            if folder is not None:
                return read_small(folder / name)
            with scratch_folder(self._connection.home / "tmp") as scratch:
                return read_small(self._download(location, name, scratch))
        except (OSError, ArtifactError, MlflowException) as error:
            logger.info("version %s: %s cannot be read: %s", record.version, name, type(error))
            return None

    def add(self, record: ModelVersion, file: Path) -> None:
        self._location(record)
        with self._connection.errors(f"store {file.name} of version {record.version}"):
            self._connection.client.log_model_artifact(record.tags["model_id"], str(file))

    def is_whole(self, record: ModelVersion) -> bool:
        """Return whether the weights are whole; elsewhere, whether their size is right."""
        try:
            folder = local_folder(self._location(record))
        except ArtifactError:
            return False
        if folder is not None:
            file = folder / WEIGHTS_FILE
            return file.is_file() and file_digest(file) == record.sha256
        return self._sizes(record.tags["model_id"]).get(WEIGHTS_FILE) == record.size

    def size(self, record: ModelVersion) -> int:
        try:
            location = self._location(record)
        except ArtifactError:
            return 0
        with self._connection.errors(f"look at the files of version {record.version}"):
            others = self._others(record.tags["model_id"], record.version)
            return 0 if others else self._bytes(location)

    def note(self, record: ModelVersion) -> None:
        model_id, location = record.tags.get("model_id", ""), ""
        try:
            location = self._location(record)
        except ArtifactError:
            model_id = ""
        text = _Note(model_id, location, record.sha256).encode()
        with self._connection.errors(f"note the removal of version {record.version}"):
            self._connection.client.set_registered_model_tag(
                self._name, _WORK + record.version, text
            )

    def noted(self) -> Mapping[str, int]:
        sizes = {}
        for version, note in self._notes().items():
            with self._connection.errors("look at the files of a removed version"):
                sizes[version] = self._bytes(note.location) if note.location else 0
        return sizes

    def remove(self, version: str) -> Removal:
        """Remove a retired version, then its logged model, then its files, then the note of it.

        Doing it again finishes what was cut short. Only what the note names is touched, and
        nothing that another version still refers to.
        """
        note = self._notes().get(version, _Note())
        model_id, location = note.model_id, note.location
        client = self._connection.client
        with self._connection.errors(f"remove version {version}"):
            self._connection.or_none(client.delete_model_version, self._name, version)
            others = self._others(model_id, version) if model_id else []
            if note.wrong:
                done = Removal(left=note.wrong)
            elif others:
                done = Removal(left=f"{', '.join(others)} still refers to its files")
            else:
                done = self._delete(model_id, location) if model_id else Removal()
            if note.sha256:  # a downloaded copy on this machine
                remove_folder(self._connection.home / "cache" / note.sha256)
            if others or not done.left:
                self._connection.or_none(
                    client.delete_registered_model_tag, self._name, _WORK + version
                )
        return done

    def upload(self, model_id: str, location: str, folder: Path) -> None:
        """Store all files of a folder as those of a logged model that was just created.

        MLflow's client would ask again where they go.
        """
        self._locations[model_id] = self._checked(location, model_id)
        self._store(location).log_artifacts(str(folder))

    def discard(self, model_id: str, location: str) -> None:
        """Remove what is there of a logged model that no version refers to, as far as that goes."""
        from mlflow.exceptions import MlflowException

        folder = local_folder(location)
        if folder is not None and model_id in folder.parts:
            remove_folder(folder)  # first: where the disk is full the database takes nothing
        try:
            self._connection.client.delete_logged_model(model_id)
        except (MlflowException, RegistryError, OSError) as error:
            logger.info("the logged model %s is left without files: %s", model_id, type(error))

    def _notes(self) -> dict[str, _Note]:
        with self._connection.errors("read what is to be removed"):
            model = self._connection.or_none(
                self._connection.client.get_registered_model, self._name
            )
        tags = model.tags if model else {}
        noted = {k.removeprefix(_WORK): v for k, v in tags.items() if k.startswith(_WORK)}
        return {version: self._read_note(text) for version, text in noted.items()}

    def _read_note(self, text: str) -> _Note:
        """Return a note as read; one that cannot be right names nothing to remove."""
        try:
            fields = read_json(text)
            note = _Note(**{k: str(fields.get(k, "")) for k in ("model_id", "location", "sha256")})
            if note.location:
                self._checked(note.location, note.model_id)
            return note if DIGEST.fullmatch(note.sha256) else replace(note, sha256="")
        except (ValueError, TypeError, AttributeError, ArtifactError) as error:
            return _Note(wrong=f"the note of what to remove cannot be right: {one_line(error)}")

    def _checked(self, location: str, model_id: str) -> str:
        return checked_location(location, model_id, tracking_uri=self._connection.uri)

    def _others(self, model_id: str, version: str) -> list[str]:
        """Return the versions, of any registered model, that refer to a logged model."""
        client, others = self._connection.client, set()
        for condition in (f"tags.model_id = '{model_id}'", f"source_path LIKE '%{model_id}%'"):
            for row in client.search_model_versions(condition, max_results=100):
                others.add((str(row.name), str(row.version)))
        return [f"{name} {v}" for name, v in sorted(others - {(self._name, version)})]

    def _delete(self, model_id: str, location: str) -> Removal:
        self._connection.or_none(self._connection.client.delete_logged_model, model_id)
        self._locations.pop(model_id, None)
        folder = local_folder(location)
        return self._delete_elsewhere(location) if folder is None else remove_folder(folder)

    def _delete_elsewhere(self, location: str) -> Removal:
        """Remove files through MLflow, and look whether they are gone."""
        before = self._bytes(location)
        try:
            self._store(location).delete_artifacts()
        except NotImplementedError:
            return Removal(left=f"MLflow cannot delete files at {location}; remove them there")
        after = self._bytes(location)
        return Removal(before - after, f"{after} bytes are still at {location}" if after else "")

    def _bytes(self, location: str) -> int:
        folder = local_folder(location)
        return sum(_walk(self._store(location))) if folder is None else own_bytes(folder)

    def _store(self, location: str) -> Any:
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        return get_artifact_repository(location, tracking_uri=self._connection.uri)

    def _location(self, record: ModelVersion) -> str:
        model_id = record.tags.get("model_id", "")
        if model_id in self._locations:
            return self._locations[model_id]
        if not is_model_id(model_id):
            raise ArtifactError(
                f"Version {record.version} does not say which logged model holds its files; "
                "save its file with save_model_version again."
            )
        with self._connection.errors(f"find the files of version {record.version}"):
            model = self._connection.or_none(self._connection.client.get_logged_model, model_id)
        if model is None:
            raise ArtifactError(
                f"The logged model {model_id}, which holds the files of version "
                f"{record.version}, was deleted in MLflow; restore it, or use another version."
            )
        location = self._checked(str(model.artifact_location), model_id)
        return self._locations.setdefault(model_id, location)

    def _sizes(self, model_id: str) -> dict[str, int]:
        with self._connection.errors(f"list the files of {model_id}"):
            files = self._connection.client.list_logged_model_artifacts(model_id)
        return {str(file.path): int(file.file_size or 0) for file in files if not file.is_dir}

    def _fetched(self, location: str, name: str, sha256: str) -> Path:
        """Return the downloaded file; one that is there and whole is not fetched again."""
        cached = self._connection.home / "cache" / sha256 / name
        if self.whole.has(cached, sha256):
            return cached
        with (
            self._connection.errors(f"download {name}"),
            scratch_folder(self._connection.home / "tmp") as folder,
        ):
            downloaded = self._download(location, name, folder)
            cached.parent.mkdir(parents=True, exist_ok=True)
            downloaded.replace(cached)
        return cached

    def _download(self, location: str, name: str, folder: Path) -> Path:
        from mlflow.artifacts import download_artifacts

        return Path(
            download_artifacts(
                artifact_uri=f"{location}/{name}",
                dst_path=str(folder),
                tracking_uri=self._connection.uri,
            )
        )


def local_folder(location: str) -> Path | None:
    """Return the folder of a location on this machine; None for one elsewhere."""
    parts = urlsplit(location)
    return Path(unquote(parts.path)) if parts.scheme in LOCAL_SCHEMES else None


def _walk(store: Any, folder: str | None = None) -> Iterator[int]:
    for file in store.list_artifacts(folder):
        if file.is_dir:
            yield from _walk(store, file.path)
        else:
            yield int(file.file_size or 0)
