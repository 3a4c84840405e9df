# SPDX-License-Identifier: Apache-2.0
"""`FederatedLearningTracker`: one MLflow run at a time, by explicit ids and one batch a call."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fl_registry.mlflow.connection import Connection
from fl_registry.redaction import redact
from fl_registry.tracking import Kind, Tracker

if TYPE_CHECKING:
    from mlflow.entities import Run


_BATCHES = {"params": ("Param", 100), "metrics": ("Metric", 1000), "tags": ("RunTag", 100)}
_MAX_DIGEST = 36  # characters


class FederatedLearningTracker(Tracker):
    """A tracker in MLflow. Trackers never disturb one another.

    A run without a name is called ``run-`` and eight characters. MLflow's own random names change
    the state of Python's global generator.

    Parameters
    ----------
    tracking_uri : str | None
        MLflow's address. Default: ``$FL_APP_MLFLOW_TRACKING_URI``, else ``$MLFLOW_TRACKING_URI``,
        else ``mlflow.db`` in the app's home.
    experiment_name : str
        The experiment; created if needed.
    home : str | Path | None
        The app's home (see `app_home`).
    system_metrics : bool
        Log the use of processor, memory, disk and network as ``system/…`` while a run is active,
        every 10 seconds or MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL.

    Attributes
    ----------
    run : mlflow.entities.Run | None
        The run started last; it stays readable after its end.
    """

    run: Run | None

    def __init__(
        self,
        tracking_uri: str | None = None,
        experiment_name: str = "fl-app",
        *,
        home: str | Path | None = None,
        system_metrics: bool = False,
    ) -> None:
        super().__init__()
        self.connection = Connection(tracking_uri, home)
        self.experiment_name = experiment_name
        self._system_metrics = system_metrics
        self._monitor: Any = None

    @property
    def tracking_uri(self) -> str:
        """MLflow's address, absolute, with its password if it has one."""
        return self.connection.uri

    def leave_run(self) -> None:
        self._end_monitor()
        super().leave_run()

    def _create(self, name: str | None, tags: Mapping[str, str]) -> Run:
        experiment = self.connection.experiment_id(self.experiment_name)
        # Without a name MLflow draws one from Python's global generator.
        name = name or tags.get("mlflow.runName") or f"run-{uuid.uuid4().hex[:8]}"
        with self.connection.errors("start a run"):
            run = self.connection.create_run(experiment, name, tags)
            self.connection.here(str(run.info.artifact_uri))  # or raise: MLflow would write there
        self._start_monitor(run)
        return run

    def _resume(self, run_id: str, name: str | None) -> Run:
        connection = self.connection
        connection.settle_moved()
        with connection.errors(f"continue run {run_id}"):
            client = connection.client
            connection.again(client.update_run, run_id, status="RUNNING", name=name)
            run = connection.again(client.get_run, run_id)
        self._start_monitor(run)
        return run

    def _unfinished(self) -> Iterator[tuple[str, Mapping[str, str]]]:
        experiment = self.connection.experiment_id(self.experiment_name)
        with self.connection.errors("look for an unfinished run"):
            runs = self.connection.rows(
                self.connection.client.search_runs,
                [experiment],
                "attributes.status = 'RUNNING'",
                order_by=["attributes.start_time DESC"],
            )
            for run in runs:
                yield run.info.run_id, run.data.tags

    def _log_artifact(self, run: Run, file: Path, folder: str | None) -> None:
        with self.connection.errors(f"store {file.name}"):
            self.connection.client.log_artifact(run.info.run_id, str(file), folder)

    def _log_dataset(self, run: Run, name: str, digest: str, source: str, context: str) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        where = json.dumps({"uri": redact(source)})
        dataset = Dataset(name, digest[:_MAX_DIGEST], "local", where)
        used = DatasetInput(dataset, [InputTag("mlflow.data.context", context)])
        with self.connection.errors("note the data set"):
            self.connection.client.log_inputs(run.info.run_id, [used])

    def _end(self, run: Run, status: str) -> None:
        self._end_monitor()
        with self.connection.errors("end the run"):
            self.connection.again(self.connection.client.set_terminated, run.info.run_id, status)

    def _log(self, run: Run, kind: Kind, rows: Iterable[tuple[Any, ...]]) -> None:
        """Log params, metrics or tags, at most as many in one call as MLflow takes."""
        from mlflow import entities

        entity, most = _BATCHES[kind]
        fields = [getattr(entities, entity)(*row) for row in rows]
        with self.connection.errors(f"log {kind}"):
            for start in range(0, len(fields), most):
                part = {kind: fields[start : start + most]}
                self.connection.again(self.connection.client.log_batch, run.info.run_id, **part)

    def _start_monitor(self, run: Run) -> None:
        if not self._system_metrics:
            return
        from fl_registry.mlflow.internals import system_metrics_monitor

        with self.connection.errors("log system metrics"):
            self._monitor = system_metrics_monitor(run.info.run_id, self.tracking_uri)
            self._monitor.start()

    def _end_monitor(self) -> None:
        monitor, self._monitor = self._monitor, None
        if monitor is not None:
            monitor.finish()
