# SPDX-License-Identifier: Apache-2.0
"""The worker's part of a session: what happens to a round once it is closed."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from flwr.app import MetricRecord

from fl_app.events import RoundReport
from fl_app.strategy.checkpoints.record import Checkpoint
from fl_app.strategy.checkpoints.round_store import DISK, RoundStore
from fl_app.strategy.finish.evaluation import EvaluateFn, finite
from fl_app.strategy.finish.reporting import log_artifacts, next_commands, round_line, session_table
from fl_app.strategy.finish.scores import Scores
from fl_app.strategy.finish.staging import Staging, failed_tags, superseded, version_tags
from fl_app.strategy.records import Scored, SessionReport, ShadowReport
from fl_app.strategy.setup import Setup
from fl_registry import Decision, Gone, Lease, Stage, UnknownVersion, decide_stage

logger = logging.getLogger("flwr.fl_app")  # below Flower's own, so that `flwr run` shows the lines

REGISTRY = "registry"
"""The name in ``Health`` of what fails while rounds wait."""
NOT_SCORED = Decision(
    Stage.NONE, (), "evaluate_fn returned no metrics in this round, so this version has no score"
)
"""The decision on a round for which the server's evaluation returned nothing."""


@dataclass(frozen=True)
class FirstSteps:
    """The item of the queue before round 1."""


@dataclass(frozen=True)
class LastSteps:
    """The item of the queue after the last round.

    Attributes
    ----------
    stopped : str
        Why the session stopped early; empty if it did not.
    shadow : ShadowReport | None
        The result of the shadow rounds, if there were any.
    promote : bool
        Whether rules may promote; not if shadow rounds were configured and could not run.
    """

    stopped: str = ""
    shadow: ShadowReport | None = None
    promote: bool = True


Item = Checkpoint | FirstSteps | LastSteps
"""An item of the worker's queue."""


