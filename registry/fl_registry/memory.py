# SPDX-License-Identifier: Apache-2.0
"""A model store and a tracker without MLflow: same contract, kept in this process. For tests."""

from __future__ import annotations

import shutil
import tempfile
import threading
import uuid
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Self

from fl_registry.errors import RegistryError, StoreUnavailable, UnknownVersion, disk_errors
from fl_registry.files.artifacts import prepared
from fl_registry.files.version_files import FolderFiles
from fl_registry.journal.entries import Page
from fl_registry.journal.lease import Beat
from fl_registry.records import ModelVersion
from fl_registry.serving.mlmodel import Serving, write_serving
from fl_registry.stages import State
from fl_registry.store import JournalledStore
from fl_registry.tracking_checks import (
    MAX_PARAM,
    MAX_TAG,
    Names,
    checked_artifact,
    checked_dataset,
    checked_folder,
    checked_status,
    finite_metrics,
    logged_texts,
    searched_tags,
)
from fl_registry.version_tags import checked_description, checked_scores, read_version, version_tags


@dataclass(frozen=True)
class _Saved:
    run_id: str
    created: datetime
    tags: dict[str, str]
    description: str


class InMemoryModelStore(JournalledStore):
    """A model store in memory; only the weights files are on disk.

    Parameters
    ----------
    folder : str | Path | None
        Where to keep copies of the weights. Default: a temporary folder that goes with the store.

    Attributes
    ----------
    aliases : dict[str, str]
        What MLflow would show as aliases; whoever changes it moves them by hand.
    runs : dict[str, MemoryRun]
        What `log_production` logged, by the id of the run.
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        if folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="fl-app-"))
            weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        else:
            self._folder = Path(folder).resolve()
        self._saved: dict[str, _Saved] = {}
        self._count = 0
        super().__init__(FolderFiles(self._folder, lambda version: self._saved.pop(version, None)))
        self._journal: list[str] = []
        self._beat = Beat()
        self.aliases: dict[str, str] = {}
        self.runs: dict[str, MemoryRun] = {}
        self._lock = threading.RLock()

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
        with prepared(model_path, self._folder, per_example=scores) as artifact, self._lock:
            mine = version_tags(artifact, run_id=run_id, metrics=metrics, tags=tags)
            for version, saved in self._saved.items():
                if saved.tags["save_key"] == mine["save_key"]:
                    return self._saved_again(version, mine, description=text, serving=serving)
            version = str(self._count + 1)
            with disk_errors(f"store the files of version {version}"):
                if serving is not None:
                    write_serving(serving, artifact.folder)
                self._copy(artifact.folder, self._folder / version)
            self._count += 1
            self._saved[version] = _Saved(run_id or "", datetime.now(UTC), mine, text)
            return version

    @staticmethod
    def _copy(source: Path, target: Path) -> None:
        try:
            shutil.copytree(source, target, dirs_exist_ok=True)
        except BaseException:
            shutil.rmtree(target, ignore_errors=True)
            raise

    def _tag(self, version: str, tags: Mapping[str, str]) -> None:
        self._stored(version).tags.update(tags)

    def _log(
        self,
        run_id: str,
        metrics: Mapping[str, float],
        texts: Mapping[str, str],
        *,
        step: int,
        time: datetime,
    ) -> None:
        with self._lock:
            run = self.runs.setdefault(run_id, MemoryRun(MemoryRunInfo(run_id, "")))
            for name, value in metrics.items():
                points = run.metrics.setdefault(name, [])
                points += [] if (step, value) in points else [(step, value)]
            run.artifacts += [path for path in texts if path not in run.artifacts]

    def _run_params(self, run_id: str) -> Mapping[str, str] | None:
        return None

    def ping(self) -> None:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreUnavailable(
                f"The folder {self._folder} cannot be created; choose another."
            ) from error

    def last_beat(self) -> Beat:
        return self._beat

    def give_beat(self, beat: Beat) -> None:
        self._beat = beat

    def lease_file(self) -> Path | None:
        return None

    def _page(self, *, fresh: bool) -> Page:
        return Page(tuple(self._journal))

    def _pages(self) -> Sequence[Page]:
        return [self._page(fresh=True)]

    def _claim(self, number: int, text: str) -> bool:
        with self._lock:
            if len(self._journal) != number - 1:
                return False
            self._journal.append(text)
            return True

    def _aliases(self) -> Mapping[str, str]:
        return dict(self.aliases)

    def _mark(self, version: str) -> str:
        return self._saved[version].tags["stage"] if version in self._saved else ""

    def _apply(
        self, state: State, versions: Sequence[str] | None, *, before: State | None = None
    ) -> None:
        if state.untouched:
            return
        with self._lock:
            for alias, version in state.aliases.items():
                if version is not None:
                    self.aliases[alias] = version
            if state.staging is None:
                self.aliases.pop("staging", None)
            for version in self._saved if versions is None else versions:
                if version in self._saved:
                    self._saved[version].tags["stage"] = str(state.stage_of(version))

    def _all(self, state: State, *, page: int) -> Iterator[ModelVersion]:
        for version in reversed(list(self._saved)):
            yield self._one(version, state)

    def _one(self, version: str, state: State) -> ModelVersion:
        saved = self._stored(version)
        return read_version(
            version,
            saved.tags,
            run_id=saved.run_id,
            created=saved.created,
            state=state,
            description=saved.description,
        )

    def _stored(self, version: str) -> _Saved:
        if version not in self._saved:
            raise UnknownVersion(f"There is no version {version} in the in-memory registry.")
        return self._saved[version]


@dataclass(frozen=True)
class MemoryRunInfo:
    """Identity of a run."""

    run_id: str
    run_name: str


@dataclass
class MemoryRun:
    """What a run has logged: params, metrics as ``{name: [(step, value), ...]}``, and so on.

    Data sets are ``{context: (name, digest)}``.
    """

    info: MemoryRunInfo
    params: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    artifacts: list[str] = field(default_factory=list)
    datasets: dict[str, tuple[str, str]] = field(default_factory=dict)
    status: str = "RUNNING"
    logged: set[tuple[str, int, float, datetime]] = field(default_factory=set, repr=False)


class InMemoryTracker:
    """A tracker that keeps its runs in ``runs``, oldest first."""

    def __init__(self) -> None:
        self.runs: list[MemoryRun] = []
        self.run: MemoryRun | None = None
        self._metric_names, self._param_names = Names(), Names()

    def start_run(
        self,
        run_name: str | None = None,
        *,
        tags: Mapping[str, str] | None = None,
        run_id: str | None = None,
    ) -> MemoryRun:
        if self.run is not None and self.run.status == "RUNNING":
            raise RegistryError("A run is already active; end it with end_run() first.")
        if run_id is None:
            run = MemoryRun(MemoryRunInfo(uuid.uuid4().hex, run_name or ""))
            self.runs.append(run)
        else:
            found = [r for r in self.runs if r.info.run_id == run_id]
            if not found:
                raise RegistryError(f"There is no run {run_id} to continue.")
            run = found[0]
        run.status = "RUNNING"
        run.tags.update(logged_texts(tags or {}, MAX_TAG))
        self.run = run
        self._metric_names, self._param_names = Names(), Names()
        return run

    def adopt_run(self, tags: Mapping[str, str]) -> MemoryRun | None:
        wanted = searched_tags(tags)
        if self.run is not None and self.run.status == "RUNNING":
            raise RegistryError("A run is already active; end it with end_run() first.")
        for run in reversed(self.runs):
            if run.status == "RUNNING" and wanted.items() <= run.tags.items():
                return self.start_run(run_id=run.info.run_id)
        return None

    def log_params(self, params: Mapping[str, object]) -> None:
        self._active().params.update(logged_texts(self._param_names(params), MAX_PARAM))

    def log_metrics(
        self,
        metrics: Mapping[str, float],
        step: int | None = None,
        *,
        time: datetime | None = None,
    ) -> None:
        run, point = self._active(), step or 0
        for name, value in self._metric_names(finite_metrics(metrics)).items():
            key = (name, point, value, time or datetime.now(UTC))
            if key not in run.logged:
                run.logged.add(key)
                run.metrics.setdefault(name, []).append((point, value))

    def log_artifact(self, path: str | Path, artifact_path: str | None = None) -> None:
        checked = checked_artifact(path)
        checked_folder(artifact_path)
        self._active().artifacts.append("/".join(filter(None, (artifact_path, checked.name))))

    def log_dataset(
        self, name: str, digest: str, source: str | Path = "", *, context: str = "holdout"
    ) -> None:
        checked_dataset(name, digest, context)
        run = self._active()
        run.datasets[context] = (name, digest)
        run.tags[f"dataset.{context}"] = digest

    def set_tags(self, tags: Mapping[str, str]) -> None:
        self._active().tags.update(logged_texts(tags, MAX_TAG))

    def end_run(self, status: str = "FINISHED") -> None:
        checked_status(status)
        if self.run is not None and self.run.status == "RUNNING":
            self.run.status = status

    def leave_run(self) -> None:
        self.run = None

    def __enter__(self) -> Self:
        if self.run is None or self.run.status != "RUNNING":
            self.start_run()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.end_run("FINISHED" if kind is None else "FAILED")

    def _active(self) -> MemoryRun:
        if self.run is None or self.run.status != "RUNNING":
            raise RegistryError("No run is active; call start_run() first.")
        return self.run
