# SPDX-License-Identifier: Apache-2.0
"""`FederatedLearningTracker`: one MLflow run at a time, by explicit ids and one batch a call."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from fl_registry.errors import RegistryError
from fl_registry.mlflow.connection import Connection
from fl_registry.redaction import redact
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

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

_MAX_METRICS, _MAX_FIELDS = 1000, 100  # per batch
_MAX_DIGEST = 36  # characters
_MARK = "created_by_call"  # identifies a run that was created although the reply was lost


class FederatedLearningTracker:
    """Logs params, metrics and files of a run. Trackers never disturb one another.

    As a context manager it starts a run if none is active, and ends it: ``FAILED`` after an
    exception, else ``FINISHED``.

    Parameters
    ----------
    tracking_uri : str | None
        MLflow's address. Default: ``$FL_APP_MLFLOW_TRACKING_URI``, else ``mlflow.db`` in the app's
        home.
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

    def __init__(
        self,
        tracking_uri: str | None = None,
        experiment_name: str = "fl-app",
        *,
        home: str | Path | None = None,
        system_metrics: bool = False,
    ) -> None:
        self.connection = Connection(tracking_uri, home)
        self.experiment_name = experiment_name
        self.run: Run | None = None
        self._system_metrics = system_metrics
        self._monitor: SystemMetricsMonitor | None = None
        self._running = False
        self._metric_names, self._param_names = Names(), Names()

    @property
    def tracking_uri(self) -> str:
        """MLflow's address, absolute, with its password if it has one."""
        return self.connection.uri

    def start_run(
        self,
        run_name: str | None = None,
        *,
        tags: Mapping[str, str] | None = None,
        run_id: str | None = None,
    ) -> Run:
        """Start a run, or continue the one with `run_id`, and return it.

        A run without a name is called ``run-`` and eight characters. MLflow's own random names
        change the state of Python's global generator.

        Raises
        ------
        RegistryError
            A run is active, or there is no run `run_id`.
        StoreUnavailable
            MLflow does not answer.
        """
        if self._running:
            raise RegistryError("A run is already active; end it with end_run() first.")
        texts = logged_texts(tags or {}, MAX_TAG)
        client = self.connection.client
        if run_id is None:
            experiment = self.connection.experiment_id(self.experiment_name)
            with self.connection.errors("start a run"):
                run = self._create(experiment, run_name, texts)
        else:
            with self.connection.errors(f"continue run {run_id}"):
                self.connection.again(client.update_run, run_id, status="RUNNING", name=run_name)
                run = self.connection.again(client.get_run, run_id)
        self.run, self._running = run, True
        self._metric_names, self._param_names = Names(), Names()
        if run_id is not None:
            self.set_tags(texts)
        if self._system_metrics:
            self._start_monitor(str(run.info.run_id))
        return run

    def adopt_run(self, tags: Mapping[str, str]) -> Run | None:
        """Continue the newest run with all these tags that was started and never ended.

        None if there is none. The caller must know that the process that started it is gone: a run
        that another process still writes to is taken as well.
        """
        wanted = searched_tags(tags)
        if self._running:
            raise RegistryError("A run is already active; end it with end_run() first.")
        client = self.connection.client
        experiment = self.connection.experiment_id(self.experiment_name)
        token: str | None = None
        while True:
            with self.connection.errors("look for an unfinished run"):
                runs = client.search_runs(
                    [experiment],
                    "attributes.status = 'RUNNING'",
                    order_by=["attributes.start_time DESC"],
                    page_token=token,
                )
            for run in runs:
                if wanted.items() <= run.data.tags.items():
                    return self.start_run(run_id=run.info.run_id)
            token = runs.token
            if not token:
                return None

    def log_params(self, params: Mapping[str, object]) -> None:
        """Log params as text, cut to MLflow's limit; a param cannot be changed later."""
        from mlflow.entities import Param

        texts = logged_texts(self._param_names(params), MAX_PARAM)
        fields = [Param(name, text) for name, text in texts.items()]
        for start in range(0, len(fields), _MAX_FIELDS):
            self._log("log params", params=fields[start : start + _MAX_FIELDS])

    def log_metrics(
        self,
        metrics: Mapping[str, float],
        step: int | None = None,
        *,
        time: datetime | None = None,
    ) -> None:
        """Log metrics in one synchronous batch.

        Names that MLflow refuses are changed (``mAP50(B)`` becomes ``mAP50_B``), which is reported
        once a run; what is not a finite number is left out with a warning. Logging the same
        numbers again for the same ``time``, which is now by default, changes nothing.
        """
        from mlflow.entities import Metric

        moment = int((time or datetime.now(UTC)).timestamp() * 1000)
        numbers = self._metric_names(finite_metrics(metrics))
        fields = [Metric(k, v, moment, step or 0) for k, v in numbers.items()]
        for start in range(0, len(fields), _MAX_METRICS):
            self._log("log metrics", metrics=fields[start : start + _MAX_METRICS])

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags of the run."""
        from mlflow.entities import RunTag

        fields = [RunTag(name, text) for name, text in logged_texts(tags, MAX_TAG).items()]
        for start in range(0, len(fields), _MAX_FIELDS):
            self._log("set tags", tags=fields[start : start + _MAX_FIELDS])

    def log_artifact(self, path: str | Path, artifact_path: str | None = None) -> None:
        """Store a file or a folder with the run, below `artifact_path`."""
        file, run_id = checked_artifact(path), self._run_id()
        checked_folder(artifact_path)
        client = self.connection.client
        with self.connection.errors(f"store {file.name}"):
            client.log_artifact(run_id, str(file), artifact_path)

    def log_dataset(
        self, name: str, digest: str, source: str | Path = "", *, context: str = "holdout"
    ) -> None:
        """Record which data the run was scored on; the data stay where they are.

        Parameters
        ----------
        name : str
            Its name.
        digest : str
            Digest of its content. MLflow stores the first 36 characters, the tag
            ``dataset.<context>`` all of them.
        source : str | Path
            Where it is.
        context : str
            What it was used for.
        """
        from mlflow.entities import Dataset, DatasetInput, InputTag

        checked_dataset(name, digest, context)
        where = json.dumps({"uri": redact(str(source))})
        dataset = Dataset(name, digest[:_MAX_DIGEST], "local", where)
        used = DatasetInput(dataset, [InputTag("mlflow.data.context", context)])
        run_id = self._run_id()
        client = self.connection.client
        with self.connection.errors("note the data set"):
            client.log_inputs(run_id, [used])
        self.set_tags({f"dataset.{context}": digest})

    def end_run(self, status: str = "FINISHED") -> None:
        """End the run with status FINISHED, FAILED or KILLED; without a run, do nothing."""
        checked_status(status)
        if not self._running:
            return
        run_id = self._run_id()
        self._end_monitor()
        client = self.connection.client
        with self.connection.errors("end the run"):
            self.connection.again(client.set_terminated, run_id, status)
        self._running = False

    def leave_run(self) -> None:
        """Leave the run active, for another process to continue; makes no call."""
        self._end_monitor()
        self._running = False

    def __enter__(self) -> Self:
        if not self._running:
            self.start_run()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.end_run("FINISHED" if kind is None else "FAILED")

    def _create(self, experiment: str, name: str | None, tags: Mapping[str, str]) -> Run:
        """Create a run, one even where the reply to the call is lost."""
        client, mark = self.connection.client, uuid.uuid4().hex
        # Without a name MLflow draws one from Python's global generator.
        name = name or tags.get("mlflow.runName") or f"run-{mark[:8]}"

        def find() -> list[Run]:
            return list(client.search_runs([experiment], f"tags.{_MARK} = '{mark}'"))

        return self.connection.create_once(
            lambda: client.create_run(experiment, run_name=name, tags={**tags, _MARK: mark}),
            find,
            drop=lambda echo: self.connection.again(client.delete_run, echo.info.run_id),
            alone=lambda _: self.connection.sends_once,
        )

    def _start_monitor(self, run_id: str) -> None:
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        # With the run and the address given, it uses none of MLflow's globals for them.
        with self.connection.errors("log system metrics"):
            self._monitor = SystemMetricsMonitor(
                run_id, resume_logging=True, tracking_uri=self.tracking_uri
            )
            self._monitor.start()

    def _end_monitor(self) -> None:
        monitor, self._monitor = self._monitor, None
        if monitor is not None:
            monitor.finish()

    def _run_id(self) -> str:
        if self.run is None or not self._running:
            raise RegistryError("No run is active; call start_run() first.")
        return str(self.run.info.run_id)

    def _log(self, doing: str, **batch: Any) -> None:
        run_id = self._run_id()
        client = self.connection.client
        with self.connection.errors(doing):
            self.connection.again(client.log_batch, run_id, **batch)
