# SPDX-License-Identifier: AGPL-3.0-or-later
"""The ServerApp: builds the parts that the settings describe, and runs sessions with them."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import Result

from fl_app.api import ApiServer, create_trigger_api, serve_api
from fl_app.api.guard import LOOPBACK, read_token, require_token
from fl_app.client.data import DataSpec, generated_data, load_data_spec
from fl_app.config import ServerConfig, absolute_data, not_shaping, params
from fl_app.events import Hook
from fl_app.flower_stop import when_stopped
from fl_app.hooks import PrometheusMetrics, Webhook, log_event
from fl_app.hooks.queue import HOOK_SECONDS, Hooks
from fl_app.hooks.webhook import read_secret
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
from fl_app.strategy import (
    LifecycleStrategy,
    ModelCard,
    Origin,
    Resume,
    RoundSettings,
    ScheduledFedAvg,
    SessionSettings,
    default_policy,
    plot_metrics,
)
from fl_app.strategy.checkpoints.folder import backlog
from fl_app.strategy.checkpoints.round_store import load_array_record
from fl_app.strategy.finish.evaluation import RememberedScores
from fl_app.strategy.session.start import is_cut_short
from fl_registry import FederatedLearningTracker, ModelManager, Stage, Writer, app_home

if TYPE_CHECKING:
    from prometheus_client.registry import Collector

    from fl_app.yolo import YoloOnServer

logger = logging.getLogger("flwr.fl_app")

FLUSH_SECONDS = 15.0
"""How long the end of a run waits for hooks, unless it was interrupted."""

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Check everything that can be wrong, then train, and again for each request to retrain."""
    parts = assemble(context.run_config, f"flower run {grid.run.run_id}")
    config, monitor, hooks = parts.config, parts.monitor, parts.hooks
    sessions = Sessions(parts, grid)
    hooks.look()  # what the journal has by now is history
    api = start_api(
        config,
        monitor,
        parts.store,
        parts.token,
        home=parts.home,
        collectors=[parts.metrics],
        probation=parts.probation,
    )
    monitor.start_monitoring()
    try:
        with when_stopped(sessions.leave), hooks.watching():
            train_and_retrain(
                sessions.run,
                monitor,
                max_retrains=config.max_retrains,
                continuous=config.continuous,
                completed=lambda request: is_served(config.experiment_name, parts.store, request),
                unfinished=sessions.is_cut_short,
            )
    finally:
        if api is not None:
            api.close()
        monitor.stop_monitoring()
        interrupted = not isinstance(sys.exception(), Exception | None)
        hooks.flush(HOOK_SECONDS if interrupted else FLUSH_SECONDS)


@dataclass(frozen=True)
class Parts:
    """What the sessions of a run share.

    Attributes
    ----------
    config : ServerConfig
        The settings.
    params : Mapping[str, Value]
        The settings that a session logs.
    home : Path
        Folder for everything that the app stores.
    store, tracker : ModelManager, FederatedLearningTracker
        MLflow.
    monitor, probation : RetrainingManager, Probation
        What requests retraining, and what rolls a version back.
    hooks, metrics : Hooks, PrometheusMetrics
        The hooks, and the one of them that the API shows.
    token : str | None
        The API's token.
    yolo : YoloOnServer
        The model and its holdout.
    scores : RememberedScores
        Scores of models on the holdout.
    writer : Writer
        The right to write to the model.
    """

    config: ServerConfig
    params: Mapping[str, Value]
    home: Path
    store: ModelManager
    tracker: FederatedLearningTracker
    monitor: RetrainingManager
    probation: Probation
    hooks: Hooks
    metrics: PrometheusMetrics
    token: str | None
    yolo: YoloOnServer
    scores: RememberedScores
    writer: Writer


def assemble(run_config: Mapping[str, Value], owner: str) -> Parts:
    """Build what the settings describe; ``owner`` names this run to other servers.

    Raises
    ------
    ValueError
        If a setting, the data set, the webhook or the token cannot be used.
    StoreUnavailable
        If MLflow does not answer.
    """
    config = ServerConfig.from_run_config(run_config)
    home = app_home(config.home)
    store = ModelManager(config.mlflow_tracking_uri, config.registered_model_name, home=home)
    metrics = PrometheusMetrics()
    hooks = Hooks([metrics, *event_hooks(config)], store)
    store.ping()  # before the data set, whose pictures may take long to read
    data = dataset(config, home)
    tracker = FederatedLearningTracker(
        config.mlflow_tracking_uri, config.experiment_name, home=home
    )
    monitor = retraining_manager(config, home, hooks)
    rules = replace(
        config.probation,
        metric=config.metric,
        mode=config.metric_mode,
        confidence=config.policy.confidence,
    )
    token = api_token(config)
    # torch and Ultralytics take seconds to import, so all that may be wrong is checked before.
    from fl_app.yolo import YoloOnServer

    yolo = YoloOnServer(config, data)
    return Parts(
        config=config,
        params=params(run_config),
        home=home,
        store=store,
        tracker=tracker,
        monitor=monitor,
        probation=Probation(store, monitor, rules),
        hooks=hooks,
        metrics=metrics,
        token=token,
        yolo=yolo,
        scores=RememberedScores(yolo.evaluate),
        writer=store.writer(owner, when_busy=config.when_busy),
    )