class Finisher:
    """Finishes the rounds of a session in order, and does its first and last steps.

    Every method is called again with the same item while MLflow is down, and by the next process
    after a crash, so that every step is idempotent.

    Parameters
    ----------
    setup : Setup
        What the user gave.
    rounds : RoundStore
        The session's rounds on disk.
    evaluate_fn : EvaluateFn | None
        Scores the holdout.
    lease : Lease | None
        The right to move versions by rule.

    Attributes
    ----------
    best : Scored | None
        The score of the best version so far.
    reports : list[RoundReport]
        The finished rounds, in order.
    scores : Scores
        The scores of its rounds and of registered versions.
    """

    def __init__(
        self, setup: Setup, rounds: RoundStore, evaluate_fn: EvaluateFn | None, lease: Lease | None
    ) -> None:
        self.best: Scored | None = None
        self.reports: list[RoundReport] = []
        self.scores = Scores(setup, rounds, evaluate_fn)
        self.started = time.monotonic()
        self._setup, self._rounds, self._lease = setup, rounds, lease
        self._staging = Staging(setup.store, self.reports, lease)
        self._offset = 0  # rounds of earlier processes
        self._tried: set[int] = set()  # rounds that may have been finished in part

    def resume(self, rounds: Iterable[Checkpoint], offset: int) -> None:
        """Take into account what earlier processes have written of the session's rounds."""
        record, metric = self._rounds.folder.record, self._setup.metric
        first, self._offset = record.first_metrics or {}, offset
        if first and self.scores.is_central:
            self.scores.central[0] = MetricRecord(dict(first))
        for version, scored in record.baselines.items():
            if version == record.staging:
                self.best = scored
            if self.scores.by_nodes:  # a score on the holdout lacks its results per example
                self.scores.add(version, scored)
        for checkpoint in rounds:
            closed, report = checkpoint.closed, checkpoint.report
            self.scores.reported |= bool(closed.unscored)
            self._tried.add(closed.round)
            if report is None or not closed.round:
                continue
            if closed.central is not None:
                self.scores.central[closed.round] = closed.central
            self.scores.reported |= not math.isnan(report.metrics.get(metric or "", math.nan))
            if report.stage is not Stage.NONE:
                self.best = Scored(report.metrics)
                self.reports[:] = [
                    superseded(earlier, str(report.version))
                    if earlier.stage is Stage.STAGING
                    else earlier
                    for earlier in self.reports
                ]
            self.reports.append(report)

    def compare_staging(self) -> None:
        """Raise the bar to the version in Staging if it is of another session, and better."""
        staged = self._setup.store.get_latest_version(Stage.STAGING)
        self.best = self.scores.better(self.best, staged)

    def prepare(self, item: Item, *, save: bool) -> None:
        """Evaluate a round while MLflow is down; write the score to disk if it is to be saved."""
        if not isinstance(item, Checkpoint) or item.closed.problem:
            return
        if item.closed.round not in self._rounds.lost:
            record = self.scores.of_round(item).record
            if save and record is not None:
                self._rounds.save_score(item, record)

    def work(self, item: Item) -> None:
        """Finish an item of the queue."""
        if isinstance(item, FirstSteps):
            self.begin()
        elif isinstance(item, LastSteps):
            self.end(item)
        elif all(report.round != item.closed.round for report in self.reports):
            with self._setup.store.one_reading():  # of the journal, for all these steps
                self.finish(self._rounds.on_disk(item))

    def report_trouble(self, why: str, *, by_disk: bool = False) -> None:
        """Report why rounds start to wait for MLflow or the disk; empty if they flow again."""
        health, unsaved = self._setup.session.health, self._rounds.unsaved
        self._rounds.folder.note_trouble(why)
        if why:
            part, other = (DISK, REGISTRY) if by_disk else (REGISTRY, DISK)
            where = "in memory, and a crash loses them" if unsaved else "on disk until then"
            health.fails(part, f"{why} (rounds wait {where})")
        else:
            part, other = REGISTRY, DISK
            health.works(part)
        if not unsaved or by_disk:
            health.works(other)

    def begin(self) -> None:
        """Log the params of the session, its holdout, and the metrics that it starts with."""
        setup, record = self._setup, self._rounds.folder.record
        self._rounds.folder.require_open()
        setup.tracker.log_params(record.params)
        if record.holdout is not None:
            data = record.holdout
            setup.tracker.log_dataset(data.name, data.digest, data.source, context="holdout")
        if record.first_metrics:
            self._rounds.folder.require_open()
            setup.tracker.log_metrics(record.first_metrics, step=0, time=record.started)
        self._rounds.folder.note(described=True)

    def finish(self, waiting: Checkpoint) -> None:
        """Evaluate, log, gate, register, stage, tell the monitor and report a closed round."""
        setup, scores, rounds, closed = self._setup, self.scores, self._rounds, waiting.closed
        store, metric, record = setup.store, setup.metric, rounds.folder.record
        again = closed.round in self._tried
        self._tried.add(closed.round)
        report = RoundReport(
            round=closed.round,
            num_rounds=record.num_rounds,
            reason=closed.problem,
            failed=bool(closed.problem),
            seconds=closed.seconds,
            run_id=record.run_id,
            rejected=closed.rejected,
        )
        metrics, staged = dict[str, float](), False
        if closed.problem:
            rounds.folder.require_open()
            setup.tracker.set_tags(failed_tags(closed))
        else:
            # Evaluate, and score the version in Production on the same data.
            holdout = scores.of_round(waiting)
            if not record.arrays and self.best is None:
                self.compare_staging()  # which a server without a model can do once it has one
            evidence = scores.evidence(closed, holdout, self.best)
            metrics, registered = dict(evidence.metrics), finite(evidence.metrics)
            scored = metric is None or scores.by_nodes or bool(holdout.metrics)
            # Log.
            rounds.folder.require_open()
            setup.tracker.log_metrics(metrics, step=closed.round, time=closed.time)
            # Gate.
            decision = decide_stage(setup.policy, evidence) if scored else NOT_SCORED
            # Register.
            tags = version_tags(closed, scores.source, self._lease, decision)
            weights, serving = rounds.files.weights(waiting), setup.model.serving
            version = store.save_model_version(
                weights, record.run_id, registered, tags, serving=serving, final=True
            )
            # Stage.
            report = replace(report, metrics=metrics, version=version, time=datetime.now(UTC))
            report = self._staging.stage(report, decision, again=again)
            staged = decision.stage is not Stage.NONE
            if holdout.record is not None:
                closed = replace(closed, central=MetricRecord(dict(holdout.record)))
        # Write the report to disk, so that nothing below is done twice.
        rounds.finish(replace(waiting, closed=closed), report)
        scores.forget_round(closed.round)
        self.reports.append(report)
        if staged:
            self.best = Scored(metrics)
        # Tell the monitor.
        if not closed.problem and setup.monitor is not None:
            setup.monitor.update_data(
                {n.node_id: n.summary for n in closed.nodes if n.summary is not None}, closed.round
            )
            if metric in metrics:
                setup.monitor.update_metrics(accuracy=metrics[metric], round_num=closed.round)
        if not closed.problem and setup.probation is not None:
            setup.probation.review()
        # Report.
        pace = (time.monotonic() - self.started) / max(1, closed.round - self._offset)
        logger.info("%s", round_line(report, metric, pace * (record.num_rounds - closed.round)))
        setup.hooks.look()
        setup.hooks(report)
        # Remove old versions.
        if not rounds.folder.over:
            setup.session.retention.apply_in_session(store, record.run_id, closed.round)

    def end(self, last: LastSteps) -> None:
        """Promote if no person needs to approve, log the plots, print the table."""
        setup, folder = self._setup, self._rounds.folder
        auto = setup.approval == "auto"
        if last.shadow is not None:
            self._staging.apply_shadow(last.shadow, promote=auto)
        elif auto and last.promote:
            self._staging.promote_pending()
        if last.stopped:
            setup.tracker.set_tags({"early_stopping": last.stopped})
        setup.hooks.look()
        report = self._session_report(last.shadow)
        log_artifacts(report, setup.tracker, setup.artifacts)
        setup.session.retention.apply(setup.store)
        commands = next_commands(self.reports, setup.store, setup.home)
        folder.note(state="ending", status="FINISHED")
        logger.info("%s", "\n" + session_table(self.reports, setup.metric))
        logger.info("%s", commands)

    def _session_report(self, shadow: ShadowReport | None) -> SessionReport:
        record = self._rounds.folder.record
        history: dict[str, tuple[tuple[int, float], ...]] = {}
        steps = [(0, record.first_metrics or {}), *((r.round, r.metrics) for r in self.reports)]
        for step, metrics in steps:
            for name, value in metrics.items():
                history[name] = (*history.get(name, ()), (step, value))
        versions = [r for r in self.reports if r.version is not None]
        staged = [r for r in versions if r.stage in (Stage.STAGING, Stage.PRODUCTION)]
        version, weights = self._newest([str(r.version) for r in staged or versions])
        return SessionReport(
            rounds=tuple(self.reports),
            run_id=record.run_id,
            history=history,
            version=version,
            weights=weights,
            shadow=shadow,
        )

    def _newest(self, versions: Sequence[str]) -> tuple[str | None, Path | None]:
        """Return the newest version that nobody has deleted in MLflow, and its weights."""
        for version in reversed(versions):
            try:
                return version, self._setup.store.weights_path(version)
            except (Gone, UnknownVersion) as error:
                logger.warning("no pictures of version %s: %s", version, error)
        return None, None
