# SPDX-License-Identifier: AGPL-3.0-or-later
"""The ServerApp: the one place that names concrete classes and puts them together."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import Result

from fl_app.api import ApiServer, create_trigger_api, serve_api
from fl_app.api.guard import LOOPBACK, read_token, require_token
from fl_app.client.data import DataSpec, generated_data, load_data_spec
from fl_app.config import ClientConfig, ConfigError, ServerConfig, absolute_data, not_shaping
from fl_app.events import Hook
from fl_app.flower_stop import when_stopped
from fl_app.hooks import PrometheusMetrics, Webhook, log_event
from fl_app.hooks.queue import HOOK_SECONDS, Hooks
from fl_app.hooks.webhook import read_secret
from fl_app.retraining import (
    DriftSettings,
    MonitorStore,
    Probation,
    ProbationSettings,
    RetrainingManager,
    RetrainRequest,
    train_and_retrain,
)
from fl_app.retraining.drift.plot import drift_artifacts
from fl_app.retraining.memory.store import default_url
from fl_app.retraining.probation.state import Source
from fl_app.strategy import (
    EarlyStopping,
    LifecycleStrategy,
    Origin,
    Resume,
    ScheduledFedAvg,
    Screening,
    ShadowEvaluation,
    default_policy,
)
from fl_app.strategy.finish.score_cache import RememberedScores
from fl_app.strategy.session.arrays_file import load_round
from fl_app.strategy.session.backlog import backlog
from fl_app.strategy.session.resume import is_cut_short
from fl_registry import FederatedLearningTracker, ModelManager, Stage, app_home

if TYPE_CHECKING:
    from prometheus_client.registry import Collector

    from fl_app.yolo import YoloOnServer

logger = logging.getLogger("flwr.fl_app")

FLUSH_SECONDS = 15.0
"""How long the end of the run waits for hooks, unless it is told to end."""

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Check everything that can be wrong, then train, and train again when the monitor asks."""
    config = ServerConfig.from_run_config(context.run_config)
    shadow = shadow_evaluation(config)
    home = app_home(config.home or None)
    store = ModelManager(
        config.mlflow_tracking_uri or None, config.registered_model_name, home=home
    )
    metrics = PrometheusMetrics()
    hooks = Hooks([metrics, *event_hooks(config)], store)
    store.ping()
    spec = dataset(config, home)
    tracker = FederatedLearningTracker(
        config.mlflow_tracking_uri or None, config.experiment_name, home=home
    )
    monitor = retraining_manager(config, home, hooks)
    probation = Probation(store, monitor, probation_settings(config))
    token = api_token(config)
    from fl_app.yolo import YoloOnServer  # seconds of imports, after all that may be wrong

    yolo = YoloOnServer(config, spec)
    scores = RememberedScores(yolo.evaluate)  # by all sessions
    writer = store.writer(f"flower run {grid.run.run_id}", when_busy=config.when_busy)
    params = {
        **ClientConfig.from_run_config(context.run_config).params(),
        **config.params(),
    }
    running: list[LifecycleStrategy] = []
    read: dict[str, ArrayRecord] = {}

    def run_session(number: int, request: RetrainRequest | None) -> Result:
        with store.one_reading():
            parent, arrays = starting_point(config, store, yolo, read)
        strategy = LifecycleStrategy(
            inner_strategy(config),
            screening=Screening(
                config.max_examples_per_node, config.max_update_norm or None, config.norm_action
            ),
            metric=config.metric,
            mode=config.metric_mode,
            policy=default_policy(
                config.metric,
                config.metric_mode,
                threshold=config.staging_threshold,
                margin=config.champion_margin,
                confidence=config.champion_confidence or None,
                class_margin=config.class_margin,
            ),
            approval=config.approval,
            shadow=shadow,
            store=store,
            tracker=tracker,
            monitor=monitor,
            probation=probation,
            hooks=hooks,
            artifacts=[yolo.picture, drift_artifacts(monitor)],
            model=yolo.description,
            serving=yolo.serving,
            holdout=yolo.holdout,
            params=params,
            origin=Origin(
                session=number,
                parent_version=parent,
                trigger=request.reason if request is not None else "",
                request_id=request.id if request is not None else "",
            ),
            home=home,
            early_stopping=early_stopping(config),
            node_wait_timeout=config.node_wait_timeout,
            writer=writer,
            health=monitor.health,
            # Only the first session finds one that an earlier run has left.
            resume=Resume(config.resume if number == 1 else "auto", not_shaping()),
            pack_arrays=config.pack_arrays,
        )
        running[:] = [strategy]
        return strategy.start(
            grid,
            arrays,
            num_rounds=config.num_server_rounds,
            timeout=config.round_timeout,
            evaluate_fn=scores,
        )

    def run_alone(number: int, request: RetrainRequest | None) -> Result:
        with writer:  # nobody else moves the version that it starts from
            return run_session(number, request)

    def end_at_once() -> None:
        logger.warning("Flower has stopped this run; what is not finished is left for the next one")
        monitor.leave()
        for strategy in running:
            strategy.leave()

    hooks.look()  # what is in the journal by now is history
    api = start_api(
        config, monitor, store, token, home=home, collectors=[metrics], probation=probation
    )
    monitor.start_monitoring()
    try:
        with when_stopped(end_at_once), hooks.watching():
            train_and_retrain(
                run_alone,
                monitor,
                max_retrains=config.max_retrains,
                continuous=config.continuous,
                completed=lambda request: served(config, store, request),
                unfinished=lambda: (
                    config.resume != "fresh" and is_cut_short(home, config.registered_model_name)
                ),
            )
    finally:
        if api is not None:
            api.close()
        monitor.stop_monitoring()
        told_to_end = not isinstance(sys.exception(), Exception | None)
        hooks.flush(HOOK_SECONDS if told_to_end else FLUSH_SECONDS)