class Sessions:
    """Runs the sessions of a run, one after another.

    Parameters
    ----------
    parts : Parts
        What they share.
    grid : Grid
        Flower's connection to the nodes.
    """

    def __init__(self, parts: Parts, grid: Grid) -> None:
        self._parts = parts
        self._grid = grid
        self._strategy: LifecycleStrategy | None = None
        self._last_start: tuple[str, ArrayRecord] | None = None

    def run(self, number: int, request: RetrainRequest | None) -> Result:
        """Run a session: its number, from 1, and the request that it serves, if any."""
        config = self._parts.config
        with self._parts.writer:  # no other server moves the version that the session starts from
            with self._parts.store.one_reading():
                parent, arrays = self._starting_point()
            origin = Origin(
                session=number,
                parent_version=parent,
                trigger=request.reason if request is not None else "",
                request_id=request.id if request is not None else "",
            )
            self._strategy = lifecycle_strategy(self._parts, origin)
            return self._strategy.start(
                self._grid,
                arrays,
                num_rounds=config.num_server_rounds,
                timeout=config.round_timeout,
                evaluate_fn=self._parts.scores,
            )

    def is_cut_short(self) -> bool:
        """Whether a session of an earlier run that served no request can be resumed."""
        config = self._parts.config
        return config.resume != "fresh" and is_cut_short(
            self._parts.home, config.registered_model_name
        )

    def leave(self) -> None:
        """Leave the session at once: Flower has stopped the run."""
        logger.warning("Flower has stopped this run; the next run continues what is unfinished")
        self._parts.monitor.leave()
        if self._strategy is not None:
            self._strategy.leave()

    def _starting_point(self) -> tuple[str | None, ArrayRecord]:
        """Return the version that a session starts from and its arrays, or first weights.

        Those of the last version are cached: mostly the next session starts from it as well.
        """
        parts = self._parts
        stages: dict[str, list[Stage | None]] = {
            "production": [Stage.PRODUCTION, Stage.STAGING, None],
            "latest": [None],
            "scratch": [],
        }
        for stage in stages[parts.config.restart_from]:
            version = parts.store.get_latest_version(stage)
            if version is not None:
                if self._last_start is None or self._last_start[0] != version:
                    arrays = load_array_record(parts.store.weights_path(version))
                    parts.yolo.require_same_model(version, arrays)
                    self._last_start = version, arrays
                logger.info("starting from version %s (%s)", version, stage or "latest")
                return version, ArrayRecord(dict(self._last_start[1]))
        logger.info("starting from first weights (seed %d)", parts.config.seed)
        return None, parts.yolo.first_arrays()


def lifecycle_strategy(parts: Parts, origin: Origin) -> LifecycleStrategy:
    """The strategy of one session."""
    config, yolo = parts.config, parts.yolo
    return LifecycleStrategy(
        inner_strategy(config),
        metric=config.metric,
        mode=config.metric_mode,
        policy=default_policy(config.metric, config.metric_mode, **vars(config.policy)),
        approval=config.approval,
        shadow=config.shadow,
        store=parts.store,
        tracker=parts.tracker,
        monitor=parts.monitor,
        probation=parts.probation,
        hooks=parts.hooks,
        artifacts=[plot_metrics, yolo.picture, drift_artifacts(parts.monitor)],
        model=ModelCard(yolo.description, yolo.serving, yolo.holdout),
        home=parts.home,
        # Only the first session can find one that an earlier run has left.
        resume=Resume(config.resume if origin.session == 1 else "auto", not_shaping()),
        rounds=RoundSettings(
            screening=config.screening,
            early_stopping=config.early_stopping,
            node_wait_timeout=config.node_wait_timeout,
            pack_arrays=config.pack_arrays,
        ),
        session=SessionSettings(parts.params, origin, parts.writer, parts.monitor.health),
    )


def inner_strategy(config: ServerConfig) -> ScheduledFedAvg:
    """FedAvg as the settings describe it."""
    return ScheduledFedAvg(
        config.learning_rate_of,
        fraction_train=config.fraction_train,
        fraction_evaluate=config.fraction_evaluate,
        min_train_nodes=config.min_nodes,
        min_evaluate_nodes=config.min_nodes if config.fraction_evaluate else 0,
        min_available_nodes=config.min_nodes,
    )


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
        drift=config.drift,
        store=MonitorStore(url, config.registered_model_name),
        hooks=hooks,
    )
    if config.retrain_cron is not None:
        monitor.schedule_periodic_retrain(cron=config.retrain_cron)
    if config.retrain_interval_days is not None:
        monitor.schedule_periodic_retrain(config.retrain_interval_days)
    return monitor


def dataset(config: ServerConfig, home: Path) -> DataSpec:
    """The data set of the run, or the generated one, drawn now if it does not exist yet."""
    if config.data is not None:
        return load_data_spec(absolute_data(config.data), config.num_classes)
    return generated_data(home, config.num_classes)


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
    token = read_token(config.api.token_file)
    require_token(config.api.host, token)
    return token


def has_api(config: ServerConfig) -> bool:
    """Whether the run has an API: it waits for requests, and a port is set."""
    return config.continuous and config.api.port > 0


def start_api(
    config: ServerConfig,
    monitor: RetrainingManager,
    store: ModelManager,
    token: str | None,
    *,
    home: Path,
    collectors: Sequence[Collector] = (),
    probation: Probation | None = None,
) -> ApiServer | None:
    """Start the API, if the run has one; training continues if its port cannot be opened."""
    if not has_api(config):
        return None
    app = create_trigger_api(
        monitor,
        store=store,
        token=token,
        allowed_hosts={*LOOPBACK, *config.api.allowed_hosts},
        collectors=collectors,
        probation=probation,
        waiting=lambda: backlog(home, config.registered_model_name),
    )
    return serve_api(app, host=config.api.host, port=config.api.port)
