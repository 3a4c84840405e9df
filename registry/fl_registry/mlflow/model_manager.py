# SPDX-License-Identifier: Apache-2.0
"""`ModelManager`: the model store in MLflow. What all stores share is in `fl_registry.store`."""

from __future__ import annotations

import hashlib
import re
import time
import uuid
from collections.abc import Hashable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fl_registry.errors import InvalidName, error_code
from fl_registry.files.artifacts import Artifact, prepared
from fl_registry.files.file_stamp import stamps
from fl_registry.home import DEFAULT_MODEL_NAME
from fl_registry.journal.entries import Page
from fl_registry.journal.lease import Beat
from fl_registry.mlflow.connection import Connection
from fl_registry.mlflow.files import MlflowFiles
from fl_registry.mlflow.journal import MlflowJournal, missing_version
from fl_registry.mlflow.known_saves import OwnSaves
from fl_registry.mlflow.retries import again, create_once
from fl_registry.mlflow.stages import show_aliases, show_marks, show_move
from fl_registry.records import ModelVersion
from fl_registry.serving.mlmodel import Serving, write_serving
from fl_registry.stages import State
from fl_registry.store import JournalledStore
from fl_registry.version_tags import checked_description, checked_scores, read_version, version_tags

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel

_MAX_NAME = 250
_FRESH = 5.0  # seconds for which a version is taken to be as it was saved, by who saved it
_BEAT = "lease"  # on the registered model: the last sign of life of the server that writes
_MARK = "created_by_call"  # on a logged model: tells an echo of a create from the first one


