# SPDX-License-Identifier: AGPL-3.0-or-later
"""The ServerApp: builds the parts that the settings describe, and runs sessions with them."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from flwr.app import ArrayRecord, ConfigRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import Result

from fl_app.api import ApiServer, create_trigger_api, serve_api
from fl_app.api.guard import LOOPBACK, read_token
from fl_app.api.people import People
from fl_app.backlog import backlog
from fl_app.client.data import run_data
from fl_app.config import ServerConfig, not_shaping, params
from fl_app.events import Hook
from fl_app.flower_stop import when_stopped
from fl_app.hooks import PrometheusMetrics, Webhook, log_event
from fl_app.hooks.queue import HOOK_SECONDS, Hooks
from fl_app.hooks.webhook import read_secret
from fl_app.progress import read_progress
from fl_app.retraining import (
    MonitorStore,
    Probation,
    RetrainingManager,
    RetrainRequest,
    train_and_retrain,
)
from fl_app.retraining.drift.plot import drift_artifacts
from fl_app.retraining.memory.store import default_url
from fl_app.settings import Value
from fl_app.starting_weights import read_starting_weights
from fl_app.strategy import (
    EmaFedAvg,
    LifecycleStrategy,
    ModelCard,
    Origin,
    Resume,
    RoundSettings,
    SessionSettings,
    StreamingFedAvg,
    default_policy,
    plot_metrics,
)
from fl_app.strategy.checkpoints.round_store import load_array_record
from fl_app.strategy.finish.evaluation import RememberedScores
from fl_app.strategy.session.start import is_cut_short
from fl_app.yolo_versions import write_export
from fl_models.classes import class_names, name_differences
from fl_models.pictures import DataSpec
from fl_registry import FederatedLearningTracker, ModelManager, Stage, app_home
from fl_registry.files.weights import read_description
from fl_registry.imports import uncollected

logger = logging.getLogger("flwr.fl_app")

START_STAGES: Mapping[str, Sequence[Stage | None]] = {
    "production": (Stage.PRODUCTION, Stage.STAGING, None),
    "latest": (None,),
    "scratch": (),
}
"""Where a session looks for the version that it starts from, by ``restart-from``."""
FLUSH_SECONDS = 15.0
"""How long the end of a run waits for hooks, unless it was interrupted."""

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Check everything that can be wrong, then train, and again for each request to retrain."""
    sessions = Sessions(grid, context.run_config)
    config, monitor, hooks = sessions.config, sessions.monitor, sessions.hooks
    hooks.look()  # what the journal has by now is history
    api = start_api(sessions)
    monitor.start_monitoring()
    try:
        with when_stopped(sessions.leave), hooks.watching():
            train_and_retrain(
                sessions.run,
                monitor,
                max_retrains=config.max_retrains,
                continuous=config.continuous,
                completed=lambda request: is_served(
                    config.experiment_name, sessions.store, request
                ),
                unfinished=sessions.is_cut_short,
            )
    finally:
        if api is not None:
            api.close()
        monitor.stop_monitoring()
        interrupted = not isinstance(sys.exception(), Exception | None)
        hooks.flush(HOOK_SECONDS if interrupted else FLUSH_SECONDS)