def event_hooks(config: ServerConfig) -> list[Hook]:
    """Whom the settings name to be told of what happens."""
    hooks: list[Hook] = [log_event] if config.log_events else []
    hosts = [name.strip() for name in config.webhook_hosts.split(",") if name.strip()]
    if config.webhook_url:
        secret = read_secret(config.webhook_secret_file)
        model = config.registered_model_name
        webhook = Webhook(config.webhook_url, secret, hosts=hosts, model=model)
        webhook.check()
        hooks.append(webhook)
    elif hosts or config.webhook_secret_file:
        raise ConfigError(
            "webhook-hosts or webhook-secret-file is set and webhook-url is not, so nobody would "
            "be told; set it, or leave the others out."
        )
    return hooks


def retraining_manager(config: ServerConfig, home: Path, hooks: Hooks) -> RetrainingManager:
    """The monitor as the settings describe it, with its memory on disk and its schedule set."""
    url = config.monitor_database_url or default_url(home)
    monitor = RetrainingManager(
        config.accuracy_threshold,
        min_rounds_between_retrain=config.min_rounds_between_retrain,
        min_hours_between_retrain=config.min_hours_between_retrain,
        budget=config.retrain_budget,
        mode=config.metric_mode,
        policy=config.degradation_policy,
        on_request=config.on_request,
        drift=DriftSettings(
            config.drift_false_alarm_days,
            config.drift_min_effect,
            config.drift_season or None,
            config.drift_policy,
        ),
        store=MonitorStore(url, config.registered_model_name),
        hooks=hooks,
    )
    if config.retrain_cron:
        monitor.schedule_periodic_retrain(cron=config.retrain_cron)
    if config.retrain_interval_days:
        monitor.schedule_periodic_retrain(config.retrain_interval_days)
    return monitor


