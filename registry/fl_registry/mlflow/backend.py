# SPDX-License-Identifier: Apache-2.0
"""`ModelManager`, the model store in MLflow, and the backend that stores and displays its versions.

What a store does is in `fl_registry.store`.
"""

from __future__ import annotations

import logging
import re
import uuid
import warnings
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit, urlunsplit

from fl_registry.backend import Backend, Inventory, NewVersion
from fl_registry.errors import (
    InvalidName,
    RegistryError,
    StoreUnavailable,
    UnknownVersion,
    error_code,
    is_missing,
)
from fl_registry.files.digests import stamps
from fl_registry.home import DEFAULT_MODEL_NAME
from fl_registry.mlflow.connection import MARK, Connection
from fl_registry.mlflow.files import MlflowFiles, is_model_id, named_models
from fl_registry.mlflow.journal import PAGE_LENGTH, MlflowJournal
from fl_registry.serving.mlmodel import write_serving
from fl_registry.stages import Stage, StageMark
from fl_registry.store import ModelStore
from fl_registry.versions import ModelVersion, read_version

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel

logger = logging.getLogger(__name__)

_AT_ONCE = 10_000  # versions requested at a time
_ORDER = (Stage.PRODUCTION, Stage.STAGING, Stage.ARCHIVED, Stage.NONE)
_ALONE = (Stage.PRODUCTION, Stage.STAGING)  # one version at most
_STAGES = {stage.value: stage for stage in Stage}
_NAME = re.compile(r"""(?!\.\.|\.$)[^/:'"`\\]{1,250}""")


@dataclass(frozen=True)
class _Saves:
    """The versions of one run, as they were when this object saved its newest version.

    A session saves a version each round under one run, and nothing else does. Then there is no need
    to ask MLflow each time whether the version exists, nor afterwards whether it exists twice.

    Attributes
    ----------
    newest : int
        The number of that version.
    run_id : str
        The run; empty if its versions are not known.
    keys : frozenset[str]
        The ``save_key`` of all versions of the run.
    """

    newest: int = 0
    run_id: str = ""
    keys: frozenset[str] = frozenset()

    def lacks(self, new: NewVersion) -> bool:
        """Return whether there was no equal version when the newest one was saved."""
        known = bool(new.run_id) and new.run_id == self.run_id
        return known and new.tags["save_key"] not in self.keys

    def is_next(self, version: int | str) -> bool:
        """Return whether nothing was saved between the newest version and this one.

        Numbers are given in order, so the call that created it was not repeated either.
        """
        return int(version) == self.newest + 1


