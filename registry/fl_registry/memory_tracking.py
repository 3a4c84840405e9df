# SPDX-License-Identifier: Apache-2.0
"""A tracker without MLflow, whose runs are in this process. For tests."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Self

import fl_registry.tracking_checks as checks
from fl_registry.errors import RegistryError


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
        self._metric_names, self._param_names = checks.Names(), checks.Names()

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
            matching = [r for r in self.runs if r.info.run_id == run_id]
            if not matching:
                raise RegistryError(f"There is no run {run_id} to continue.")
            run = matching[0]
        run.status = "RUNNING"
        run.tags.update(checks.logged_texts(tags or {}, checks.MAX_TAG))
        self.run = run
        self._metric_names, self._param_names = checks.Names(), checks.Names()
        return run

    def adopt_run(self, tags: Mapping[str, str]) -> MemoryRun | None:
        wanted = checks.searched_tags(tags)
        if self.run is not None and self.run.status == "RUNNING":
            raise RegistryError("A run is already active; end it with end_run() first.")
        for run in reversed(self.runs):
            if run.status == "RUNNING" and wanted.items() <= run.tags.items():
                return self.start_run(run_id=run.info.run_id)
        return None

    def log_params(self, params: Mapping[str, object]) -> None:
        self._active().params.update(
            checks.logged_texts(self._param_names(params), checks.MAX_PARAM)
        )

    def log_metrics(
        self,
        metrics: Mapping[str, float],
        step: int | None = None,
        *,
        time: datetime | None = None,
    ) -> None:
        run, point = self._active(), step or 0
        for name, value in self._metric_names(checks.finite_metrics(metrics)).items():
            key = (name, point, value, time or datetime.now(UTC))
            if key not in run.logged:
                run.logged.add(key)
                run.metrics.setdefault(name, []).append((point, value))

    def log_artifact(self, path: str | Path, artifact_path: str | None = None) -> None:
        checked = checks.checked_artifact(path)
        checks.checked_folder(artifact_path)
        self._active().artifacts.append("/".join(filter(None, (artifact_path, checked.name))))

    def log_dataset(
        self, name: str, digest: str, source: str | Path = "", *, context: str = "holdout"
    ) -> None:
        checks.checked_dataset(name, digest, context)
        run = self._active()
        run.datasets[context] = (name, digest)
        run.tags[f"dataset.{context}"] = digest

    def set_tags(self, tags: Mapping[str, str]) -> None:
        self._active().tags.update(checks.logged_texts(tags, checks.MAX_TAG))

    def end_run(self, status: str = "FINISHED") -> None:
        checks.checked_status(status)
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
