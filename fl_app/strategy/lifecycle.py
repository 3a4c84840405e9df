# SPDX-License-Identifier: Apache-2.0
"""LifecycleStrategy: one round, from the clients' replies to a staged version in the registry.

How arrays are aggregated is the inner strategy's business; how versions are kept is the store's.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg, Strategy

from fl_app.events import Hook, RoundReport
from fl_app.health import Health
from fl_app.hooks.queue import Hooks
from fl_app.strategy.arguments import check_arguments, check_strategy, overridden_starts
from fl_app.strategy.default_policy import default_policy
from fl_app.strategy.early_stopping import EarlyStopping
from fl_app.strategy.errors import RunFailedError
from fl_app.strategy.finish.console import round_line
from fl_app.strategy.finish.evaluation import finite, round_metrics
from fl_app.strategy.finish.next_steps import USUAL_NAME
from fl_app.strategy.finish.plots import plot_metrics
from fl_app.strategy.finish.provenance import contributions, node_scores, summaries
from fl_app.strategy.finish.staging import decision_tags, stage
from fl_app.strategy.records import Artifacts, DataUsed, Monitor, Origin, ProductionWatch
from fl_app.strategy.round.aggregate import Aggregate, aggregate, aggregate_evaluate
from fl_app.strategy.round.deadlines import NODE_WAIT_SECONDS, NodeDeadline
from fl_app.strategy.round.first_model import adopted_schema, agreed_schema, require_whole_model
from fl_app.strategy.round.metrics import WatchedMetric
from fl_app.strategy.round.replies import Screened
from fl_app.strategy.round.screening import (
    Screening,
    needs_of,
    screen_evaluate,
    screen_train,
    sound_models,
)
from fl_app.strategy.session.closed_round import ClosedRound
from fl_app.strategy.session.folder import Checkpoint
from fl_app.strategy.session.interlude import meet_staging
from fl_app.strategy.session.resume import Resume, ResumeMode
from fl_app.strategy.session.run import Sessions
from fl_app.strategy.session.state import Session
from fl_app.strategy.session.strategy_state import InnerMemory
from fl_app.strategy.shadow.rounds import ShadowEvaluation
from fl_app.wire.schema import restore_dtypes
from fl_registry import (
    Decision,
    FederatedLearningTracker,
    ModelManager,
    ModelStore,
    Policy,
    RegistryError,
    Serving,
    Stage,
    Tracker,
    Writer,
    app_home,
    decide_stage,
)

logger = logging.getLogger("flwr.fl_app")  # below Flower's own, so that `flwr run` shows the lines


NOT_SCORED = Decision(
    Stage.NONE, (), "evaluate_fn returned no metrics in this round, so this version has no score"
)
"""What becomes of the version of a round that the server did not evaluate."""


class LifecycleStrategy(Sessions):
    """A Flower strategy around another one, with the model's lifecycle in every round.

    After each aggregation the global model is evaluated, logged to MLflow, registered as a version
    and staged by ``policy``. It must be the outermost strategy:
    ``LifecycleStrategy(DifferentialPrivacyServerSideFixedClipping(FedAvg(), …))``.

    Parameters
    ----------
    strategy : Strategy | None
        The strategy that samples nodes and aggregates; ``FedAvg()`` by default. Of the message
        API (``flwr.serverapp.strategy``).
    ignore_start : bool
        Accept a strategy that overrides ``start()``, which is not run then; the log names it.
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
        ``approval=pending``. ``auto``: the best of the session is promoted at its end, unless there
        was nothing that it could be compared with.
    shadow : ShadowEvaluation | None
        Have the nodes compare what passed with Production first: what is worse is archived, and
        where they are undecided it waits for a person, also with ``auto``.
    registered_model_name : str
        Name of the model in the default store; one for each app that shares a store.
    store, tracker : ModelStore, Tracker
        Registry and tracking; MLflow under ``FL_APP_HOME`` by default.
    monitor : Monitor | None
        Told the metric and the nodes' data summaries, for instance a ``RetrainingManager``.
    probation : ProductionWatch | None
        Looks after what was promoted, for instance a ``Probation`` with the same store and monitor.
    hooks : Sequence[Hook] | Hooks
        Called with what happens (see ``fl_app.events``), each in a thread of its own.
    artifacts : Sequence[Artifacts]
        Called at the end; the files that they return are logged to the MLflow run.
    model : Mapping[str, object]
        What the model is, kept beside its weights (for YOLO: size, classes, image size).
    serving : Serving | None
        How MLflow itself loads and serves the versions; None leaves that out.
    holdout : DataUsed | None
        What ``evaluate_fn`` scores on; noted in the MLflow run. With equal digests the score that a
        version was registered with may stand in where it cannot be scored again.
    params : Mapping[str, object]
        Logged as params of the MLflow run, beside the inner strategy's name.
    origin : Origin
        Why this session runs, and from which version.
    home : str | Path | None
        Folder for round checkpoints; ``FL_APP_HOME``, else ``~/.fl-app``, by default.
    early_stopping : EarlyStopping | None
        When ``metric`` has not improved for so long that the remaining rounds are left out.
    node_wait_timeout : float
        Seconds for which a round waits for as many nodes as the strategy asks for.
    writer : Writer | None
        The right to write to the model, from ``store.writer(…)``. By default a session waits for
        another server that has it.
    resume : "auto" | "require" | "fresh" | Resume
        What to do with a session of the same model that was cut short: go on with it if it is the
        same, require that, or begin anew (see `Resume`).
    health : Health | None
        Noted there: a registry that is away, a disk that takes no checkpoint.
    pipeline : bool
        Evaluate and register a round while the clients train the next one. False does it inline.
    pack_arrays : bool
        Send a model as one array over a SuperLink's network, which passes on each array in seconds
        where there are hundreds. All ClientApps need the mod
        `fl_app.client.mods.packing.pack_arrays`.

    Raises
    ------
    MetricError
        If nobody reports ``metric``, or ``start()`` has nobody report it.
    RunFailedError
        After three rounds in a row without a valid model, or a session without any; if all first
        replies have the same other arrays than the model; where there are too few nodes.
    ResumeError
        If there is no session to go on with, and ``resume`` requires one.
    ModelBusy, LeaseLost
        If another server writes to the model, or has taken it over since this one hung.
    RegistryError
        If MLflow does not answer at the start, or refuses. Once a session has begun, rounds wait
        on disk while MLflow does not answer.
    TypeError, ValueError
        If an argument cannot be honoured: the strategy is none of the message API or overrides
        ``start()``, ``early_stopping`` or ``shadow`` has no ``metric``, a word is not known.
    """

    def __init__(
        self,
        strategy: Strategy | None = None,
        *,
        ignore_start: bool = False,
        screening: Screening | None = Screening(),  # noqa: B008  (it is frozen)
        metric: str | None = None,
        mode: Literal["max", "min"] = "max",
        policy: Policy | None = None,
        approval: Literal["manual", "auto"] = "manual",
        shadow: ShadowEvaluation | None = None,
        registered_model_name: str = USUAL_NAME,
        store: ModelStore | None = None,
        tracker: Tracker | None = None,
        monitor: Monitor | None = None,
        probation: ProductionWatch | None = None,
        hooks: Sequence[Hook] | Hooks = (),
        artifacts: Sequence[Artifacts] = (),
        model: Mapping[str, object] | None = None,
        serving: Serving | None = None,
        holdout: DataUsed | None = None,
        params: Mapping[str, object] | None = None,
        origin: Origin | None = None,
        home: str | Path | None = None,
        early_stopping: EarlyStopping | None = None,
        node_wait_timeout: float = NODE_WAIT_SECONDS,
        writer: Writer | None = None,
        resume: ResumeMode | Resume = "auto",
        health: Health | None = None,
        pipeline: bool = True,
        pack_arrays: bool = False,
    ) -> None:
        self.strategy = FedAvg() if strategy is None else strategy
        check_strategy(self.strategy, LifecycleStrategy, ignore_start=ignore_start)
        check_arguments(
            metric=metric,
            mode=mode,
            approval=approval,
            policy=policy,
            node_wait_timeout=node_wait_timeout,
            hooks=hooks,
            artifacts=artifacts,
            settings={
                "screening": (screening, Screening),
                "early_stopping": (early_stopping, EarlyStopping),
                "shadow": (shadow, ShadowEvaluation),
            },
            connections={"store": store, "tracker": tracker},
        )
        self.screening = screening
        self.metric = metric
        self.mode = mode
        self.policy = policy if policy is not None else default_policy(metric, mode)
        self.approval = approval
        self.shadow = shadow
        self.store = store or ModelManager(None, registered_model_name, home=home)
        self.model_name = getattr(self.store, "registered_model_name", registered_model_name)
        if registered_model_name not in (self.model_name, USUAL_NAME):
            raise ValueError(
                f"registered_model_name is {registered_model_name!r:.60}, and store= is that of "
                f"{self.model_name!r}: give the name to the store only."
            )
        self.tracker = tracker or FederatedLearningTracker(home=home)
        self.monitor = monitor
        self.probation = probation
        self.hooks = hooks if isinstance(hooks, Hooks) else Hooks(hooks, self.store)
        self.artifacts = (plot_metrics, *artifacts)
        self.model = dict(model or {})
        self.serving = serving
        self.holdout = holdout
        self.params = {"strategy": type(self.strategy).__name__, **(params or {})}
        self.origin = origin or Origin()
        self.home = app_home(home)
        self.early_stopping = early_stopping
        self.node_wait_timeout = node_wait_timeout
        self.writer = writer
        self.resume = resume if isinstance(resume, Resume) else Resume(resume)
        self.health = health or Health()
        self.pipeline = pipeline
        self.pack_arrays = pack_arrays
        self._memory = InnerMemory(self.strategy)
        self._open_session = None
        self._outbox = None
        self._lease = self._writing = None

    def summary(self) -> None:
        """Log the lifecycle's settings, then the inner strategy's."""
        logger.info("\t├──> Lifecycle:")
        logger.info("\t│\t├── Metric: %s (%s)", self.metric or "none, nothing is staged", self.mode)
        logger.info("\t│\t└── Approval: %s", self.approval)
        logger.info("\t└──> Around %s:", type(self.strategy).__name__)
        self.strategy.summary()
        for start in overridden_starts(self.strategy):
            logger.warning("%s is not run, since ignore_start=True", start)

    # The round, in the order in which Flower's loop and then the worker run it.

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Let the inner strategy choose nodes and write their messages, with the monitor's word."""
        session = self._session
        session.opened, session.sent = time.monotonic(), arrays
        if self._writing is not None:
            self._writing.check()
        if session.restored is not None:
            return []  # what this round has made outlived a crash, and may have been seen by nodes
        number = server_round + session.offset
        if self._stops_before(session, number):
            return []
        if self.monitor is not None:
            config.update(self.monitor.data_orders())
        waits = NodeDeadline(grid, self.strategy, phase="train", seconds=self.node_wait_timeout)
        return _asks(session, self.strategy.configure_train(number, arrays, config, waits))

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Screen, aggregate, check and write to disk; a bad result leaves the old arrays."""
        session, needs = self._session, needs_of(self.strategy)
        watched = WatchedMetric.of(self.metric, "train")
        if session.restored is not None:
            return session.restore()
        if session.stopped:
            return None, None
        number, schema = server_round + session.offset, session.schema
        if not schema:  # the server has no model: the nodes' must agree, so all are waited for
            replies = list(replies)
            schema = agreed_schema(sound_models(replies, self.screening, needs))
        arriving = screen_train(
            replies,
            self.screening,
            needs=needs,
            model=session.sent,
            schema=schema,
            asked=session.asked,
            watched=watched,
        )
        made = aggregate(self.strategy, number, arriving, session.schema)
        screened = arriving.screened
        session.rejected.note("train", number, screened, made.rejected)
        session.current = ClosedRound(
            number, made.problem, tags=session.tags, rejected=session.rejected.this_round
        )
        if made.arrays is None:
            self._require_whole_model(session, number, screened, made)
            return None, made.metrics
        session.made_model = True
        session.schema = session.schema or adopted_schema(made.arrays, schema)
        arrays = restore_dtypes(made.arrays, session.schema)
        nodes = contributions(screened.without(made.rejected), needs.weighted_by)
        session.current = replace(
            session.current,
            arrays=arrays,
            nodes=nodes,
            train=made.metrics,
            unscored=watched.why_missing(len(screened.good)),
        )
        session.keep(session.current, "aggregated")
        return arrays, made.metrics

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Let the inner strategy choose the nodes that evaluate."""
        session = self._session
        if session.stopped:
            return []
        waits = NodeDeadline(grid, self.strategy, phase="evaluate", seconds=self.node_wait_timeout)
        number = server_round + session.offset
        return _asks(session, self.strategy.configure_evaluate(number, arrays, config, waits))

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Close the round: write it to disk, and hand it to the worker, which should be free."""
        session, needs = self._session, needs_of(self.strategy, evaluate=True)
        if session.stopped:
            return None
        number = server_round + session.offset
        watched = WatchedMetric.of(self.metric, "evaluate")
        screened = screen_evaluate(
            replies, self.screening, needs=needs, asked=session.asked, watched=watched
        )
        clients = aggregate_evaluate(self.strategy, number, screened)
        session.rejected.note("evaluate", number, screened)
        closed = replace(
            session.current,
            clients=clients,
            node_scores=node_scores(screened.replies, self.metric),
            unscored=session.current.unscored or watched.why_missing(len(screened.good)),
            rejected=session.rejected.this_round,
            seconds=time.monotonic() - session.opened,
        )
        self._close_round(session, closed)
        session.count_failure(closed)
        return clients

    def _close_round(self, session: Session, closed: ClosedRound) -> None:
        waiting = session.keep(closed, "closed")
        if self._outbox is not None:
            self._outbox.make_room()
            self._outbox.put(waiting)

    def _require_whole_model(
        self, session: Session, number: int, screened: Screened, made: Aggregate
    ) -> None:
        """End the run at its first replies where no later round could make a model either."""
        if session.made_model:
            return
        try:
            require_whole_model(self.strategy, number, screened, made)
        except RunFailedError:
            seconds = time.monotonic() - session.opened
            self._close_round(session, replace(session.current, seconds=seconds))
            raise

    def _finish_round(self, session: Session, waiting: Checkpoint) -> None:
        """Evaluate, log, gate, register, stage, tell the monitor, report: the lifecycle.

        Where MLflow does not answer this stops, and is called again with the same round; so is it
        in the next run for what a crash has left. So each step does what it did before, or nothing.
        """
        if not session.is_done(waiting.closed.round):
            waiting = session.rounds.on_disk(waiting)
            with self.store.one_reading():  # of the journal, for all these steps
                self._finish(session, waiting)

    def _finish(self, session: Session, waiting: Checkpoint) -> None:
        closed, again = waiting.closed, waiting.closed.round in session.tried
        session.tried.add(closed.round)
        if closed.problem:
            return self._finish_failed(session, waiting)
        # Evaluate, on the same data as the present Production.
        holdout = session.scored(waiting)
        closed = replace(closed, central=holdout.record)
        metrics = round_metrics(
            holdout.metrics, closed.train, closed.clients, central=session.is_central
        )
        scored = session.is_scored(self.metric, holdout)
        if scored:
            session.require_metric(self.metric, metrics, closed)
        if not session.record.arrays and session.best is None:
            meet_staging(session, self.store, self.metric, self.mode)
        champion = session.champion(self.store, self.metric) if self.policy else None
        # Log.
        self._log(session, metrics, closed)
        # Gate.
        evidence = session.evidence(metrics, holdout, closed, metric=self.metric, champion=champion)
        decision = decide_stage(self.policy, evidence) if scored else NOT_SCORED
        # Register.
        weights = session.folder.weights(waiting)
        tags = session.version_tags(closed, self.metric, self._lease) | decision_tags(decision)
        version = self.store.save_model_version(
            weights, session.run_id, finite(metrics), tags, serving=self.serving
        )
        # Stage.
        report = session.report_of(closed, metrics=metrics, version=version)
        report = stage(
            self.store, report, decision, session.reports, again=again, lease=self._lease
        )
        # What is written down as done is told to nobody twice.
        waiting = replace(waiting, closed=closed)
        session.finish(waiting, report, staged=decision.stage is not Stage.NONE)
        # Tell the monitor.
        if self.monitor is not None:
            self.monitor.update_data(summaries(closed.nodes), closed.round)
            if self.metric in metrics:
                self.monitor.update_metrics(accuracy=metrics[self.metric], round_num=closed.round)
        if self.probation is not None:
            self.probation.review()
        # Report.
        return self._report(session, report)

    def _stops_before(self, session: Session, number: int) -> bool:
        """Whether this round and those after it send nothing; decided on rounds that are over."""
        if self.early_stopping is None or self.metric is None or session.stopped:
            return bool(session.stopped)
        # With a pipeline the round before is still in the worker's hand, maybe.
        known = [r for r in list(session.reports) if r.round < number - self.pipeline]
        session.stopped = self.early_stopping.judge(known, metric=self.metric, mode=self.mode)
        if session.stopped:
            left = session.num_rounds - number + 1
            logger.info("early stopping: %s; %d rounds are left out", session.stopped, left)
        return bool(session.stopped)

    def _finish_failed(self, session: Session, waiting: Checkpoint) -> None:
        session.require_open()
        self.tracker.set_tags(waiting.closed.failed_tags())
        report = session.report_of(waiting.closed)
        session.finish(waiting, report)
        self._report(session, report)

    def _log(self, session: Session, metrics: Mapping[str, float], closed: ClosedRound) -> None:
        session.require_open()
        self.tracker.log_metrics(metrics, step=closed.round, time=closed.time)
        session.remember(metrics, closed.round)

    def _report(self, session: Session, report: RoundReport) -> None:
        left = session.seconds_left(report.round)
        logger.info("%s", round_line(report, self.metric, left))
        self.hooks.look()
        self.hooks(report)

    @property
    def _session(self) -> Session:
        if self._open_session is None:
            raise RegistryError(
                "No session is open: LifecycleStrategy must be the outermost strategy and be run "
                "by its own start()."
            )
        return self._open_session


def _asks(session: Session, messages: Iterable[Message]) -> list[Message]:
    """Note whom the strategy asks, and return its messages."""
    found = list(messages)
    session.asked = tuple(str(message.metadata.dst_node_id) for message in found)
    return found