class MlflowBackend(Backend):
    """One registered model in MLflow.

    Parameters
    ----------
    connection : Connection
        Where MLflow is.
    name : str
        The registered model; created on the first save.
    experiment_name : str
        The experiment that holds the model files.
    page_length : int
        Entries of the journal after which another run is begun.
    """

    def __init__(
        self,
        connection: Connection,
        name: str,
        *,
        experiment_name: str = "fl-app",
        page_length: int = PAGE_LENGTH,
    ) -> None:
        self.connection = connection
        self.journal: MlflowJournal = MlflowJournal(connection, name, page_length=page_length)
        self.files: MlflowFiles = MlflowFiles(connection, self.journal.name)
        self.scratch = connection.home / "tmp"
        self._experiment_name = experiment_name
        self._saves = _Saves()

    def ping(self) -> None:
        self.connection.check()

    def check_files(self) -> None:
        connection = self.connection
        number = connection.experiment_id(self._experiment_name)
        with connection.errors(f"look at the experiment {self._experiment_name!r}"):
            experiment = connection.again(connection.client.get_experiment, number)
        self.files.check(str(experiment.artifact_location))

    def fingerprint(self) -> Hashable | None:
        file = self.connection.file
        return None if file is None else stamps(file, file.with_name(f"{file.name}-wal"))

    @property
    def _name(self) -> str:
        return self.journal.name.now

    def notices(self) -> tuple[str, ...]:
        name = self.journal.name
        if name.now == name.given:
            return ()
        return (
            f"Model {name.given!r} is called {name.now!r} in MLflow now, where its versions go; "
            "set registered-model-name (on the command line: --name) to that, or rename it back.",
        )

    def save(
        self, new: NewVersion, retired: Callable[[], frozenset[str]]
    ) -> tuple[ModelVersion, bool]:
        try:
            return self._save(new, retired)
        except RegistryError as error:
            # The model itself may be what MLflow does not have.
            if isinstance(error, StoreUnavailable) or not self.journal.follow():
                raise
            return self._save(new, retired)

    def _save(
        self, new: NewVersion, retired: Callable[[], frozenset[str]]
    ) -> tuple[ModelVersion, bool]:
        self.journal.ensure()
        connection, before = self.connection, self._saves
        experiment = connection.experiment_id(self._experiment_name)

        def equal() -> list[Any]:
            rows = list(self._search(f"tags.save_key = '{new.tags['save_key']}'"))
            gone = retired() if rows else frozenset()
            return [row for row in reversed(rows) if str(row.version) not in gone]

        with connection.errors("save the version"):
            if not before.lacks(new) and (saved := equal()):
                return _record(saved[0]), False
            # A save that fails from here on may have stored the version all the same.
            self._saves = _Saves()
            model = self._upload(new, experiment)
            row = connection.create_once(
                lambda: self._register(new, model),
                equal,
                drop=lambda echo: connection.again(
                    connection.marker.delete_model_version, self._name, str(echo.version)
                ),
                alone=lambda row: before.is_next(row.version),
            )
            self._saves = self._after(row, new, before)
            return _record(row), True

    def find(self, version: str) -> ModelVersion | None:
        connection = self.connection
        if connection.lacks_model(self._name):
            return None
        with connection.errors(f"read version {version}"):
            row = connection.or_none(connection.client.get_model_version, self._name, version)
        if row is None and self.journal.follow():
            return self.find(version)
        return None if row is None else _record(row)

    def versions(self, *, at_once: int, before: str = "") -> Iterator[ModelVersion]:
        if self.connection.lacks_model(self._name):
            return
        older, found = f"version_number < {int(before)}" if before else "", bool(before)
        with self.connection.errors("list the versions"):
            for row in self._search(older, at_once=at_once):
                found = True
                yield _record(row)
        if not found and self.journal.follow():
            yield from self.versions(at_once=at_once, before=before)

    def inventory(self, run_id: str = "") -> Inventory:
        with self.connection.errors("list the versions"):
            if run_id:
                rows = list(self._search(f"run_id = '{run_id}'"))
                return Inventory([_record(row) for row in rows], self._users)
            search = self.connection.client.search_model_versions
            rows = list(self.connection.rows(search, max_results=_AT_ONCE))
        by_text = defaultdict[str, list[Any]](list)
        for row in rows:
            for text in {str(row.source), *named_models(str(row.source), row.tags)}:
                by_text[text].append(row)
        mine = [_record(row) for row in rows if row.name == self._name]
        mine.sort(key=lambda record: int(record.version), reverse=True)

        def users(record: ModelVersion) -> str:
            texts = record.tags.get("model_id", ""), *self._sources(record)
            return self._others(record, (row for text in texts for row in by_text.get(text, ())))

        return Inventory(mine, users)

    def _users(self, record: ModelVersion) -> str:
        """Ask who else refers to the files of one version."""
        model_id, search = record.tags.get("model_id", ""), self.connection.client
        conditions = [f"source_path = '{source}'" for source in self._sources(record)]
        if is_model_id(model_id):
            conditions += [f"source_path LIKE '%{model_id}%'", f"tags.model_id = '{model_id}'"]
        with self.connection.errors(f"look who uses version {record.version}"):
            rows = [
                row
                for condition in conditions
                for row in self.connection.rows(search.search_model_versions, condition)
            ]
        return self._others(record, rows)

    def _sources(self, record: ModelVersion) -> set[str]:
        """Return what MLflow notes as the source of a version that was registered from another."""
        name = self.journal.name
        return {f"models:/{each}/{record.version}" for each in (name.given, name.now)}

    def _others(self, record: ModelVersion, rows: Iterable[Any]) -> str:
        """Return the names of the versions in these rows, without that of the record itself."""
        named = {(str(row.name), int(row.version)) for row in rows}
        named.discard((self._name, int(record.version)))
        return ", ".join(f"{name} {number}" for name, number in sorted(named))

    def set_tags(self, version: str, tags: Mapping[str, str]) -> None:
        def missing(error: Exception) -> None:
            raise UnknownVersion(
                f"There is no version {version} of model {self._name!r}; list_all_versions() "
                "returns those that exist."
            ) from error

        with self.connection.errors(f"tag version {version}"):
            write = self.connection.marker.set_model_version_tag
            for key, value in tags.items():
                self.connection.or_none(write, self._name, version, key, value, missing=missing)

    def aliases(self) -> dict[str, str]:
        connection = self.connection
        if connection.lacks_model(self._name):
            return {}
        with connection.errors("read the aliases"):
            model = connection.registered_model(self._name)
        if model is None and self.journal.follow():
            return self.aliases()
        aliases = model.aliases if model is not None else {}
        return {alias: str(version) for alias, version in aliases.items()}  # numbers on SQLite

    def show(self, aliases: Mapping[str, str | None], marks: Sequence[StageMark]) -> None:
        if not aliases and not marks:
            return
        client, name = self.connection.marker, self._name
        # A version that the journal names may have been deleted in MLflow.
        write = partial(self.connection.or_none, missing=_warn_of_missing)
        with self.connection.errors("show the stages"):
            for alias, version in aliases.items():
                if version is None:
                    write(client.delete_registered_model_alias, name, alias)
                else:
                    write(client.set_registered_model_alias, name, alias, version)
            for mark in marks:
                for tag, text in mark.tags.items():
                    write(client.set_model_version_tag, name, mark.version, tag, text)
            # A later MLflow has no stage field any more.
            move = getattr(client, "transition_model_version_stage", None)
            if move is not None:
                self._show_stage_fields(partial(write, move, name), marks)

    def log_to_run(
        self,
        run_id: str,
        metrics: Mapping[str, float],
        texts: Mapping[str, str],
        *,
        step: int,
        time: datetime,
    ) -> None:
        from mlflow.entities import Metric

        client, milliseconds = self.connection.client, int(time.timestamp() * 1000)
        fields = [Metric(name, value, milliseconds, step) for name, value in metrics.items()]
        if texts:
            self.connection.settle_moved()
        with self.connection.errors(f"log to run {run_id}"):
            client.log_batch(run_id, metrics=fields)
            for path, text in texts.items():
                client.log_text(run_id, text, path)

    def run_params(self, run_id: str) -> Mapping[str, str] | None:
        with self.connection.errors(f"read the params of run {run_id}"):
            try:
                return dict(self.connection.client.get_run(run_id).data.params)
            except Exception as error:
                if is_missing(error) or error_code(error) == "INVALID_PARAMETER_VALUE":
                    return None  # deleted, or never one of MLflow's
                raise

    def run_files(self, run_id: str) -> Sequence[str]:
        location = self._run_location(run_id)
        with self.connection.errors(f"list the files of run {run_id}"):
            return self.files.names(location, run_id) if location else ()

    def run_file(self, run_id: str, name: str) -> bytes | None:
        location = self._run_location(run_id)
        with self.connection.errors(f"read {name} of run {run_id}"):
            known = name in self.files.names(location, run_id) if location else False
            return self.files.content(location, name) if known else None

    def _run_location(self, run_id: str) -> str:
        """Return where the files of a run are now; empty if MLflow does not have the run."""
        with self.connection.errors(f"look for run {run_id}"):
            try:
                run = self.connection.or_none(self.connection.client.get_run, run_id)
            except Exception as error:
                if error_code(error) != "INVALID_PARAMETER_VALUE":  # never one of MLflow's
                    raise
                run = None
            return "" if run is None else self.connection.here(str(run.info.artifact_uri))

    def models(self) -> Mapping[str, Mapping[str, str]]:
        search = self.connection.client.search_registered_models
        with self.connection.errors("list the registered models"):
            rows = sorted(self.connection.rows(search), key=lambda row: str(row.name))
        return {
            str(row.name): {alias: str(version) for alias, version in row.aliases.items()}
            for row in rows
        }

    def links(self, version: str, run_id: str) -> Mapping[str, str]:
        if not self.connection.is_server:  # a database has no pages
            return {}
        parts = urlsplit(self.connection.uri)
        # Without a name and a password, which are for this process only.
        place = f"{parts.hostname}:{parts.port}" if parts.port else str(parts.hostname)
        root = urlunsplit((parts.scheme, place, parts.path.rstrip("/"), "", "")) + "/#"
        links = {"version": f"{root}/models/{quote(self._name, safe='')}/versions/{version}"}
        return {**links, "run": f"{root}/runs/{quote(run_id, safe='')}"} if run_id else links

    def _after(self, row: Any, new: NewVersion, before: _Saves) -> _Saves:
        """Return what is known after a version was saved; ask only where others may have saved."""
        number, key = int(row.version), new.tags["save_key"]
        known = before.is_next(number) and new.run_id in ("", before.run_id)
        if known or number == 1:
            return _Saves(number, new.run_id or before.run_id, before.keys | {key})
        if not new.run_id:
            return _Saves(number)
        rows = list(self._search(f"run_id = '{new.run_id}'"))
        newest = max([number, *(int(row.version) for row in rows)])
        return _Saves(newest, new.run_id, frozenset(row.tags.get("save_key", "") for row in rows))

    def _upload(self, new: NewVersion, experiment: str) -> LoggedModel:
        """Store the files as a logged model."""
        connection, mark = self.connection, uuid.uuid4().hex
        client = connection.client
        model = connection.create_once(
            lambda: client.create_logged_model(
                # Without a name MLflow draws one from Python's global generator. The characters
                # that are replaced are those that it refuses in such a name only.
                experiment,
                name=re.sub("[.%]", "-", self._name),
                tags={MARK: mark},
                source_run_id=new.run_id or None,
            ),
            lambda: client.search_logged_models([experiment], f"tags.{MARK} = '{mark}'"),
            drop=lambda echo: connection.again(client.delete_logged_model, echo.model_id),
        )
        try:
            if new.serving is not None:
                write_serving(new.serving, new.artifact.folder, model_id=model.model_id)
            location = str(model.artifact_location)
            self.files.upload(model.model_id, location, new)
            return connection.again(client.finalize_logged_model, model.model_id, "READY")
        except Exception:
            self.files.discard(model.model_id, str(model.artifact_location))
            raise

    def _register(self, new: NewVersion, model: LoggedModel) -> Any:
        """Create the version, with all its tags in the one call."""
        # A server takes only models:/ sources; without one, MLflow would look such a source up
        # at the process's global address instead of ours.
        served = self.connection.is_server
        return self.connection.client.create_model_version(
            self._name,
            f"models:/{model.model_id}" if served else model.artifact_location,
            new.run_id or None,
            tags={**new.tags, "model_id": model.model_id},
            description=new.description or None,
            await_creation_for=0,
            model_id=model.model_id if served else None,
        )

    def _search(self, condition: str = "", *, at_once: int = _AT_ONCE) -> Iterator[Any]:
        """Return MLflow's rows of versions, newest first."""
        return self.connection.rows(
            self.connection.client.search_model_versions,
            f"name = '{self._name}'" + (f" and {condition}" if condition else ""),
            max_results=at_once,
            order_by=["version_number DESC"],
        )

    def _show_stage_fields(
        self, move: Callable[[int, str, bool], object], marks: Sequence[StageMark]
    ) -> None:
        emptied: set[Stage] = set()
        for mark in sorted(marks, key=lambda mark: _ORDER.index(mark.stage)):
            archived = mark.stage is Stage.ARCHIVED and mark.before in emptied
            if mark.before == mark.stage or archived:
                continue
            with warnings.catch_warnings(action="ignore", category=FutureWarning):
                # A number: MLflow compares it with a column of numbers, and PostgreSQL refuses
                # to compare that with a text.
                if self._moved(move, int(mark.version), mark.stage):
                    emptied.add(mark.stage)

    @staticmethod
    def _moved(move: Callable[[int, str, bool], object], version: int, stage: Stage) -> bool:
        """Set a version's stage field; return whether MLflow archived what was in the stage."""
        # Archiving the old version in the same call leaves never two in a stage, nor none.
        alone = stage in _ALONE
        try:
            move(version, str(stage), alone)
        except Exception as error:
            # Over HTTP the number is a text again, and the server's own PostgreSQL refuses it.
            if not alone or "operator does not exist" not in str(error):
                raise
            move(version, str(stage), False)
            return False
        return alone


