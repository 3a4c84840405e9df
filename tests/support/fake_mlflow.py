# SPDX-License-Identifier: Apache-2.0
"""MLflow's client in this process, in dictionaries: what the registry uses of it, as it behaves.

For tests that make many thousand calls. The same tests run over SQLite in smaller numbers, which
tells whether this is like the original.
"""

from __future__ import annotations

import re
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace as Row
from typing import Any

from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import (
    INVALID_PARAMETER_VALUE,
    RESOURCE_ALREADY_EXISTS,
    RESOURCE_DOES_NOT_EXIST,
)

from fl_registry import ModelStore
from fl_registry.mlflow.backend import MlflowBackend
from fl_registry.mlflow.connection import Connection
from fl_registry.mlflow.locations import FOLDER_TAG

_TAG = re.compile(r"tags\.(\w+) = '([^']*)'")
_RUN = re.compile(r"attributes\.run_id = '([^']*)'")
_PARAM = re.compile(r"params\.`([^`]+)` LIKE '%'")
_NAME = re.compile(r"\bname = '([^']*)'")
_MADE_BY = re.compile(r"and run_id = '([^']*)'")


class _Page(list):  # type: ignore[type-arg]
    token = ""


class FakeMlflow:
    """One store; `hook(name, "before" | "after")` is told of each call."""

    def __init__(self) -> None:
        self.clock = 1_000_000_000_000
        self.experiments: dict[str, Row] = {}
        self.runs: dict[str, Row] = {}
        self.models: dict[str, Row] = {}
        self.versions: dict[tuple[str, int], Row] = {}
        self.logged: dict[str, Row] = {}
        self.hook: Callable[[str, str], None] = lambda name, when: None

    def manager(self, home: Path, name: str = "fl-global-model") -> ModelStore:
        """Return a store whose calls all end here; its journal has short pages."""
        address, client = "postgresql://in-this-process/none", _Client(self)
        connection = Connection(address, home, client=client, first_wait=0.0)  # type: ignore[arg-type]
        return ModelStore(MlflowBackend(connection, name, page_length=7), alias_seconds=0.0)

    def _now(self) -> int:
        self.clock += 1
        return self.clock

    def create_experiment(
        self, name: str, artifact_location: str | None = None, tags: dict[str, str] | None = None
    ) -> str:
        if name in self.experiments:
            raise _error(f"Experiment {name} exists", RESOURCE_ALREADY_EXISTS)
        number = str(len(self.experiments) + 1)
        self.experiments[name] = Row(
            experiment_id=number,
            name=name,
            lifecycle_stage="active",
            tags=dict(tags or {}),
            artifact_location=artifact_location,
        )
        return number

    def search_experiments(self, filter_string: str) -> Any:
        return _Page(e for e in self.experiments.values() if FOLDER_TAG in e.tags)

    def get_experiment_by_name(self, name: str) -> Row | None:
        return self.experiments.get(name)

    def get_experiment(self, number: str) -> Row:
        return next(e for e in self.experiments.values() if e.experiment_id == number)

    def create_run(self, experiment: str, tags: dict[str, str], run_name: str) -> Row:
        run_id = uuid.uuid4().hex
        info = Row(
            run_id=run_id,
            experiment_id=experiment,
            start_time=self._now(),
            lifecycle_stage="active",
        )
        self.runs[run_id] = Row(info=info, tags=dict(tags), params={})
        return self.get_run(run_id)

    def get_run(self, run_id: str) -> Row:
        run = self._run(run_id)
        data = Row(params=dict(run.params), tags=dict(run.tags))
        return Row(info=Row(**vars(run.info)), data=data)

    def delete_run(self, run_id: str) -> None:
        self._run(run_id).info.lifecycle_stage = "deleted"

    def restore_run(self, run_id: str) -> None:
        self._run(run_id).info.lifecycle_stage = "active"

    def search_runs(
        self,
        experiments: list[str],
        filter_string: str,
        max_results: int = 1000,
        page_token: str | None = None,
    ) -> Any:
        wanted = _conditions(filter_string)
        ids, params = _RUN.findall(filter_string), _PARAM.findall(filter_string)
        return _Page(
            self.get_run(run_id)
            for run_id, run in self.runs.items()
            if run.info.lifecycle_stage == "active"
            and run.info.experiment_id in experiments
            and wanted.items() <= run.tags.items()
            and all(run_id == one for one in ids)
            and all(key in run.params for key in params)
        )

    def log_param(self, run_id: str, key: str, value: str, synchronous: bool = True) -> str:
        run = self._run(run_id)
        if run.info.lifecycle_stage != "active":
            raise _error(f"The run {run_id} must be in the 'active' state", INVALID_PARAMETER_VALUE)
        if len(value) > 6000:
            raise _error("Param value exceeds 6000 characters", INVALID_PARAMETER_VALUE)
        if run.params.setdefault(key, value) != value:
            raise _error("Changing param values is not allowed", INVALID_PARAMETER_VALUE)
        return value

    def log_batch(self, run_id: str, params: list[Any]) -> None:
        for param in params:
            self.log_param(run_id, param.key, param.value)

    def create_registered_model(self, name: str, tags: dict[str, str] | None = None) -> Row:
        if name in self.models:
            raise _error(f"Registered Model {name} exists", RESOURCE_ALREADY_EXISTS)
        self.models[name] = Row(
            name=name, tags=dict(tags or {}), aliases={}, creation_timestamp=self._now()
        )
        return self.get_registered_model(name)

    def get_registered_model(self, name: str) -> Row:
        model = self._model(name)
        return Row(
            name=name,
            tags=dict(model.tags),
            aliases=dict(model.aliases),
            creation_timestamp=model.creation_timestamp,
        )

    def search_registered_models(self, filter_string: str, max_results: int = 100) -> Any:
        wanted, named = _conditions(filter_string), _NAME.match(filter_string)
        return _Page(
            self.get_registered_model(name)
            for name, model in self.models.items()
            if wanted.items() <= model.tags.items() and (not named or named[1] == name)
        )

    def set_registered_model_tag(self, name: str, key: str, value: str) -> None:
        self._model(name).tags[key] = value

    def set_registered_model_alias(self, name: str, alias: str, version: str) -> None:
        self._version(name, version)
        self._model(name).aliases[alias] = int(version)

    def delete_registered_model_alias(self, name: str, alias: str) -> None:
        self._model(name).aliases.pop(alias, None)

    def create_logged_model(
        self,
        experiment: str,
        name: str,
        tags: dict[str, str],
        source_run_id: str | None = None,
    ) -> Row:
        model_id = f"m-{uuid.uuid4().hex}"
        where = f"{self.get_experiment(experiment).artifact_location}/models/{model_id}/artifacts"
        self.logged[model_id] = Row(
            model_id=model_id,
            tags=dict(tags),
            artifact_location=where,
            creation_timestamp=self._now(),
        )
        return self.logged[model_id]

    def search_logged_models(self, experiments: list[str], filter_string: str) -> Any:
        wanted = _conditions(filter_string)
        return _Page(m for m in self.logged.values() if wanted.items() <= m.tags.items())

    def delete_logged_model(self, model_id: str) -> None:
        del self.logged[model_id]

    def log_model_artifacts(self, model_id: str, folder: str) -> None:
        where = Path(self.get_logged_model(model_id).artifact_location.removeprefix("file://"))
        shutil.copytree(folder, where, dirs_exist_ok=True)

    def finalize_logged_model(self, model_id: str, status: str) -> Row:
        return self.get_logged_model(model_id)

    def get_logged_model(self, model_id: str) -> Row:
        if model_id not in self.logged:
            raise _error(f"Logged model {model_id} not found", RESOURCE_DOES_NOT_EXIST)
        return self.logged[model_id]

    def create_model_version(
        self, name: str, source: str, run_id: str | None = None, **named: Any
    ) -> Row:
        self._model(name)
        number = 1 + max((v for model, v in self.versions if model == name), default=0)
        self.versions[name, number] = Row(
            name=name,
            version=number,
            source=source,
            run_id=run_id,
            tags=dict(named.get("tags") or {}),
            description=named.get("description"),
            current_stage="None",
            creation_timestamp=self._now(),
            deleted=False,
        )
        return self.get_model_version(name, str(number))

    def get_model_version(self, name: str, version: str) -> Row:
        row = self._version(name, version)
        return Row(**{**vars(row), "tags": dict(row.tags)})

    def search_model_versions(self, filter_string: str, **named: Any) -> Any:
        wanted, names = _conditions(filter_string), _NAME.findall(filter_string)
        runs = _MADE_BY.findall(filter_string)
        found = [
            self.get_model_version(name, str(number))
            for (name, number), row in sorted(self.versions.items(), reverse=True)
            if not row.deleted and name in names and wanted.items() <= row.tags.items()
            if row.run_id in runs or not runs
        ]
        return _Page(found[: named.get("max_results")])

    def delete_model_version(self, name: str, version: str) -> None:
        self._version(name, version).deleted = True
        kept = self._model(name).aliases
        for alias in [alias for alias, number in kept.items() if number == int(version)]:
            del kept[alias]

    def set_model_version_tag(self, name: str, version: str, key: str, value: str) -> None:
        self._version(name, version).tags[key] = value

    def transition_model_version_stage(
        self, name: str, version: str, stage: str, archive_existing_versions: bool = False
    ) -> None:
        row = self._version(name, version)
        for other in self.versions.values():
            if archive_existing_versions and other.current_stage == stage and other.name == name:
                other.current_stage = "Archived"
        row.current_stage = stage

    def _run(self, run_id: str) -> Row:
        if run_id not in self.runs:
            raise _error(f"Run with id={run_id} not found", RESOURCE_DOES_NOT_EXIST)
        return self.runs[run_id]

    def _model(self, name: str) -> Row:
        if name not in self.models:
            raise _error(f"Registered Model {name} not found", RESOURCE_DOES_NOT_EXIST)
        return self.models[name]

    def _version(self, name: str, version: str) -> Row:
        row = self.versions.get((name, int(version)))
        if row is None or row.deleted:
            raise _error(f"Model Version {name} {version} not found", RESOURCE_DOES_NOT_EXIST)
        return row


class _Client:
    """A client of a `FakeMlflow`; tells its hook of each call."""

    def __init__(self, store: FakeMlflow) -> None:
        for name in dir(FakeMlflow):
            if not name.startswith("_") and name != "manager":
                setattr(self, name, self._told(store, name))

    def _get_registry_client(self) -> _Client:
        return self

    @staticmethod
    def _told(store: FakeMlflow, name: str) -> Callable[..., Any]:
        call = getattr(store, name)

        def told(*arguments: Any, **named: Any) -> Any:
            store.hook(name, "before")
            result = call(*arguments, **named)
            store.hook(name, "after")
            return result

        return told


def _conditions(filter_string: str) -> dict[str, str]:
    return dict(_TAG.findall(filter_string))


def _error(text: str, code: int) -> MlflowException:
    return MlflowException(text, code)