class Sessions:
    """Runs the sessions of a run, one after another, with the parts that they share.

    Parameters
    ----------
    grid : Grid
        Flower's connection to the nodes.
    run_config : Mapping[str, Value]
        The settings, which describe the parts.

    Raises
    ------
    ValueError
        If a setting, the data set, the webhook or the token cannot be used.
    StoreUnavailable
        If MLflow does not answer.
    """

    @uncollected()  # imports MLflow, torch and Ultralytics
    def __init__(self, grid: Grid, run_config: Mapping[str, Value]) -> None:
        self.config = config = ServerConfig.from_run_config(run_config)
        self.home = home = app_home(config.home)
        self._grid = grid
        mlflow, name = config.mlflow_tracking_uri, config.registered_model_name
        self.store = ModelManager(mlflow, name, home=home)
        self.metrics = PrometheusMetrics()
        self.hooks = Hooks([self.metrics, *event_hooks(config)], self.store)
        logger.info("%s", self.store.backend.connection.place)
        self.store.ping()  # before the data set, whose pictures may take long to read
        data = run_data(config, home, config.num_classes)
        self._tracker = FederatedLearningTracker(mlflow, config.experiment_name, home=home)
        self.monitor = retraining_manager(config, home, self.hooks)
        rules = replace(
            config.probation,
            metric=config.metric,
            mode=config.metric_mode,
            confidence=config.policy.confidence,
        )
        from fl_registry.mlflow import internals  # imports MLflow, which is open by now

        for reason in internals.lost():
            self.monitor.health.fails("MLflow's time-outs", reason)
        self.probation = Probation(self.store, self.monitor, rules)
        self.token = api_token(config)
        # torch and Ultralytics take seconds to import, so all that may be wrong is checked before.
        from fl_app.yolo import YoloOnServer, train_order, train_params

        self._params = {**params(run_config), **train_params(config)}
        self._order = train_order(config)
        self._weights = (
            None if config.weights is None else read_starting_weights(config.weights, self.store)
        )
        data = in_known_order(data, config, self.store)
        self._yolo = YoloOnServer(config, data, self._weights)
        self._scores = RememberedScores(self._yolo.evaluate)
        owner = f"flower run {grid.run.run_id}"  # names this run to other servers
        self._writer = self.store.writer(owner, when_busy=config.when_busy)
        self._strategy: LifecycleStrategy | None = None
        self._last_start: tuple[str, ArrayRecord] | None = None

    def run(self, number: int, request: RetrainRequest | None) -> Result:
        """Run a session: its number, from 1, and the request that it serves, if any."""
        with self._writer:  # no other server moves the version that the session starts from
            with self.store.one_reading():
                parent, arrays = self._starting_point(number)
            served = (request.reason, request.id) if request is not None else ()
            self._strategy = self._lifecycle(Origin(number, parent, *served))
            return self._strategy.start(
                self._grid,
                arrays,
                num_rounds=self.config.num_server_rounds,
                timeout=self.config.round_timeout,
                train_config=ConfigRecord({**self._yolo.order(), **self._order}),
                evaluate_config=self._yolo.order(),
                evaluate_fn=self._scores,
            )

    def is_cut_short(self) -> bool:
        """Whether a session of an earlier run that served no request can be resumed."""
        resumes = self.config.resume != "fresh"
        return resumes and is_cut_short(self.home, self.config.registered_model_name)

    def leave(self) -> None:
        """Leave the session at once: Flower has stopped the run."""
        logger.warning("Flower has stopped this run; the next run continues what is unfinished")
        self.monitor.leave()
        if self._strategy is not None:
            self._strategy.leave()

    def _starting_point(self, number: int) -> tuple[str | None, ArrayRecord]:
        """Return the version that a session starts from and its arrays, or first weights.

        Those of the last version are cached: mostly the next session starts from it as well.
        """
        if number == 1 and self._weights:
            return self._weights.version, self._yolo.first_arrays()
        for stage in START_STAGES[self.config.restart_from]:
            version = self.store.get_latest_version(stage)
            if version is not None:
                if self._last_start is None or self._last_start[0] != version:
                    path = self.store.weights_path(version)
                    arrays = self._yolo.start_from(
                        version, load_array_record(path), read_description(path)
                    )
                    self._last_start = version, arrays
                logger.info("starting from version %s (%s)", version, stage or "latest")
                return version, ArrayRecord(dict(self._last_start[1]))
        logger.info("starting from first weights (seed %d)", self.config.seed)
        return None, self._yolo.first_arrays()

    def _lifecycle(self, origin: Origin) -> LifecycleStrategy:
        """Return the strategy of one session."""
        config, yolo = self.config, self._yolo
        kind = partial(EmaFedAvg, config.ema) if config.ema else StreamingFedAvg
        inner = kind(
            fraction_train=config.fraction_train,
            fraction_evaluate=config.fraction_evaluate,
            min_train_nodes=config.min_nodes,
            min_evaluate_nodes=config.min_nodes if config.fraction_evaluate else 0,
            min_available_nodes=config.min_nodes,
        )
        return LifecycleStrategy(
            inner,
            metric=config.metric,
            mode=config.metric_mode,
            policy=default_policy(config.metric, config.metric_mode, **vars(config.policy)),
            approval=config.approval,
            shadow=config.shadow,
            store=self.store,
            tracker=self._tracker,
            monitor=self.monitor,
            probation=self.probation,
            hooks=self.hooks,
            artifacts=[plot_metrics, *yolo.artifacts, drift_artifacts(self.monitor)],
            model=ModelCard(yolo.description, yolo.serving, yolo.holdout),
            home=self.home,
            # Only the first session can find one that an earlier run has left.
            resume=Resume(config.resume if origin.session == 1 else "auto", not_shaping()),
            rounds=RoundSettings(
                screening=config.screening,
                early_stopping=config.early_stopping,
                node_wait_timeout=config.node_wait_timeout,
                max_waiting_rounds=config.max_waiting_rounds,
                pack_arrays=config.pack_arrays,
            ),
            session=SessionSettings(
                self._params,
                origin,
                self._writer,
                self.monitor.health,
                retention=config.retention,
            ),
        )