def probation_settings(config: ServerConfig) -> ProbationSettings:
    """When a version that was promoted has to go, as the settings say."""
    named = [name.strip() for name in config.probation_watch.split(",") if name.strip()]
    return ProbationSettings(
        watch=[Source(name) for name in named],
        drop=config.probation_drop,
        in_a_row=config.probation_in_a_row,
        hours=config.probation_hours,
        reports=config.probation_reports,
        max_latency_ms=config.probation_max_latency_ms or None,
        min_throughput_qps=config.probation_min_throughput or None,
        metric=config.metric,
        mode=config.metric_mode,
        confidence=config.champion_confidence or None,
    )


def served(config: ServerConfig, store: ModelManager, request: RetrainRequest) -> bool:
    """Whether a session for this request came to its end; its MLflow run says so."""
    experiment = store.client.get_experiment_by_name(config.experiment_name)
    if experiment is None:
        return False
    ended = f"tags.request_id = '{request.id}' AND attributes.status = 'FINISHED'"
    return bool(store.client.search_runs([experiment.experiment_id], ended, max_results=1))


def api_token(config: ServerConfig) -> str | None:
    """The API's token, if it needs one; refuses to be open to others without one."""
    if not (config.continuous and config.api_port):
        return None
    token = read_token(config.api_token_file)
    require_token(config.api_host, token)
    return token


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
    """The API of a server that waits for requests; training goes on without it."""
    if not (config.continuous and config.api_port):
        return None
    named = {name.strip() for name in config.api_allowed_hosts.split(",") if name.strip()}
    app = create_trigger_api(
        monitor,
        store=store,
        token=token,
        allowed_hosts={*LOOPBACK, *named},
        collectors=collectors,
        probation=probation,
        waiting=lambda: backlog(home, config.registered_model_name),
    )
    return serve_api(app, host=config.api_host, port=config.api_port)


def shadow_evaluation(config: ServerConfig) -> ShadowEvaluation | None:
    """How the nodes compare what waits for approval with Production, if they do."""
    if not config.shadow_rounds:
        return None
    if not config.fraction_evaluate:
        raise ConfigError(
            f"shadow-rounds={config.shadow_rounds} needs nodes that evaluate, and "
            "fraction-evaluate=0.0 asks none; set one of the two differently."
        )
    return ShadowEvaluation(
        rounds=config.shadow_rounds,
        confidence=config.shadow_confidence,
        ab_test=config.shadow_ab_test,
    )


def early_stopping(config: ServerConfig) -> EarlyStopping | None:
    """When a session stops before its last round, as the settings say."""
    return EarlyStopping(config.patience, config.min_delta) if config.patience else None


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


def dataset(config: ServerConfig, home: Path) -> DataSpec:
    """The data set that the run names, or the generated one, drawn now if it is not there yet."""
    if config.data:
        return load_data_spec(absolute_data(config.data), config.num_classes)
    return generated_data(home, config.num_classes)


def starting_point(
    config: ServerConfig,
    store: ModelManager,
    yolo: YoloOnServer,
    read: dict[str, ArrayRecord],
) -> tuple[str | None, ArrayRecord]:
    """The version a session starts from and its arrays; first weights where there is none.

    ``read`` keeps those of the last version, which mostly are the next session's too.
    """
    stages: dict[str, list[Stage | None]] = {
        "production": [Stage.PRODUCTION, Stage.STAGING, None],
        "latest": [None],
        "scratch": [],
    }
    for stage in stages[config.restart_from]:
        version = store.get_latest_version(stage)
        if version is not None:
            if version not in read:
                arrays = load_round(store.weights_path(version))
                yolo.require_same_model(version, arrays)
                read.clear()
                read[version] = arrays
            logger.info("starting from version %s (%s)", version, stage or "latest")
            return version, ArrayRecord(dict(read[version]))
    logger.info("starting from first weights (seed %d)", config.seed)
    return None, yolo.first_arrays()
