# SPDX-License-Identifier: Apache-2.0
"""LifecycleStrategy: one round, from the clients' replies to a staged version in the registry.

How arrays are aggregated is the inner strategy's business; how versions are kept is the store's.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import astuple, replace
from pathlib import Path
from typing import Literal

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg, Result, Strategy

from fl_app.dispatch import Hooks
from fl_app.events import Hook, RoundReport
from fl_app.strategy.checkpoint import forget_rounds, restore_dtypes, save_round, schema_of
from fl_app.strategy.commands import next_commands
from fl_app.strategy.console import round_line, session_table
from fl_app.strategy.evaluation import (
    EvaluateFn,
    evaluate,
    finite,
    holdout_record,
    require_metric,
    round_metrics,
    shadow_metrics,
)
from fl_app.strategy.inner import aggregate, aggregate_evaluate
from fl_app.strategy.plots import plot_metrics
from fl_app.strategy.policy import default_policy
from fl_app.strategy.provenance import contributions, node_scores, run_tags, summaries
from fl_app.strategy.report import Artifacts, DataUsed, Monitor, Origin
from fl_app.strategy.screening import Screening, needs_of, screen_evaluate
from fl_app.strategy.session import ClosedRound, FailedRound, Session
from fl_app.strategy.shadow import ShadowEvaluation, shadow_rounds
from fl_app.strategy.shadow_messages import NodeEvaluation
from registry import (
    FederatedLearningTracker,
    ModelManager,
    ModelStore,
    Policy,
    RegistryError,
    Serving,
    Stage,
    Tracker,
    app_home,
    decide_stage,
)

logger = logging.getLogger("flwr.fl_app")  # below Flower's own, so that `flwr run` shows the lines


class LifecycleStrategy(Strategy):
    """A Flower strategy around another one, with the model's lifecycle in every round.

    After each aggregation the global model is evaluated, logged to MLflow, registered as a version
    and staged by ``policy``. It must be the outermost strategy:
    ``LifecycleStrategy(DifferentialPrivacyServerSideFixedClipping(FedAvg(), …))``.

    Parameters
    ----------
    strategy : Strategy | None
        The strategy that samples nodes and aggregates; ``FedAvg()`` by default.
    screening : Screening | None
        What a reply must be like to count. None lets everything pass, for inner strategies whose
        nodes send something else than models, such as masked ones.
    metric : str | None
        The metric that gates and the monitor look at. None promotes nothing.
    mode : "max" | "min"
        Whether more or less of ``metric`` is better.
    policy : Mapping[Stage, Sequence[Gate]] | None
        Gates before each stage. By default Staging takes the best version so far, and Production
        one that surely beats the present one on the same data.
    approval : "manual" | "auto"
        ``manual``: what passes the gates of Production waits in Staging, marked
        ``approval=pending``. ``auto``: the best of the session is promoted at its end.
    shadow : ShadowEvaluation | None
        Have the nodes compare what passed with Production first: what is worse is archived, and
        where they are undecided it waits for a person, also with ``auto``.
    registered_model_name : str
        Name of the model in the default store; one for each app that shares a store.
    store, tracker : ModelStore, Tracker
        Registry and tracking; MLflow under ``FL_APP_HOME`` by default.
    monitor : Monitor | None
        Told the metric and the nodes' data summaries, for instance a ``RetrainingManager``.
    hooks : Sequence[Hook] | Hooks
        Called with what happens (see ``fl_app.events``), each in a thread of its own.
    artifacts : Sequence[Artifacts]
        Called at the end; the files that they return are logged to the MLflow run.
    model : Mapping[str, object]
        What the model is, kept beside its weights (for YOLO: size, classes, image size).
    serving : Serving | None
        How MLflow itself loads and serves the versions; None leaves that out.
    holdout : DataUsed | None
        What ``evaluate_fn`` scores on; noted in the MLflow run.
    params : Mapping[str, object]
        Logged as params of the MLflow run, beside the inner strategy's name.
    origin : Origin
        Why this session runs, and from which version.
    home : str | Path | None
        Folder for round checkpoints; ``FL_APP_HOME``, else ``~/.fl-app``, by default.
    pipeline : bool
        Evaluate and register a round while the clients train the next one. False does it inline.

    Raises
    ------
    MetricError
        If nobody reports ``metric``.
    RunFailedError
        After three rounds in a row without a valid model.
    RegistryError
        If MLflow does not answer or refuses.
    """

    def __init__(
        self,
        strategy: Strategy | None = None,
        *,
        screening: Screening | None = Screening(),  # noqa: B008  (it is frozen)
        metric: str | None = None,
        mode: Literal["max", "min"] = "max",
        policy: Policy | None = None,
        approval: Literal["manual", "auto"] = "manual",
        shadow: ShadowEvaluation | None = None,
        registered_model_name: str = "fl-global-model",
        store: ModelStore | None = None,
        tracker: Tracker | None = None,
        monitor: Monitor | None = None,
        hooks: Sequence[Hook] | Hooks = (),
        artifacts: Sequence[Artifacts] = (),
        model: Mapping[str, object] | None = None,
        serving: Serving | None = None,
        holdout: DataUsed | None = None,
        params: Mapping[str, object] | None = None,
        origin: Origin | None = None,
        home: str | Path | None = None,
        pipeline: bool = True,
    ) -> None:
        self.strategy = strategy or FedAvg()
        self.screening = screening
        self.metric = metric
        self.mode = mode
        self.policy = policy if policy is not None else default_policy(metric, mode)
        self.approval = approval
        self.shadow = shadow
        self.store = store or ModelManager(None, registered_model_name, home=home)
        self.tracker = tracker or FederatedLearningTracker(home=home)
        self.monitor = monitor
        self.hooks = hooks if isinstance(hooks, Hooks) else Hooks(hooks, self.store)
        self.artifacts = (plot_metrics, *artifacts)
        self.model = dict(model or {})
        self.serving = serving
        self.holdout = holdout
        self.params = {"strategy": type(self.strategy).__name__, **(params or {})}
        self.origin = origin or Origin()
        self.home = app_home(home)
        self.pipeline = pipeline
        self._open_session: Session | None = None
        self._worker: ThreadPoolExecutor | None = None

    def summary(self) -> None:
        """Log the lifecycle's settings, then the inner strategy's."""
        logger.info("\t├──> Lifecycle:")
        logger.info("\t│\t├── Metric: %s (%s)", self.metric or "none, nothing is staged", self.mode)
        logger.info("\t│\t└── Approval: %s", self.approval)
        logger.info("\t└──> Around %s:", type(self.strategy).__name__)
        self.strategy.summary()

    # The round, in the order in which Flower's loop and then the worker run it.

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Let the inner strategy choose nodes and write their messages, with the monitor's word."""
        self._session.opened, self._session.sent = time.monotonic(), arrays
        if self.monitor is not None:
            config.update(self.monitor.data_orders())
        return self.strategy.configure_train(server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Screen, aggregate, check and write to disk; a bad result leaves the old arrays."""
        session, needs = self._session, needs_of(self.strategy)
        screened = session.screen(replies, self.screening, needs)
        made = aggregate(self.strategy, server_round, screened, session.schema)
        session.set_aside.note("train", server_round, screened, made.set_aside)
        if made.arrays is None:
            session.current = FailedRound(server_round, made.problem)
            return None, made.metrics
        arrays = restore_dtypes(made.arrays, session.schema)
        weights = save_round(arrays, session.folder, server_round, self.model)
        nodes = contributions(screened.without(made.set_aside), needs.weighted_by)
        session.current = ClosedRound(server_round, arrays, weights, nodes, train=made.metrics)
        return arrays, made.metrics

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Let the inner strategy choose the nodes that evaluate."""
        return self.strategy.configure_evaluate(server_round, arrays, config, grid)

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Close the round: hand it to the worker, once the worker has finished the one before."""
        session, needs = self._session, needs_of(self.strategy, evaluate=True)
        screened = screen_evaluate(replies, self.screening, needs=needs)
        clients = aggregate_evaluate(self.strategy, server_round, screened)
        scores = node_scores(screened.replies, self.metric)
        session.set_aside.note("evaluate", server_round, screened)
        session.current = replace(session.current, set_aside=session.set_aside.this_round)
        self._wait_for_worker()
        if isinstance(session.current, FailedRound):
            self._record_failure(session, session.current)
            return clients
        session.failed_in_a_row = 0
        seconds = time.monotonic() - session.opened
        closed = replace(session.current, clients=clients, node_scores=scores, seconds=seconds)
        if self._worker is not None:
            session.unfinished = self._worker.submit(self._finish_round, session, closed)
        else:
            self._finish_round(session, closed)
        return clients

    def _finish_round(self, session: Session, closed: ClosedRound) -> None:
        """Evaluate, log, register, gate, stage, tell the monitor, report: the lifecycle."""
        # Evaluate, on the same data as the present Production.
        holdout = evaluate(session.evaluate_fn, closed.round, closed.arrays)
        metrics = round_metrics(holdout.metrics, closed.train, closed.clients)
        session.require_metric(self.metric, metrics)
        champion = session.champion(self.store) if Stage.PRODUCTION in self.policy else None
        # Log.
        self._log(session, metrics, closed.round)
        # Register.
        tags = session.version_tags(closed)
        version = self.store.save_model_version(
            closed.weights, session.run_id, finite(metrics), tags, serving=self.serving
        )
        forget_rounds(session.folder, before=closed.round)
        # Gate.
        evidence = session.evidence(metrics, holdout, closed, metric=self.metric, champion=champion)
        decision = decide_stage(self.policy, evidence)
        # Stage.
        report = session.stage(self.store, version, decision, closed, metrics)
        # Tell the monitor.
        if self.monitor is not None:
            self.monitor.update_data(summaries(closed.nodes), closed.round)
            if self.metric is not None:
                self.monitor.update_metrics(accuracy=metrics[self.metric], round_num=closed.round)
        # Report.
        self._report(session, report)

    def _record_failure(self, session: Session, failed: FailedRound) -> None:
        self.tracker.set_tags(failed.tags())
        self._report(session, session.failed_report(failed))
        session.count_failure(failed)

    def _log(self, session: Session, metrics: Mapping[str, float], step: int) -> None:
        self.tracker.log_metrics(metrics, step=step)
        session.remember(metrics, step)

    def _report(self, session: Session, report: RoundReport) -> None:
        session.reports.append(report)
        left = session.seconds_left(report.round)
        logger.info("%s", round_line(report, self.metric, left))
        self.hooks.look()
        self.hooks(report)

    # The session, on top of Flower's own loop.

    def start(  # noqa: PLR0917  (Flower's signature)
        self,
        grid: Grid,
        initial_arrays: ArrayRecord,
        num_rounds: int = 3,
        timeout: float = 3600,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: EvaluateFn | None = None,
    ) -> Result:
        """Run Flower's loop as one MLflow run; see ``Strategy.start`` for the parameters.

        ``evaluate_fn`` (see `EvaluateFn`) scores the holdout in the worker, for the result too.
        """
        with self._run(grid, initial_arrays, num_rounds, evaluate_fn) as session:
            self._before_first_round(session, initial_arrays)
            result = super().start(
                grid, initial_arrays, num_rounds, timeout, train_config, evaluate_config
            )
            self._wait_for_worker()
            nodes = NodeEvaluation(self.strategy, grid, num_rounds, evaluate_config, timeout)
            self._shadow_rounds(session, nodes)
            self._conclude(session)
            for report in session.reports:
                if not report.failed and evaluate_fn is not None:
                    result.evaluate_metrics_serverapp[report.round] = holdout_record(report.metrics)
            return result

    @contextmanager
    def _run(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord,
        num_rounds: int,
        evaluate_fn: EvaluateFn | None,
    ) -> Iterator[Session]:
        """Open the MLflow run and the worker; close both, whatever happens in between."""
        tags = run_tags(self.origin, str(grid.run.run_id), self.metric)
        name = f"flower-{grid.run.run_id}-session-{self.origin.session}"
        run_id = self.tracker.start_run(name, tags=tags).info.run_id
        folder = self.home / "checkpoints" / run_id
        folder.mkdir(parents=True, exist_ok=True)
        self._worker = ThreadPoolExecutor(1, "fl-app-round") if self.pipeline else None
        self._open_session = Session(
            run_id, tags, num_rounds, folder, schema_of(initial_arrays), evaluate_fn, initial_arrays
        )
        try:
            self.tracker.log_params({**self.params, "num-server-rounds": num_rounds})
            if self.holdout is not None:
                self.tracker.log_dataset(*astuple(self.holdout), context="holdout")
            self.hooks.look()
            self.hooks(self._open_session.started(self.origin, self.store))
            yield self._open_session
        finally:
            if self._worker is not None:
                self._worker.shutdown(cancel_futures=True)
            ended = self._session.ended(self.origin, sys.exception())
            self._open_session = self._worker = None
            try:
                self.tracker.end_run(ended.status.upper())
            finally:
                self.hooks(ended)
                self.hooks.flush()

    def _before_first_round(self, session: Session, arrays: ArrayRecord) -> None:
        """Score what the session starts with, and what is in Staging, on the holdout."""
        first = evaluate(session.evaluate_fn, 0, arrays)
        if not first.metrics:
            return
        require_metric(self.metric, first.metrics)
        self._log(session, first.metrics, 0)
        if self.origin.parent_version is not None:
            session.scores[self.origin.parent_version] = first
            if self.monitor is not None and self.metric is not None:
                self.monitor.start_from(self.origin.parent_version, first.metrics[self.metric])
        staged = session.score_of(self.store, self.store.get_latest_version(Stage.STAGING))
        session.best = staged.metrics if staged is not None else None

    def _shadow_rounds(self, session: Session, evaluation: NodeEvaluation) -> None:
        """Have the nodes score what waits for approval and Production, side by side."""
        for report in shadow_rounds(
            self.shadow,
            self.store,
            metric=self.metric,
            mode=self.mode,
            schema=session.schema,
            evaluation=evaluation,
        ):
            session.shadow = report
            self.tracker.log_metrics(shadow_metrics(report), step=report.server_round)

    def _conclude(self, session: Session) -> None:
        """Promote if nobody needs to be asked, log the pictures, print the table."""
        if session.shadow is not None:
            session.settle(self.store, session.shadow, promote=self.approval == "auto")
        elif self.approval == "auto":
            session.promote_waiting(self.store)
        self.hooks.look()
        session.log_artifacts(self.store, self.tracker, self.artifacts)
        logger.info("%s", "\n" + session_table(session.reports, self.metric))
        logger.info("%s", next_commands(session.reports, self.store, self.home))

    @property
    def _session(self) -> Session:
        if self._open_session is None:
            raise RegistryError(
                "No session is open: LifecycleStrategy must be the outermost strategy and be run "
                "by its own start()."
            )
        return self._open_session

    def _wait_for_worker(self) -> None:
        """Wait for the round that the worker has in hand, and raise what it raised."""
        if self._open_session is not None and self._open_session.unfinished is not None:
            unfinished, self._open_session.unfinished = self._open_session.unfinished, None
            unfinished.result()