def in_known_order(data: DataSpec, config: ServerConfig, store: ModelManager) -> DataSpec:
    """Return a data set with the class order of the version that its models are compared with.

    That is what sessions start from, or the version in Production. A data set with other classes
    than these is returned as it is.
    """
    stages = START_STAGES[config.restart_from] or (Stage.PRODUCTION,)
    version = next(filter(None, map(store.get_latest_version, stages)), None)
    names = () if version is None else class_names(read_description(store.weights_path(version)))
    if not names or names == data.names or name_differences(data.names, names):
        return data
    logger.info("classes are in the order of version %s: %s", version, ", ".join(names))
    return data.for_model(names)


def event_hooks(config: ServerConfig) -> list[Hook]:
    """The hooks that the settings turn on."""
    hooks: list[Hook] = [log_event] if config.log_events else []
    webhook = config.webhook
    if webhook.url is not None:
        secret = read_secret(webhook.secret_file)
        model = config.registered_model_name
        hook = Webhook(webhook.url, secret, hosts=webhook.hosts, model=model)
        hook.check()
        hooks.append(hook)
    return hooks


def retraining_manager(config: ServerConfig, home: Path, hooks: Hooks) -> RetrainingManager:
    """The monitor with its memory on disk and its schedules."""
    url = config.monitor_database_url or default_url(home)
    monitor = RetrainingManager(
        config.accuracy_threshold,
        min_rounds_between_retrain=config.limits.min_rounds_between_retrain,
        min_hours_between_retrain=config.limits.min_hours_between_retrain,
        budget=config.limits.budget,
        mode=config.metric_mode,
        policy=config.degradation_policy,
        on_request=config.limits.mode,
        drift=replace(config.drift, max_node_share=config.screening.max_node_share),
        store=MonitorStore(url, config.registered_model_name),
        hooks=hooks,
    )
    if config.retrain_cron is not None:
        monitor.schedule_periodic_retrain(cron=config.retrain_cron)
    if config.retrain_interval_days is not None:
        monitor.schedule_periodic_retrain(config.retrain_interval_days)
    return monitor


def is_served(experiment: str, store: ModelManager, request: RetrainRequest) -> bool:
    """Whether a session for this request has finished, by its MLflow run."""
    known = store.client.get_experiment_by_name(experiment)
    if known is None:
        return False
    finished = f"tags.request_id = '{request.id}' AND attributes.status = 'FINISHED'"
    return bool(store.client.search_runs([known.experiment_id], finished, max_results=1))


def api_token(config: ServerConfig) -> str | None:
    """Return the API's token, if the run has an API and the API has a token.

    Raises
    ------
    ValueError
        If other machines could reach the API without a token.
    """
    if not has_api(config):
        return None
    people = People(app_home(config.home))
    return read_token(config.api.token_file, host=config.api.host, people=people)


def has_api(config: ServerConfig) -> bool:
    """Whether the run has an API: it waits for requests, and a port is set."""
    return config.continuous and config.api.port > 0


def start_api(sessions: Sessions) -> ApiServer | None:
    """Start the API, if the run has one; training continues if its port cannot be opened."""
    config = sessions.config
    if not has_api(config):
        return None
    app = create_trigger_api(
        sessions.monitor,
        store=sessions.store,
        token=sessions.token,
        allowed_hosts={*LOOPBACK, *config.api.allowed_hosts},
        trusted_proxies=config.api.trusted_proxies,
        collectors=[sessions.metrics],
        probation=sessions.probation,
        waiting=lambda: backlog(sessions.home, config.registered_model_name),
        checkpoint=write_export,
        people=People(sessions.home),
        live=lambda: read_progress(sessions.home, config.registered_model_name),
    )
    return serve_api(app, host=config.api.host, port=config.api.port)