class ModelManager(ModelStore):
    """Versions of one registered model in MLflow.

    Making one is instant; MLflow is imported and opened when it is first needed.

    Parameters
    ----------
    tracking_uri : str | None
        MLflow's address: ``http(s)://…``, ``sqlite:///…`` or another database.
        Default: ``$FL_APP_MLFLOW_TRACKING_URI``, else ``$MLFLOW_TRACKING_URI``, else ``mlflow.db``
        in the app's home.
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

    backend: MlflowBackend

    def __init__(
        self,
        tracking_uri: str | None = None,
        registered_model_name: str = DEFAULT_MODEL_NAME,
        *,
        home: str | Path | None = None,
        experiment_name: str = "fl-app",
    ) -> None:
        name = registered_model_name
        if not (_NAME.fullmatch(name) and name.strip() and name.isprintable()):
            raise InvalidName(
                f"{name!r:.60} cannot be a registered model's name; use 1 to 250 characters "
                "without slashes, colons, quotes and line breaks."
            )
        self.registered_model_name = name
        connection = Connection(tracking_uri, home)
        super().__init__(MlflowBackend(connection, name, experiment_name=experiment_name))

    @property
    def tracking_uri(self) -> str:
        """MLflow's address, absolute, with its password if it has one."""
        return self.backend.connection.uri

    @property
    def client(self) -> MlflowClient:
        """MLflow's own client for this address."""
        return self.backend.connection.client

    def model_names(self) -> list[str]:
        """Return the names of the registered models in this MLflow, sorted."""
        connection = self.backend.connection
        if connection.file is not None and not connection.file.exists():
            return []  # opening MLflow would make it
        with connection.errors("list the models"):
            search = connection.client.search_registered_models
            return sorted(str(model.name) for model in connection.rows(search, max_results=1000))


def _warn_of_missing(error: Exception) -> None:
    logger.warning("a version that the journal names was deleted in MLflow: %s", error)


def _record(row: Any) -> ModelVersion:
    """Return our record of MLflow's row; its version is a number on SQLite, a text over HTTP."""
    field = getattr(row, "current_stage", None) or row.tags.get("stage", "")
    return read_version(
        str(row.version),
        row.tags,
        run_id=row.run_id or "",
        created=datetime.fromtimestamp(row.creation_timestamp / 1000, UTC),
        stage=_STAGES.get(str(field), Stage.NONE),
        description=row.description or "",
    )
