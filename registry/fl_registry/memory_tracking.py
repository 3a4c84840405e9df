# SPDX-License-Identifier: Apache-2.0
"""A tracker without MLflow, whose runs are in this process. For tests."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from fl_registry.errors import RegistryError
from fl_registry.tracking import Tracker


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


class InMemoryTracker(Tracker):
    """A tracker that keeps its runs in ``runs``, oldest first."""

    run: MemoryRun | None

    def __init__(self) -> None:
        super().__init__()
        self.runs: list[MemoryRun] = []

    def _create(self, name: str | None, tags: Mapping[str, str]) -> MemoryRun:
        self.runs.append(MemoryRun(MemoryRunInfo(uuid.uuid4().hex, name or ""), tags=dict(tags)))
        return self.runs[-1]

    def _resume(self, run_id: str, name: str | None) -> MemoryRun:
        for run in self.runs:
            if run.info.run_id == run_id:
                run.status = "RUNNING"
                return run
        raise RegistryError(f"There is no run {run_id} to continue.")

    def _unfinished(self) -> list[tuple[str, Mapping[str, str]]]:
        return [(r.info.run_id, r.tags) for r in reversed(self.runs) if r.status == "RUNNING"]

    def _log_params(self, run: MemoryRun, params: Mapping[str, str]) -> None:
        run.params.update(params)

    def _log_metrics(
        self, run: MemoryRun, metrics: Mapping[str, float], step: int, time: datetime
    ) -> None:
        for name, value in metrics.items():
            key = (name, step, value, time)
            if key not in run.logged:
                run.logged.add(key)
                run.metrics.setdefault(name, []).append((step, value))

    def _log_tags(self, run: MemoryRun, tags: Mapping[str, str]) -> None:
        run.tags.update(tags)

    def _log_artifact(self, run: MemoryRun, file: Path, folder: str | None) -> None:
        run.artifacts.append("/".join(filter(None, (folder, file.name))))

    def _log_dataset(
        self, run: MemoryRun, name: str, digest: str, source: str, context: str
    ) -> None:
        run.datasets[context] = (name, digest)

    def _end(self, run: MemoryRun, status: str) -> None:
        run.status = status
