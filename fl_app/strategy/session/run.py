# SPDX-License-Identifier: Apache-2.0
"""Sessions on top of Flower's own loop: begun or gone on with, drained, and ended.

What a round is, from replies to a staged version, is in `fl_app.strategy.lifecycle`.
"""

from __future__ import annotations

import logging
import threading
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Literal

from flwr.app import ArrayRecord, ConfigRecord, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy

from fl_app.health import Health
from fl_app.hooks.queue import Hooks
from fl_app.strategy.arguments import check_start
from fl_app.strategy.errors import TooFewNodesError
from fl_app.strategy.finish.baselines import score_on_nodes
from fl_app.strategy.finish.console import session_table
from fl_app.strategy.finish.evaluation import EvaluateFn, evaluate, require_metric, shadow_metrics
from fl_app.strategy.finish.next_steps import next_commands
from fl_app.strategy.finish.probation_check import compare_production
from fl_app.strategy.finish.provenance import run_tags
from fl_app.strategy.finish.score_sources import CLIENTS, metric_source, score_source
from fl_app.strategy.finish.staging import promote_waiting, settle_shadow
from fl_app.strategy.records import Artifacts, DataUsed, Monitor, Origin, ProductionWatch
from fl_app.strategy.round.grids import arriving
from fl_app.strategy.round.random_states import random_states_kept
from fl_app.strategy.round.screening import Screening
from fl_app.strategy.session.arrays_file import load_round
from fl_app.strategy.session.closed_round import ClosedRound
from fl_app.strategy.session.folder import Checkpoint
from fl_app.strategy.session.handover import Item, Steps, hand_over
from fl_app.strategy.session.interlude import meet_staging
from fl_app.strategy.session.outbox import AWAY, DRAIN_SECONDS, Outbox
from fl_app.strategy.session.resume import Found, Resume, choose, find
from fl_app.strategy.session.start import Opening
from fl_app.strategy.session.state import Session
from fl_app.strategy.session.strategy_state import InnerMemory
from fl_app.strategy.shadow.messages import NodeEvaluation
from fl_app.strategy.shadow.rounds import ShadowEvaluation, shadow_rounds
from fl_app.wire.schema import fits
from fl_registry import (
    Lease,
    LeaseLost,
    ModelStore,
    RegistryError,
    Stage,
    StoreUnavailable,
    Tracker,
    Writer,
)

logger = logging.getLogger("flwr.fl_app")

FAILED_DRAIN_SECONDS = 10.0
"""Seconds that a session which failed waits for a registry that is away."""
GOES_ON = (*AWAY, TooFewNodesError)
"""Errors after which the next run goes on with the session: what was missing may be there then."""
LAST_SECONDS = 0.5, 1.0
"""Seconds for the round in hand, and for the end of the MLflow run, when the process must end."""