class ModelManager(JournalledStore):
    """Versions of one registered model in MLflow.

    Making one is instant; MLflow is imported and opened when it is first needed.

    Parameters
    ----------
    tracking_uri : str | None
        MLflow's address: ``http(s)://…``, ``sqlite:///…`` or another database.
        Default: ``$FL_APP_MLFLOW_TRACKING_URI``, else ``mlflow.db`` in the app's home.
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
        registered_model_name: str = DEFAULT_MODEL_NAME,
        *,
        home: str | Path | None = None,
        experiment_name: str = "fl-app",
    ) -> None:
        self.registered_model_name = _checked_name(registered_model_name)
        self._connection = Connection(tracking_uri, home)
        self._stored = MlflowFiles(self._connection, self.registered_model_name)
        super().__init__(self._stored)
        self._experiment_name = experiment_name
        self._own = OwnSaves()
        self._fresh: tuple[float, ModelVersion] | None = None
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
        *,
        description: str = "",
        per_example: Mapping[str, float] | None = None,
        serving: Serving | None = None,
    ) -> str:
        text, scores = checked_description(description), checked_scores(per_example)
        folder = self._connection.home / "tmp"
        with prepared(model_path, folder, per_example=scores) as artifact:
            mine = version_tags(artifact, run_id=run_id, metrics=metrics, tags=tags)
            self._journal.ensure()
            experiment = self._connection.experiment_id(self._experiment_name)
            with self._connection.errors("save the version"):
                key, own = mine["save_key"], self._own  # known before the look
                earlier = [] if own.surely_new(run_id, key) else self._saved_as(key)
                if earlier:
                    return self._saved_again(earlier[0], mine, description=text, serving=serving)
                self._own = own.trying(run_id, key)
                model = self._upload(artifact, experiment, run_id=run_id, serving=serving)
                saved = create_once(
                    lambda: self._register(model, run_id=run_id, tags=mine, description=text),
                    lambda: self._saved_as(key),
                    drop=lambda echo: again(
                        self.client.delete_model_version, self.registered_model_name, echo
                    ),
                    alone=own.is_next,
                )
                look = self._newest_of(run_id) if own.must_look(saved, run_id) else ()
                self._own = own.saved(saved, run_id, key, newest_of_run=look)
                return saved

    def _tag(self, version: str, tags: Mapping[str, str]) -> None:
        from mlflow.exceptions import MlflowException

        name, marker = self.registered_model_name, self._connection.marker
        with self._connection.errors(f"tag version {version}"):
            try:
                for key, value in tags.items():
                    again(marker.set_model_version_tag, name, version, key, value)
            except MlflowException as error:
                if error_code(error) != "RESOURCE_DOES_NOT_EXIST":
                    raise
                raise missing_version(name, version) from error

    def _log(
        self,
        run_id: str,
        metrics: Mapping[str, float],
        texts: Mapping[str, str],
        *,
        step: int,
        time: datetime,
    ) -> None:
        from mlflow.entities import Metric

        milliseconds = int(time.timestamp() * 1000)
        fields = [Metric(name, value, milliseconds, step) for name, value in metrics.items()]
        with self._connection.errors(f"log to run {run_id}"):
            self.client.log_batch(run_id, metrics=fields)
            for path, text in texts.items():
                self.client.log_text(run_id, text, path)

    def _upload(
        self, artifact: Artifact, experiment: str, *, run_id: str | None, serving: Serving | None
    ) -> LoggedModel:
        """Store the files as a logged model."""
        client, mark = self.client, uuid.uuid4().hex
        model = create_once(
            lambda: client.create_logged_model(
                # Without a name MLflow draws one from Python's global generator.
                experiment,
                name=_logged_name(self.registered_model_name),
                tags={_MARK: mark},
                source_run_id=run_id,
            ),
            lambda: client.search_logged_models([experiment], f"tags.{_MARK} = '{mark}'"),
            drop=lambda echo: again(client.delete_logged_model, echo.model_id),
            alone=lambda _: self._connection.sends_once,
        )
        try:
            if serving is not None:
                write_serving(serving, artifact.folder, model_id=model.model_id)
            self._stored.upload(model.model_id, str(model.artifact_location), artifact.folder)
            return again(client.finalize_logged_model, model.model_id, "READY")
        except Exception:
            self._stored.discard(model.model_id, str(model.artifact_location))
            raise

    def _register(
        self, model: LoggedModel, *, run_id: str | None, tags: Mapping[str, str], description: str
    ) -> str:
        """Create the version, with all its tags in the one call, and return its number."""
        # A server takes only models:/ sources; without one, MLflow would look such a source up
        # at the process's global address instead of ours.
        served = self._connection.is_server
        created = self.client.create_model_version(
            self.registered_model_name,
            f"models:/{model.model_id}" if served else model.artifact_location,
            run_id,
            tags={**tags, "model_id": model.model_id},
            description=description or None,
            await_creation_for=0,
            model_id=model.model_id if served else None,
        )
        self._fresh = time.monotonic(), _record(created, State())
        return str(created.version)

    def _just_saved(self, version: str) -> ModelVersion | None:
        saved, record = self._fresh or (0.0, None)
        if record is None or record.version != version or time.monotonic() - saved > _FRESH:
            return None
        return record

    def _is_near(self, record: ModelVersion) -> bool:
        return self._stored.are_here(record.tags.get("model_id", ""))

    def _newest_of(self, run_id: str | None) -> list[str]:
        """Return the two newest versions of a run, newest first."""
        rows = self.client.search_model_versions(
            f"name = '{self.registered_model_name}' and run_id = '{run_id}'",
            max_results=2,
            order_by=["version_number DESC"],
        )
        return [str(row.version) for row in rows]

    def _saved_as(self, save_key: str) -> list[str]:
        """Return the versions that were saved under a key and are not retired, oldest first."""
        found = self.client.search_model_versions(
            f"name = '{self.registered_model_name}' and tags.save_key = '{save_key}'"
        )
        kept = {str(row.version) for row in found}
        return sorted(kept - self._state().retired if kept else kept, key=int)

    def _page(self, *, fresh: bool) -> Page:
        return self._journal.page(fresh=fresh)

    def _pages(self) -> Sequence[Page]:
        return self._journal.pages()

    def _claim(self, number: int, text: str) -> bool:
        return self._journal.claim(number, text)

    def last_beat(self) -> Beat:
        with self._connection.errors("read who writes"):
            model = self._model()
        return Beat.decode(model.tags.get(_BEAT, "") if model is not None else "")

    def give_beat(self, beat: Beat) -> None:
        with self._connection.errors("write who writes"):
            tag = (self.registered_model_name, _BEAT, beat.encode())
            again(self.client.set_registered_model_tag, *tag)

    def lease_file(self) -> Path | None:
        shared = f"{self._connection.uri}\n{self.registered_model_name}"
        name = hashlib.sha256(shared.encode()).hexdigest()[:16]
        return self._connection.home / "leases" / f"{name}.lock"

    def _aliases(self) -> dict[str, str]:
        with self._connection.errors("read the aliases"):
            model = self._model()
        aliases = model.aliases if model is not None else {}
        return {alias: str(version) for alias, version in aliases.items()}

    def _mark(self, version: str) -> str:
        with self._connection.errors(f"read version {version}"):
            row = self._find(version)
        return str(row.tags.get("stage", "")) if row is not None else ""

    def _apply(
        self, state: State, versions: Sequence[str] | None, *, before: State | None = None
    ) -> None:
        if state.untouched:
            return
        name, client = self.registered_model_name, self._connection.marker
        with self._connection.errors("show the stages"):
            if before is not None:
                show_move(client, name, state, versions=versions or (), before=before)
                return
            show_aliases(client, name, state, now=self._aliases())
            if versions is None:
                rows = list(self._search(10_000))
            else:
                rows = [row for n in versions if (row := self._find(n)) is not None]
            show_marks(client, name, state, rows=rows)

    def _all(self, state: State, *, page: int) -> Iterator[ModelVersion]:
        with self._connection.errors("list the versions"):
            for row in self._search(page):
                yield _record(row, state)

    def _one(self, version: str, state: State) -> ModelVersion:
        return _record(self._row(version), state)

    def _run_params(self, run_id: str) -> Mapping[str, str] | None:
        from mlflow.exceptions import MlflowException

        with self._connection.errors(f"read the params of run {run_id}"):
            try:
                return dict(self.client.get_run(run_id).data.params)
            except MlflowException as error:
                if error_code(error) in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                    return None  # deleted, or never one of MLflow's
                raise

    def _fingerprint(self) -> Hashable | None:
        file = self._connection.file
        return None if file is None else stamps(file, file.with_name(f"{file.name}-wal"))

    def _model(self) -> Any | None:
        from mlflow.exceptions import MlflowException

        try:
            return again(self.client.get_registered_model, self.registered_model_name)
        except MlflowException as error:
            if error_code(error) == "RESOURCE_DOES_NOT_EXIST":
                return None
            raise

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
            return again(self.client.get_model_version, self.registered_model_name, version)
        except MlflowException as error:
            if error_code(error) == "RESOURCE_DOES_NOT_EXIST":
                return None
            raise


def _record(row: Any, state: State) -> ModelVersion:
    """Return our record of MLflow's row; its version is a number on SQLite, a text over http."""
    created = datetime.fromtimestamp(row.creation_timestamp / 1000, UTC)
    return read_version(
        str(row.version),
        row.tags,
        run_id=row.run_id or "",
        created=created,
        state=state,
        description=row.description or "",
    )


def _logged_name(name: str) -> str:
    """Return the registered model's name as MLflow takes it for a logged model."""
    return re.sub("[.%]", "-", name)  # the characters that MLflow refuses only there


def _checked_name(name: str) -> str:
    text = str(name)
    readable = text.strip() and text.isprintable() and len(text) <= _MAX_NAME
    if not readable or set(text) & set("/:'\"`\\") or text == "." or text.startswith(".."):
        raise InvalidName(
            f"{name!r:.60} cannot be a registered model's name; use 1 to {_MAX_NAME} characters "
            "without slashes, colons, quotes and line breaks."
        )
    return name
