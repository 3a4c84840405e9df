# SPDX-License-Identifier: Apache-2.0
"""LifecycleStrategy: one round, from the clients' replies to the queue of the worker.

The inner strategy aggregates; `Finisher` makes a staged version of a closed round.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from pprint import pformat
from typing import Literal

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg, Result, Strategy

from fl_app.events import Hook
from fl_app.hooks.queue import Hooks
from fl_app.strategy.checkpoints.strategy_state import InnerMemory
from fl_app.strategy.default_policy import default_policy
from fl_app.strategy.errors import RunFailedError
from fl_app.strategy.finish.evaluation import EvaluateFn, shadow_metrics
from fl_app.strategy.finish.finisher import FirstSteps, LastSteps
from fl_app.strategy.finish.reporting import plot_metrics
from fl_app.strategy.records import CLIENTS, Artifacts, Monitor, ProductionWatch
from fl_app.strategy.round.grids import NodeDeadline, streaming_grid
from fl_app.strategy.round.inner_strategy import (
    adopted_schema,
    aggregate,
    aggregate_evaluate,
    random_states_restored,
    require_whole_model,
)
from fl_app.strategy.round.screening import agreed_schema, needs_of, screen_evaluate, screen_train
from fl_app.strategy.round.state import ClosedRound, contributions, node_scores
from fl_app.strategy.session.run import LAST_SECONDS, SessionRun, open_session
from fl_app.strategy.session.start import Start, end_run
from fl_app.strategy.setup import (
    ModelCard,
    Resume,
    ResumeMode,
    RoundSettings,
    SessionSettings,
    Setup,
    ShadowEvaluation,
    check_functions,
    check_start,
    overridden_starts,
)
from fl_app.strategy.shadow.messages import NodeEvaluation
from fl_app.strategy.shadow.rounds import shadow_rounds
from fl_app.wire.arrays import restore_dtypes
from fl_registry import (
    FederatedLearningTracker,
    ModelManager,
    ModelStore,
    Policy,
    RegistryError,
    StoreUnavailable,
    Tracker,
    Writer,
    app_home,
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
        The strategy that samples nodes and aggregates; ``FedAvg()`` by default. Of the message
        API (``flwr.serverapp.strategy``).
    metric : str | None
        The metric that gates and the monitor look at. None stages nothing.
    mode : "max" | "min"
        Whether more or less of ``metric`` is better.
    policy : Mapping[Stage, Sequence[Gate]] | None
        Gates before each stage. By default Staging takes the best version so far, and Production
        one that surely beats the present one on the same data.
    approval : "manual" | "auto"
        ``manual``: a version that passes the gates of Production waits in Staging, tagged
        ``approval=pending``. ``auto``: the best of the session is promoted at its end, unless there
        was no version to compare it with.
    shadow : ShadowEvaluation | None
        Have the nodes compare the version that passed with Production first: a worse one is
        archived; if the result is undecided, it waits for a person, also with ``auto``.
    store, tracker : ModelStore, Tracker
        Registry and tracking; MLflow under ``FL_APP_HOME`` by default. The store names the
        registered model: ``ModelManager(registered_model_name="digits")``.
    monitor : Monitor | None
        Receives the metric and the nodes' data summaries, for instance a ``RetrainingManager`` that
        keeps the requests of the same registered model.
    probation : ProductionWatch | None
        Watches promoted versions, for instance a ``Probation`` with the same store and monitor.
    hooks : Sequence[Hook] | Hooks
        Called with each event (see ``fl_app.events``), each hook in its own thread.
    artifacts : Sequence[Artifacts]
        Called at the end; the files that they return are logged to the MLflow run.
    model : ModelCard | None
        What the model is, how its versions are served, and what they are scored on.
    home : str | Path | None
        Folder for round checkpoints; ``FL_APP_HOME``, else ``~/.fl-app``, by default.
    resume : "auto" | "require" | "fresh" | Resume
        What to do with a session of the same model that was interrupted: resume it if it is the
        same, require that, or start a new one (see `Resume`).
    rounds : RoundSettings | None
        Screening, early stopping, deadlines and transport of rounds.
    session : SessionSettings | None
        Why the session runs, its params, and how it waits for MLflow.

    Raises
    ------
    MetricError
        If nobody reports ``metric``, or nobody will with the arguments of ``start()``.
    RunFailedError
        After three rounds in a row without a valid model, or a session without any; if all first
        replies have the same other arrays than the model; if there are too few nodes.
    ResumeError
        If there is no session to resume, and ``resume`` requires one.
    ModelBusy, LeaseLost
        If another server writes to the model, or has taken it over since this one hung.
    RegistryError
        If MLflow does not answer at the start, or refuses. Once a session has started, rounds are
        queued on disk while MLflow is down.
    CheckpointError
        If the disk does not take what a session starts with, or its last model.
    TypeError, ValueError
        If an argument cannot be honoured: the strategy is none of the message API or overrides
        ``start()``, ``early_stopping`` or ``shadow`` has no ``metric``, a word is not known.
    """

    def __init__(
        self,
        strategy: Strategy | None = None,
        *,
        metric: str | None = None,
        mode: Literal["max", "min"] = "max",
        policy: Policy | None = None,
        approval: Literal["manual", "auto"] = "manual",
        shadow: ShadowEvaluation | None = None,
        store: ModelStore | None = None,
        tracker: Tracker | None = None,
        monitor: Monitor | None = None,
        probation: ProductionWatch | None = None,
        hooks: Sequence[Hook] | Hooks = (),
        artifacts: Sequence[Artifacts] = (plot_metrics,),
        model: ModelCard | None = None,
        home: str | Path | None = None,
        resume: ResumeMode | Resume = "auto",
        rounds: RoundSettings | None = None,
        session: SessionSettings | None = None,
    ) -> None:
        self.strategy = FedAvg() if strategy is None else strategy
        store = store or ModelManager(home=home)
        if not isinstance(hooks, Hooks):
            check_functions("hooks", hooks)
            hooks = Hooks(hooks, store)
        self.setup = Setup(
            strategy=self.strategy,
            metric=metric,
            mode=mode,
            policy=policy if policy is not None else default_policy(metric, mode),
            approval=approval,
            shadow=shadow,
            store=store,
            tracker=tracker or FederatedLearningTracker(home=home),
            monitor=monitor,
            probation=probation,
            hooks=hooks,
            artifacts=artifacts,
            model=model or ModelCard(),
            home=app_home(home),
            resume=resume if isinstance(resume, Resume) else Resume(resume),
            rounds=rounds or RoundSettings(),
            session=session or SessionSettings(),
        )
        self._memory = InnerMemory(self.strategy)
        self._open: SessionRun | None = None
        self._writer: Writer
        self._nodes: NodeEvaluation

    def summary(self) -> None:
        """Log the lifecycle's settings, then the inner strategy's."""
        metric = self.setup.metric or "none, nothing is staged"
        logger.info("\t├──> Lifecycle:")
        logger.info("\t│\t├── Metric: %s (%s)", metric, self.setup.mode)
        logger.info("\t│\t└── Approval: %s", self.setup.approval)
        logger.info("\t└──> Around %s:", type(self.strategy).__name__)
        self.strategy.summary()
        for start in overridden_starts(self.strategy):
            logger.warning("%s is not run, since ignore_start=True", start)

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

        With empty ``initial_arrays`` the model's arrays are those of the first aggregate.
        ``evaluate_fn`` (see `EvaluateFn`) scores the holdout in the worker, for the result too. A
        session that is resumed after a crash runs the remaining rounds, from its own arrays, and
        the result holds what this process ran.
        """
        setup, rounds = self.setup, self.setup.rounds
        train_config = ConfigRecord() if train_config is None else train_config
        evaluate_config = ConfigRecord() if evaluate_config is None else evaluate_config
        check_start(setup, initial_arrays, central=evaluate_fn is not None)
        grid, flower_run_id = streaming_grid(grid, packed=rounds.pack_arrays), str(grid.run.run_id)
        configs = {"train": train_config, "evaluate": evaluate_config}
        # One server at a time writes to the model: wait for others, or refuse.
        with setup.session.writer or setup.store.writer(f"flower run {flower_run_id}") as writer:
            start = Start(
                setup,
                self._memory,
                initial_arrays,
                configs,
                evaluate_fn,
                num_rounds,
                flower_run_id,
                writer.lease,
            )
            with open_session(start) as run:
                self._open, self._writer = run, writer
                try:
                    self._nodes = NodeEvaluation(setup, grid, evaluate_config, timeout)
                    try:
                        if run.finisher.scores.source == CLIENTS:  # nodes that do not train yet
                            self._score_start(run)
                        # Flower's loop calls the methods below.
                        arrays, left = run.rounds.newest_arrays, num_rounds - run.hand.offset
                        result = super().start(
                            grid, arrays, left, timeout, train_config, evaluate_config
                        )
                        self._score_start(run)
                    finally:
                        if run.rounds.folder.record.first_metrics is None:
                            run.outbox.put(FirstSteps())  # the params of a session that failed
                    run.hand.require_model()
                    run.live.begin("finishing", run.hand.current.round)
                    # Have the nodes compare what waits for approval, and the worker conclude.
                    if run.drained():
                        self._nodes.server_round = num_rounds
                        with random_states_restored():
                            self._conclude(run)
                    return _completed(result, run)
                finally:
                    self._open = None

    # One round, in the order in which Flower's loop calls these; the worker finishes it after.

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Let the inner strategy sample nodes and write their messages."""
        setup, run = self.setup, self._run
        hand, number = run.hand, server_round + run.hand.offset
        hand.opened, hand.sent = time.monotonic(), arrays
        self._writer.check()
        if hand.restored is not None:
            return []  # the model of this round outlived a crash, and nodes may have seen it
        stopping = setup.rounds.early_stopping
        if stopping is not None and setup.metric is not None and not hand.stopped:
            # With a pipeline, the worker may still be busy with the round before.
            last = number - setup.rounds.pipeline
            reports = [report for report in [*run.finisher.reports] if report.round < last]
            hand.stopped = stopping.judge(reports, metric=setup.metric, mode=setup.mode)
            if hand.stopped:
                left = hand.num_rounds - number + 1
                logger.info("early stopping: %s; %d rounds are left out", hand.stopped, left)
        if hand.stopped:
            return []
        if setup.monitor is not None:
            config.update(setup.monitor.data_orders())
        deadline = setup.rounds.node_wait_timeout
        waits = NodeDeadline(grid, self.strategy, phase="train", seconds=deadline)
        run.live.begin("waiting", number)
        messages = hand.send(self.strategy.configure_train(number, arrays, config, waits))
        run.live.begin("train", number, len(messages))
        for message in messages[:1]:  # a strategy may send another model than the global one
            sent = [each for each in message.content.values() if isinstance(each, ArrayRecord)]
            hand.sent = sent[0] if len(sent) == 1 else arrays
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Screen, aggregate, check and write to disk; a bad result leaves the old arrays."""
        setup, run, strategy = self.setup, self._run, self.strategy
        hand, number = run.hand, server_round + run.hand.offset
        if hand.restored is not None:
            return hand.take_restored()
        if hand.stopped:
            return None, None
        self._score_start(run)  # while the nodes train
        # Screen the replies as they arrive, and aggregate them.
        rules, needs, schema = setup.rounds.screening, needs_of(strategy), hand.schema
        replies = run.live.arriving(replies)
        if not schema:  # the server has no model: the nodes' must agree, so wait for all of them
            replies = list(replies)
            schema = agreed_schema(replies, rules, needs)
        screened = screen_train(
            replies,
            rules,
            needs=needs,
            model=hand.sent,
            schema=schema,
            requested=hand.requested,
            metric=setup.metric,
        )
        run.live.screen(screened.rejected)
        made = aggregate(strategy, number, screened, hand.schema)
        hand.note_rejected("train", number, screened, made.rejected)
        run.live.rejected(hand.rejected)
        hand.current = ClosedRound(number, made.problem, tags=hand.tags, rejected=hand.rejected)
        if made.arrays is None:
            if not hand.made_model:
                # End the run at its first replies if no later round could make a model either.
                try:
                    require_whole_model(strategy, number, screened, made)
                except RunFailedError:
                    seconds = time.monotonic() - hand.opened
                    self._close_round(run, replace(hand.current, seconds=seconds))
                    raise
            return None, made.metrics
        # Adopt the model, and write it to disk before a node sees it.
        hand.made_model = True
        if not hand.schema:
            hand.schema = run.finisher.scores.schema = adopted_schema(made.arrays, schema)
        arrays = restore_dtypes(made.arrays, hand.schema)
        hand.current = replace(
            hand.current,
            arrays=arrays,
            nodes=contributions(screened.without(made.rejected), needs.weighted_by),
            train=made.metrics,
            unscored=screened.unscored,
        )
        run.rounds.save(hand.current, "aggregated")
        return arrays, made.metrics

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Let the inner strategy sample the nodes that evaluate."""
        run, seconds = self._run, self.setup.rounds.node_wait_timeout
        hand = run.hand
        if hand.stopped:
            return []
        waits = NodeDeadline(grid, self.strategy, phase="evaluate", seconds=seconds)
        number = server_round + hand.offset
        messages = hand.send(self.strategy.configure_evaluate(number, arrays, config, waits))
        run.live.begin("evaluate", number, len(messages))
        return messages

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Average the nodes' metrics; close the round: write it to disk and queue it."""
        setup, run, strategy = self.setup, self._run, self.strategy
        hand, number = run.hand, server_round + run.hand.offset
        if hand.stopped:
            return None
        screened = screen_evaluate(
            run.live.arriving(replies),
            setup.rounds.screening,
            needs=needs_of(strategy, evaluate=True),
            requested=hand.requested,
            metric=setup.metric,
        )
        run.live.screen(screened.rejected)
        clients = aggregate_evaluate(strategy, number, screened)
        hand.note_rejected("evaluate", number, screened, {})
        run.live.rejected(hand.rejected)
        closed = replace(
            hand.current,
            clients=clients,
            node_scores=node_scores(screened.replies, setup.metric),
            unscored=hand.current.unscored or screened.unscored,
            rejected=hand.rejected,
            seconds=time.monotonic() - hand.opened,
        )
        self._close_round(run, closed)
        hand.count_failure()
        return clients

    def leave(self) -> None:
        """End the session at once: Flower has stopped the run, whose process may hang.

        What is on disk is for the next run.
        """
        if self._open is not None:
            self._open.leave()
        end_run(self.setup, "KILLED", LAST_SECONDS[1])

    def _close_round(self, run: SessionRun, closed: ClosedRound) -> None:
        run.live.closed(closed.seconds)
        waiting = run.rounds.save(closed, "closed")
        run.outbox.make_room()
        run.outbox.put(waiting)

    def _score_start(self, run: SessionRun) -> None:
        """Score what the session starts with, if that is still to be done; the worker logs it."""
        if run.rounds.folder.record.first_metrics is None:
            scores = run.finisher.scores
            run.finisher.best = scores.before_first_round(self._nodes, run.staging)
            run.outbox.put(FirstSteps())

    def _conclude(self, run: SessionRun) -> None:
        """Run the shadow rounds, and queue the last steps."""
        setup, shadow = self.setup, None
        try:
            for shadow in shadow_rounds(setup, self._nodes, run.hand.schema):
                setup.tracker.log_metrics(shadow_metrics(shadow), step=shadow.server_round)
        except StoreUnavailable as error:
            logger.warning("%s", error)
            run.leave_queue("its last steps")
            return
        run.outbox.put(LastSteps(run.hand.stopped, shadow))
        run.drained()

    @property
    def _run(self) -> SessionRun:
        if self._open is None:
            raise RegistryError(
                "No session is open: LifecycleStrategy must be the outermost strategy and be run "
                "by its own start()."
            )
        return self._open


def _completed(result: Result, run: SessionRun) -> Result:
    """Return Flower's result with the session's own round numbers, arrays and server's scores.

    The scores by round are logged as well: Flower logs its result before they are known.
    """
    offset = run.hand.offset
    for by_round in (result.train_metrics_clientapp, result.evaluate_metrics_clientapp):
        numbered = {number + offset: metrics for number, metrics in by_round.items()}
        by_round.clear()
        by_round.update(numbered)
    if offset and not result.arrays:
        result.arrays = run.rounds.newest_arrays
    central = dict(sorted(run.finisher.scores.central.items()))
    result.evaluate_metrics_serverapp.update(central)
    if central:
        shown = pformat({number: dict(record) for number, record in central.items()})
        logger.info("ServerApp-side Evaluate Metrics, by round:\n%s", shown)
    return result
