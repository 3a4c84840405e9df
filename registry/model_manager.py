# SPDX-License-Identifier: Apache-2.0
"""`ModelManager`: the model store in MLflow. Stage rules and questions are in `registry.store`."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from registry.artifacts import WEIGHTS_FILE, Artifact, file_digest, prepared
from registry.connection import Connection
from registry.errors import ArtifactError, InvalidName, error_code
from registry.journal import Entry, State
from registry.mirror import show_state, touched_versions
from registry.mlflow_journal import MlflowJournal, missing_version
from registry.records import ModelVersion
from registry.store import JournalledStore
from registry.versions import checked_tags, checked_version, read_version, version_tags

if TYPE_CHECKING:
    from mlflow import MlflowClient

_MAX_NAME = 250


class ModelManager(JournalledStore):
    """Versions of one registered model in MLflow.

    Making one is instant; MLflow is imported and opened when it is first needed.

    Parameters
    ----------
    tracking_uri : str | None
        MLflow's address: ``http(s)://…``, ``sqlite:///…`` or another database.
        Default: ``mlflow.db`` in the app's home.
    registered_model_name : str
        The registered model; created on the first save.
    home : str | Path | None
        The app's home (see `app_home`).
    experiment_name : str
        The experiment that holds the model files.

    Raises
    ------
    InvalidName
        The model's name cannot be used.
    """

    def __init__(
        self,
        tracking_uri: str | None = None,
        registered_model_name: str = "fl-global-model",
        *,
        home: str | Path | None = None,
        experiment_name: str = "fl-app",
    ) -> None:
        self.registered_model_name = _checked_name(registered_model_name)
        self._connection = Connection(tracking_uri, home)
        self._experiment_name = experiment_name
        self._journal = MlflowJournal(self._connection, self.registered_model_name)

    @property
    def tracking_uri(self) -> str:
        """MLflow's address, absolute, with its password if it has one."""
        return self._connection.uri

    @property
    def client(self) -> MlflowClient:
        """MLflow's own client for this address."""
        return self._connection.client

    def ping(self) -> None:
        self._connection.check()

    def save_model_version(
        self,
        model_path: str | Path,
        run_id: str | None = None,
        metrics: Mapping[str, float] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> str:
        with prepared(model_path, self._connection.home / "tmp") as artifact:
            mine = version_tags(artifact, run_id=run_id, metrics=metrics, tags=tags)
            self._journal.ensure()
            experiment = self._connection.experiment_id(self._experiment_name)
            with self._connection.errors("save the version"):
                earlier = self._saved_as(mine["save_key"])
                if earlier:
                    return earlier[0]
                self._register(artifact, experiment, run_id=run_id, tags=mine)
                # MLflow's client re-sends a create whose reply was lost: keep the first.
                first, *echoes = self._saved_as(mine["save_key"])
                for echo in echoes:
                    self.client.delete_model_version(self.registered_model_name, echo)
        return first

    def set_version_tags(self, version: str | int, tags: Mapping[str, str]) -> None:
        number, new = checked_version(version), checked_tags(tags)
        self._row(number)
        with self._connection.errors(f"tag version {number}"):
            for key, value in new.items():
                self.client.set_model_version_tag(self.registered_model_name, number, key, value)

    def _register(
        self, artifact: Artifact, experiment: str, *, run_id: str | None, tags: Mapping[str, str]
    ) -> None:
        """Upload the files as a logged model, then create the version with all its tags."""
        client = self.client
        model = client.create_logged_model(experiment, source_run_id=run_id)
        client.log_model_artifacts(model.model_id, str(artifact.folder))
        client.finalize_logged_model(model.model_id, "READY")
        # A server takes only models:/ sources; without one, MLflow would look such a source up
        # at the process's global address instead of ours.
        served = self._connection.is_server
        client.create_model_version(
            self.registered_model_name,
            f"models:/{model.model_id}" if served else model.artifact_location,
            run_id,
            tags={**tags, "model_id": model.model_id},
            await_creation_for=0,
            model_id=model.model_id if served else None,
        )

    def _saved_as(self, save_key: str) -> list[str]:
        found = self.client.search_model_versions(
            f"name = '{self.registered_model_name}' and tags.save_key = '{save_key}'"
        )
        return sorted((str(row.version) for row in found), key=int)

    def _texts(self) -> list[str]:
        return self._journal.texts()

    def _claim(self, number: int, text: str) -> bool:
        return self._journal.claim(number, text)

    def _apply(self, state: State, entries: Sequence[Entry] | None) -> None:
        if state == State():
            return
        with self._connection.errors("show the stages"):
            if entries is None:
                rows = list(self._search(10_000))
            else:
                numbers = touched_versions(state, entries)
                rows = [row for n in numbers if (row := self._find(n)) is not None]
            show_state(self.client, self.registered_model_name, state, rows=rows)

    def _all(self, state: State, *, page: int) -> Iterator[ModelVersion]:
        with self._connection.errors("list the versions"):
            for row in self._search(page):
                yield _record(row, state)

    def _one(self, version: str, state: State) -> ModelVersion:
        return _record(self._row(version), state)

    def _file(self, record: ModelVersion) -> Path:
        if "model_id" not in record.tags:
            raise ArtifactError(
                f"Version {record.version} does not say which logged model holds its files; "
                "save its file with save_model_version again."
            )
        with self._connection.errors(f"find the weights of version {record.version}"):
            location = self.client.get_logged_model(record.tags["model_id"]).artifact_location
        if urlsplit(location).scheme in ("", "file"):
            return Path(unquote(urlsplit(location).path)) / WEIGHTS_FILE
        return self._cached(location, record)

    def _cached(self, location: str, record: ModelVersion) -> Path:
        """Return the downloaded weights; a file that is there and whole is not fetched again."""
        kept = self._connection.home / "cache" / record.sha256 / WEIGHTS_FILE
        if kept.is_file() and file_digest(kept) == record.sha256:
            return kept
        kept.parent.mkdir(parents=True, exist_ok=True)
        with (
            self._connection.errors(f"download the weights of version {record.version}"),
            tempfile.TemporaryDirectory(dir=kept.parent) as folder,
        ):
            from mlflow.artifacts import download_artifacts

            fetched = download_artifacts(
                artifact_uri=f"{location}/{WEIGHTS_FILE}",
                dst_path=folder,
                tracking_uri=self.tracking_uri,
            )
            Path(fetched).replace(kept)
        return kept

    def _search(self, page: int) -> Iterator[Any]:
        """Yield MLflow's rows, newest first."""
        token: str | None = None
        while True:
            rows = self.client.search_model_versions(
                f"name = '{self.registered_model_name}'",
                max_results=page,
                order_by=["version_number DESC"],
                page_token=token,
            )
            yield from rows
            token = rows.token
            if not token:
                return

    def _row(self, version: str) -> Any:
        with self._connection.errors(f"read version {version}"):
            row = self._find(version)
        if row is None:
            raise missing_version(self.registered_model_name, version)
        return row

    def _find(self, version: str) -> Any | None:
        from mlflow.exceptions import MlflowException

        try:
            return self.client.get_model_version(self.registered_model_name, version)
        except MlflowException as error:
            if error_code(error) == "RESOURCE_DOES_NOT_EXIST":
                return None
            raise


def _record(row: Any, state: State) -> ModelVersion:
    """Return our record of MLflow's row; its version is a number on SQLite, a text over http."""
    created = datetime.fromtimestamp(row.creation_timestamp / 1000, UTC)
    return read_version(
        str(row.version), row.tags, run_id=row.run_id or "", created=created, state=state
    )


def _checked_name(name: str) -> str:
    if not name.strip() or len(name) > _MAX_NAME or set(name) & set("/:'\"`\\"):
        raise InvalidName(
            f"{name!r:.60} cannot be a registered model's name; use 1 to {_MAX_NAME} characters "
            "without slashes, colons and quotes."
        )
    return name