class Sessions(Strategy):
    """The half of `LifecycleStrategy` that runs sessions; its parameters are described there."""

    strategy: Strategy
    screening: Screening | None
    metric: str | None
    mode: Literal["max", "min"]
    approval: Literal["manual", "auto"]
    shadow: ShadowEvaluation | None
    model_name: str
    store: ModelStore
    tracker: Tracker
    monitor: Monitor | None
    probation: ProductionWatch | None
    hooks: Hooks
    artifacts: Sequence[Artifacts]
    model: Mapping[str, object]
    holdout: DataUsed | None
    params: Mapping[str, object]
    origin: Origin
    writer: Writer | None
    node_wait_timeout: float
    resume: Resume
    health: Health
    home: Path
    pipeline: bool
    pack_arrays: bool
    _memory: InnerMemory
    _open_session: Session | None
    _outbox: Outbox[Item] | None
    _writing: Writer | None
    _lease: Lease | None

    @abstractmethod
    def _finish_round(self, session: Session, waiting: Checkpoint) -> None:
        """Finish a closed round; it may have been finished in part before."""

    @abstractmethod
    def _log(self, session: Session, metrics: Mapping[str, float], closed: ClosedRound) -> None:
        """Log the metrics of a round."""

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
        session that goes on after a crash runs the rounds that are left, from its own arrays, and
        the result holds what this process ran.
        """
        train_config = ConfigRecord() if train_config is None else train_config
        evaluate_config = ConfigRecord() if evaluate_config is None else evaluate_config
        check_start(
            self.strategy,
            metric=self.metric,
            screening=self.screening,
            arrays=initial_arrays,
            evaluate_fn=evaluate_fn,
        )
        opening = Opening(
            self.tracker,
            self._memory,
            self.model,
            initial_arrays,
            {"train": train_config, "evaluate": evaluate_config},
            self._watched(evaluate_fn),
            self.health,
        )
        grid, run_id = arriving(grid, packed=self.pack_arrays), str(grid.run.run_id)
        with self._writes(run_id), self._run(opening, num_rounds, run_id) as session:
            nodes = NodeEvaluation(
                self.strategy,
                grid,
                -1,
                evaluate_config,
                timeout,
                self.screening,
                self.node_wait_timeout,
                self.metric,
            )
            self._before_first_round(session, nodes)
            result = super().start(
                grid,
                session.newest_arrays(),
                num_rounds - session.offset,
                timeout,
                train_config,
                evaluate_config,
            )
            session.require_model()
            if self._drained(session):
                nodes.server_round = num_rounds
                with random_states_kept():
                    self._conclude(session, nodes)
            return session.complete(result)

    @contextmanager
    def _writes(self, flower_run_id: str) -> Iterator[None]:
        """Be the one server that writes to the model; wait for others, or refuse."""
        writer = self.writer or self.store.writer(f"flower run {flower_run_id}")
        with writer as self._writing:
            self._lease = writer.lease
            yield

    @contextmanager
    def _run(self, opening: Opening, num_rounds: int, flower_run_id: str) -> Iterator[Session]:
        """Open a session and its worker; close both, whatever happens in between."""
        found = find(self.home, self.model_name)
        try:
            tags = run_tags(self.origin, flower_run_id, self.metric)
            record = opening.record(
                self.model_name,
                self.origin,
                num_rounds=num_rounds,
                tags=tags,
                params=self.params,
                holdout=self.holdout,
            )
            record = replace(record, settings=self.resume.compared(record.settings))
            chosen = choose(found, record, self.resume)
            for each in found:
                if each is not chosen:
                    self._settle(each, opening)
            session = (
                opening.begin(self.home, record)
                if chosen is None
                else opening.go_on(chosen, flower_run_id)
            )
        except BaseException:
            for each in found:
                each.folder.release()
            raise
        outbox = hand_over(
            session,
            self._finish_round,
            self._steps,
            health=self.health,
            pipeline=self.pipeline,
        )
        self._open_session, self._outbox = session, outbox
        error: BaseException | None = None
        try:
            with self.store.one_reading():
                self.hooks.look()
                started = session.started(self.store)
            session.staging = started.staging
            self.hooks(started)
            if chosen is not None:
                meet_staging(session, self.store, self.metric, self.mode)
                if session.record.first_metrics is not None and not session.record.described:
                    outbox.put(Steps.FIRST)
            for waiting in chosen.waiting if chosen is not None else ():
                outbox.put(waiting)
            yield session
        except BaseException as caught:
            error = caught
            raise
        finally:
            self._open_session = self._outbox = None
            self._close(session, outbox, error)

    def _watched(self, evaluate_fn: EvaluateFn | None) -> EvaluateFn | None:
        """``evaluate_fn``, during which nobody takes the registry to be slow."""
        if evaluate_fn is None:
            return None

        def watched(server_round: int, arrays: ArrayRecord) -> MetricRecord | None:
            with self._outbox.computing() if self._outbox else nullcontext():
                return evaluate_fn(server_round, arrays)

        return watched

    def _steps(self, session: Session, steps: Steps) -> None:
        """Do what comes before the first round, or after the last one; both may be done again."""
        if steps is Steps.FIRST:
            self._first_steps(session)
        else:
            self._last_steps(session)

    def _first_steps(self, session: Session) -> None:
        """Log what the session is, and what it starts with."""
        record = session.record
        session.require_open()
        self.tracker.log_params(record.params)
        if record.holdout is not None:
            self.tracker.log_dataset(*record.holdout, context="holdout")
        if record.first_metrics:
            self._log(session, record.first_metrics, ClosedRound(0, time=record.started))
        session.note(described=True)

    def _before_first_round(self, session: Session, nodes: NodeEvaluation) -> None:
        """Score what the session starts with; the worker logs it while the nodes train."""
        if session.record.first_metrics is not None:
            return
        try:
            self._score_first(session, nodes)
        finally:
            if self._outbox is not None:
                self._outbox.put(Steps.FIRST)

    def _score_first(self, session: Session, nodes: NodeEvaluation) -> None:
        """Score what the session starts with, and what it must beat."""
        parent, arrays = session.record.origin.parent_version, session.newest_arrays()
        first = evaluate(session.evaluate_fn, 0, arrays)
        if session.is_central:
            logger.info("Initial global evaluation results: %s", first.record)
        if first.record is not None:
            session.central[0] = first.record
        if first.metrics:
            if metric_source(self.metric, session.record.source) == session.record.source:
                require_metric(self.metric, first.metrics)
            if parent is not None:
                session.scores[parent] = first
        with random_states_kept():
            self._score_on_nodes(session, nodes)
            if not session.schema:  # versions are compared once it is known what a model is
                return session.note(first_metrics=first.metrics)
            score = session.score_of(self.store, parent, self.metric)
            session.best = session.score_of(self.store, session.staging, self.metric)
            compare_production(self.probation, session, self.store, self.metric)
        metrics = first.metrics or (score.metrics if score is not None and not score.note else {})
        start = metrics.get(self.metric) if self.metric else None
        if self.monitor is not None and parent is not None and start is not None:
            self.monitor.start_from(parent, start)
        session.note(
            first_metrics=metrics,
            first_best=None if session.best is None else session.best.metrics,
            first_best_note="" if session.best is None else session.best.note,
        )
        return None

    def _score_on_nodes(self, session: Session, nodes: NodeEvaluation) -> None:
        """Have the nodes evaluate what the session must beat, if its scores are theirs."""
        if self.metric is None or metric_source(self.metric, session.record.source) != CLIENTS:
            return
        parent = session.record.origin.parent_version
        production = self.store.get_latest_version(Stage.PRODUCTION)
        models = {}
        for version in filter(None, dict.fromkeys((parent, production, session.staging))):
            arrays = load_round(self.store.weights_path(version))
            if not session.schema or fits(arrays, session.schema):
                models[version] = arrays
        prefix = "client/" if session.is_central else ""
        scores = score_on_nodes(nodes, models, self.metric, prefix=prefix)
        session.scores.update(scores)
        for version, scored in scores.items():
            score = scored.metrics[self.metric]
            logger.info("before round 1: version %s has %s %.4f", version, self.metric, score)
        baselines = {v: {"metrics": s.metrics, "nodes": s.nodes} for v, s in scores.items()}
        session.note(baselines=baselines)

    def _drained(self, session: Session, *, last: bool = False) -> bool:
        """Wait for what the worker has in hand; if anything is left, leave it for the next run."""
        left = self._outbox.drain(DRAIN_SECONDS) if self._outbox is not None else []
        if left:
            rounds = sum(isinstance(item, Checkpoint) for item in left)
            self._leave(session, "its last steps" if last else f"{rounds} rounds")
        return not left

    def _leave(self, session: Session, what: str) -> None:
        session.note(state="left")
        logger.warning(
            "the session is over, and %s wait on disk, since MLflow does not answer: the next run "
            "hands them over",
            what,
        )

    def _conclude(self, session: Session, nodes: NodeEvaluation) -> None:
        """Compare on the nodes what waits for approval, and have the worker do what follows."""
        try:
            self._shadow_rounds(session, nodes)
        except StoreUnavailable as error:
            logger.warning("%s", error)
            return self._leave(session, "its last steps")
        if self._outbox is not None:
            self._outbox.put(Steps.LAST)
        self._drained(session, last=True)
        return None

    def _last_steps(self, session: Session) -> None:
        """Promote if nobody needs to be asked, log the pictures, print the table.

        Without shadow rounds, where some were to be, nothing is promoted.
        """
        auto = self.approval == "auto"
        if session.shadow is not None:
            reports, lease = session.reports, self._lease
            settle_shadow(self.store, session.shadow, reports, promote=auto, lease=lease)
        elif auto and not session.unshadowed:
            promote_waiting(self.store, session.reports, self._lease)
        if session.stopped:
            self.tracker.set_tags({"early_stopping": session.stopped})
        self.hooks.look()
        session.log_artifacts(self.store, self.tracker, self.artifacts)
        commands = next_commands(session.reports, self.store, self.home)
        session.note(state="ending", status="FINISHED")
        logger.info("%s", "\n" + session_table(session.reports, self.metric))
        logger.info("%s", commands)

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

    def _settle(self, found: Found, opening: Opening) -> None:
        """Finish what an earlier session has left: its rounds, and its MLflow run.

        What cannot be finished is set apart with the reason; its files stay.
        """
        folder, record = found.folder, found.record
        status = record.status or ("FINISHED" if record.state == "left" else "KILLED")
        try:
            if opening.take_up(found):
                if found.rounds:
                    source = score_source(opening.evaluate_fn, self.holdout)
                    self._finish_left(found, opening.left(found, source))
                self.tracker.end_run(status)
            folder.remove()
        except (*AWAY, LeaseLost):
            raise
        except Exception as error:  # whatever it is, the new session must not end with it
            logger.exception("%s is left as it is: %s", folder.set_apart(), type(error).__name__)
            self._end_run(status)
        finally:
            folder.release()

    def _finish_left(self, found: Found, session: Session) -> None:
        """Finish the rounds of an earlier session that wait, and its last steps."""
        meet_staging(session, self.store, self.metric, self.mode)
        if not session.record.described:
            self._first_steps(session)
        if waiting := found.waiting:
            logger.info("%d rounds of an earlier session are handed over", len(waiting))
        for checkpoint in waiting:
            self._finish_round(session, checkpoint)
        if found.record.state == "left":
            session.unshadowed = self.shadow is not None
            self._last_steps(session)

    def _close(self, session: Session, outbox: Outbox[Item], error: BaseException | None) -> None:
        """End the session: hand over what can be, in the time that there is, and let go of it."""
        if session.over:  # by `leave`
            return
        failed, last = isinstance(error, Exception), None
        if failed:
            self._drain_failed(session, outbox)
            if not isinstance(error, GOES_ON):
                session.note(state="ending", status="FAILED")
        ended = session.ended(error)
        session.over = True
        outbox.close(LAST_SECONDS[0])
        if error is not None and not failed:
            last = LAST_SECONDS[1]  # the process must end; the session goes on in the next one
        told = False
        if session.record.state == "left":
            self.tracker.leave_run()
        else:
            told = self._end_run(ended.status.upper(), last)
        if told and session.record.state == "ending" and not outbox.waiting:
            session.folder.remove()
        outbox.afterwards(session.folder.release)
        self.hooks(ended)
        self.hooks.flush(last)

    def leave(self) -> None:
        """Let go of the session at once: Flower has stopped the run, whose process may hang.

        What is on disk is for the next run.
        """
        session, outbox = self._open_session, self._outbox
        if session is not None and outbox is not None:
            session.over = True
            outbox.close(LAST_SECONDS[0])
            outbox.afterwards(session.folder.release)
        self._end_run("KILLED", LAST_SECONDS[1])

    def _drain_failed(self, session: Session, outbox: Outbox[Item]) -> None:
        try:
            outbox.drain(FAILED_DRAIN_SECONDS)
        except Exception as error:  # noqa: BLE001  (the first one is raised already)
            logger.info("a round is left: %s", error)

    def _end_run(self, status: str, seconds: float | None = None) -> bool:
        """End the MLflow run, in at most some seconds; whether MLflow has heard of it."""
        told = threading.Event()

        def end() -> None:
            try:
                self.tracker.end_run(status)
                told.set()
            except RegistryError as error:
                self.tracker.leave_run()
                logger.warning("%s; the next run ends it", error)

        if seconds is None:
            end()
        else:
            thread = threading.Thread(target=end, name="fl-app-end", daemon=True)
            thread.start()
            thread.join(seconds)
        return told.is_set()
