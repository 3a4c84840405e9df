# SPDX-License-Identifier: Apache-2.0
"""What one ``start()`` remembers between its rounds, and what it wrote down of them."""

from __future__ import annotations

import logging
import math
import tempfile
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from pprint import pformat
from typing import Literal

from flwr.app import ArrayRecord, MetricRecord
from flwr.serverapp.strategy import Result

from fl_app.events import RoundReport, SessionEnded, SessionStarted
from fl_app.strategy.errors import CheckpointError, RunFailedError, SessionOverError
from fl_app.strategy.finish.evaluation import (
    EvaluateFn,
    Scored,
    ScoredRecord,
    evaluate,
    gather_evidence,
    require_metric,
    scored_by,
)
from fl_app.strategy.finish.provenance import read_node_scores, version_tags
from fl_app.strategy.finish.score_sources import (
    CLIENTS,
    SCORE_SOURCE,
    TRAINING,
    metric_source,
    registered_score,
)
from fl_app.strategy.finish.staging import superseded
from fl_app.strategy.records import Artifacts, SessionReport, ShadowReport
from fl_app.strategy.round.rejected_nodes import RejectedNodes, rejected_tag
from fl_app.strategy.session.arrays_file import load_round
from fl_app.strategy.session.closed_round import ClosedRound
from fl_app.strategy.session.folder import Checkpoint, Phase, SessionFolder
from fl_app.strategy.session.record import SessionRecord
from fl_app.strategy.session.round_store import KeptRounds
from fl_app.wire.schema import Schema, difference, schema_of
from fl_registry import Evidence, Lease, ModelStore, Stage, StoreUnavailable, Tracker
from fl_registry.redaction import one_line, redact

logger = logging.getLogger("flwr.fl_app")

MAX_FAILED_ROUNDS = 3
"""Rounds without a new model, in a row, after which the run fails."""
MAX_REASON = 500
"""Characters of an error that hooks hear."""


@dataclass
class Session:
    """State of a session; Flower's thread and the one worker share it.

    Flower's thread alone touches what is about the round that is under way, the worker what is
    about rounds that are over.

    Attributes
    ----------
    record : SessionRecord
        Who it is, as it is written on disk.
    rounds : KeptRounds
        Its rounds on disk, and the inner strategy's memory.
    tags : Mapping[str, str]
        Where it comes from; its versions bear them.
    schema : Schema
        Arrays that the first global model has, and every later one must have; empty until a server
        without a model has one.
    evaluate_fn : EvaluateFn | None
        What scores the holdout.
    offset : int
        Rounds that an earlier process has closed; Flower's loop counts from there.
    restored : Checkpoint | None
        A round whose model an earlier process has made, but which it did not close.
    current : ClosedRound
        What aggregation made of the round that is under way.
    sent : ArrayRecord
        What the nodes were sent in it.
    staging : str | None
        The version in Staging as this process began.
    asked : tuple[str, ...]
        The ids of the nodes that were asked last.
    stopped : str
        Why the remaining rounds are left out; empty if they are not.
    rejected : RejectedNodes
        Nodes whose replies did not count.
    found : dict[int, Scored]
        What evaluation found of rounds that wait.
    scores_kept : set[int]
        Those of which it is on disk.
    tried : set[int]
        Rounds that may have been finished in part.
    scores, champions : dict[str, Scored]
        Registered versions scored on this session's holdout; those in Production by nodes as well.
    best : Scored | None
        The best version so far.
    central : dict[int, MetricRecord]
        What ``evaluate_fn`` returned, by round.
    shadow : ShadowReport | None
        What the shadow evaluation at the end has come to.
    unshadowed : bool
        Whether shadow rounds were to be, and none could be.
    made_model : bool
        Whether one of its rounds, those of earlier processes included, made a model.
    reported : bool
        Whether the metric that gates look at was reported in one of its rounds.
    over : bool
        Whether the worker must not touch its MLflow run any more.
    noting : threading.Lock
        Held while the record is changed, by one thread or the other.
    """

    record: SessionRecord
    rounds: KeptRounds
    tags: Mapping[str, str]
    schema: Schema
    evaluate_fn: EvaluateFn | None
    sent: ArrayRecord
    staging: str | None = None
    asked: tuple[str, ...] = ()
    stopped: str = ""
    offset: int = 0
    restored: Checkpoint | None = None
    current: ClosedRound = field(default_factory=lambda: ClosedRound(0, "no round"))
    rejected: RejectedNodes = field(default_factory=RejectedNodes)
    started_at: float = field(default_factory=time.monotonic)
    opened: float = field(default_factory=time.monotonic)
    failed_in_a_row: int = 0
    made_model: bool = False
    reported: bool = False
    found: dict[int, Scored] = field(default_factory=dict)
    scores_kept: set[int] = field(default_factory=set)
    tried: set[int] = field(default_factory=set)
    scores: dict[str, Scored] = field(default_factory=dict)
    champions: dict[str, Scored] = field(default_factory=dict)
    best: Scored | None = None
    central: dict[int, MetricRecord] = field(default_factory=dict)
    reports: list[RoundReport] = field(default_factory=list)
    shadow: ShadowReport | None = None
    history: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    unshadowed: bool = False
    over: bool = False
    noting: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @property
    def run_id(self) -> str:
        """The MLflow run."""
        return self.record.run_id

    @property
    def folder(self) -> SessionFolder:
        """Where it is on disk."""
        return self.rounds.folder

    @property
    def num_rounds(self) -> int:
        """Rounds that it has, those of earlier processes included."""
        return self.record.num_rounds

    def note(self, **changes: object) -> None:
        """Change the session's record, in memory and, as far as there is room, on disk."""
        if self.over:
            return
        with self.noting:
            self.record = replace(self.record, **changes)  # type: ignore[arg-type]
            try:
                self.folder.write_session(self.record.to_json())
            except CheckpointError as error:
                logger.warning("%s", error)

    def recall(self, rounds: Iterable[Checkpoint]) -> None:
        """Know again what earlier processes wrote down of a session's rounds."""
        first = self.record.first_metrics or {}
        self.remember(first, 0)
        if first and self.is_central:
            self.central[0] = MetricRecord(dict(first))
        if self.record.first_best is not None:
            self.best = Scored(self.record.first_best, note=self.record.first_best_note)
        for version, known in self.record.baselines.items():
            self.scores[version] = Scored(known["metrics"], nodes=known["nodes"])
        for checkpoint in rounds:
            number, report = checkpoint.closed.round, checkpoint.report
            if number and not checkpoint.closed.problem:
                self.made_model = True
            self.reported |= bool(checkpoint.closed.unscored)
            if number and checkpoint.phase != "aggregated":
                self.current = checkpoint.closed
                failed = bool(checkpoint.closed.problem)
                self.failed_in_a_row = self.failed_in_a_row + 1 if failed else 0
            if report is not None and number:
                self.remember(report.metrics, number)
                if checkpoint.closed.central is not None:
                    self.central[number] = checkpoint.closed.central
                score = report.metrics.get(self.record.tags.get("metric", ""), math.nan)
                self.reported |= not math.isnan(score)
                if report.stage is not Stage.NONE:
                    self.best = Scored(report.metrics)
                    self.reports = [
                        superseded(r) if r.stage is Stage.STAGING else r for r in self.reports
                    ]
                self.reports.append(report)
            self.tried.add(number)

    def require_open(self) -> None:
        """Raise where a worker that nobody waits for would write to a run that is not its own."""
        if self.over:
            raise SessionOverError("The session is over; what it has left is for the next one.")

    def keep(self, closed: ClosedRound, phase: Phase) -> Checkpoint:
        """Write a round down; raise SessionOverError where another process may go on with it."""
        if self.over:
            raise SessionOverError("The session is over, so its rounds are no longer kept.")
        return self.rounds.keep(closed, phase)

    def restore(self) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Take up the round whose model an earlier process has made, as if it were made now."""
        restored, self.restored = self.restored, None
        if restored is not None:
            self.current = replace(restored.closed, tags=self.tags)
            self.rejected.this_round = self.current.rejected
        return self.current.arrays, self.current.train

    def is_done(self, number: int) -> bool:
        """Whether a round is finished, and all were told who are told once."""
        return any(report.round == number for report in self.reports)

    def finish(self, waiting: Checkpoint, report: RoundReport, *, staged: bool = False) -> None:
        """Write down what became of a round; it waits no longer."""
        self.folder.finish(waiting, report)
        self.rounds.forget()
        self.found.pop(report.round, None)
        self.reports.append(report)
        if staged:
            self.best = Scored(report.metrics)

    def scored(self, waiting: Checkpoint) -> Scored:
        """What the holdout says of a closed round; evaluated once, and not if that is on disk."""
        number = waiting.closed.round
        if number not in self.found:
            record, whole = self.folder.scores(number)
            if whole or self.evaluate_fn is None:
                self.found[number] = scored_by(record)
            else:
                arrays = self.rounds.arrays_of(waiting)
                self.found[number] = evaluate(self.evaluate_fn, number, arrays)
            if (record := self.found[number].record) is not None:
                self.central[number] = record
        return self.found[number]

    def newest_arrays(self) -> ArrayRecord:
        """The global arrays now."""
        return self.rounds.arrays_of(self.rounds.newest)

    @property
    def is_central(self) -> bool:
        """Whether metrics with plain names are what ``evaluate_fn`` returned."""
        return self.record.source != CLIENTS

    def keep_scores(self) -> None:
        """Write down what evaluation found of rounds that wait, as far as there is room."""
        with suppress(CheckpointError):
            for number in self.found.keys() - self.scores_kept:
                record = self.found[number].record
                if record is not None:
                    whole = not isinstance(record, ScoredRecord)
                    self.folder.keep_scores(number, record, whole=whole)
                self.scores_kept.add(number)

    def started(self, store: ModelStore) -> SessionStarted:
        """What hooks hear before the first round."""
        origin = self.record.origin
        return SessionStarted(
            run_id=self.run_id,
            session=origin.session,
            num_rounds=self.num_rounds,
            parent_version=origin.parent_version,
            trigger=origin.trigger,
            request_id=origin.request_id,
            production=store.get_latest_version(Stage.PRODUCTION),
            staging=store.get_latest_version(Stage.STAGING),
        )

    def ended(self, error: BaseException | None) -> SessionEnded:
        """What hooks hear at the end; ``error`` is what ended it before its last round."""
        failed: Literal["failed", "killed"] = "failed" if isinstance(error, Exception) else "killed"
        told = f"{type(error).__name__}: {error}".rstrip(": ")
        said = self.stopped if error is None else redact(told)
        waiting = [r.version for r in self.reports if r.approval == "pending"]
        return SessionEnded(
            run_id=self.run_id,
            session=self.record.origin.session,
            status="finished" if error is None else failed,
            reason=said[:MAX_REASON],
            versions=tuple(r.version for r in self.reports if r.version is not None),
            pending=waiting[-1] if waiting else None,
            failed_rounds=sum(r.failed for r in self.reports),
            seconds=time.monotonic() - self.started_at,
        )

    def report_of(self, closed: ClosedRound, **known: object) -> RoundReport:
        """What hooks hear of a round; ``known`` is what there is to say of its version."""
        report = RoundReport(
            round=closed.round,
            num_rounds=self.num_rounds,
            reason=closed.problem,
            failed=bool(closed.problem),
            seconds=closed.seconds,
            run_id=self.run_id,
            rejected=closed.rejected,
        )
        return replace(report, **known)  # type: ignore[arg-type]

    def count_failure(self, closed: ClosedRound) -> None:
        """Count a round without a new model; too many in a row raise RunFailedError."""
        self.failed_in_a_row = self.failed_in_a_row + 1 if closed.problem else 0
        if self.failed_in_a_row >= MAX_FAILED_ROUNDS:
            raise RunFailedError(
                f"{MAX_FAILED_ROUNDS} rounds in a row gave no model, the last one because "
                f"{closed.problem}; look at the clients' log and run again."
            )

    def require_model(self) -> None:
        """Raise RunFailedError if there were rounds, and none of them made a model."""
        if self.num_rounds > 0 and not self.made_model and not self.stopped:
            raise RunFailedError(
                f"No round of {self.num_rounds} made a model, the last one because "
                f"{self.current.problem}; look at the clients' log and run again."
            )

    def require_metric(
        self,
        metric: str | None,
        metrics: dict[str, float],
        closed: ClosedRound,
    ) -> None:
        """Raise MetricError if nobody reports the metric; once it was reported, it may be missing.

        Then it is not a number, which stages nothing. So it is where all values of it were
        rejected, and until an evaluate reply counts.
        """
        if metric is None or metric in metrics:
            self.reported |= metric in metrics
            return
        source = metric_source(metric, self.record.source)
        by_nodes = source in (CLIENTS, TRAINING)
        if by_nodes and closed.unscored:
            self.reported = True
            logger.warning("round %d has no %s: %s", closed.round, metric, closed.unscored)
        unheard = source == CLIENTS and closed.clients is None
        if self.reported or unheard or metric in (self.record.first_metrics or {}):
            metrics[metric] = math.nan
            return
        require_metric(
            metric,
            metrics,
            on_nodes=by_nodes and bool(closed.node_scores),
            rejected=[bad.reason for bad in closed.rejected if bad.phase == "evaluate"],
        )

    def is_scored(self, metric: str | None, holdout: Scored) -> bool:
        """Whether a round has a score: not where it is the server's, which returned nothing."""
        by_nodes = metric_source(metric, self.record.source) in (CLIENTS, TRAINING)
        return metric is None or by_nodes or bool(holdout.metrics)

    def version_tags(
        self, closed: ClosedRound, metric: str | None, lease: Lease | None
    ) -> dict[str, str]:
        """The tags of the version that a round becomes."""
        own = version_tags(closed.round, closed.nodes, closed.node_scores)
        own[SCORE_SOURCE] = metric_source(metric, self.record.source)
        own["epoch"] = str(lease.epoch) if lease is not None else ""
        return {**closed.tags, **own, **rejected_tag(closed.rejected)}

    def remember(self, metrics: Mapping[str, float], step: int) -> None:
        """Keep the metrics of a step for the pictures at the end; the same step once."""
        for name, value in metrics.items():
            points = self.history.setdefault(name, [])
            if all(known != step for known, _ in points):
                points.append((step, value))

    def score_of(self, store: ModelStore, version: str | None, metric: str | None) -> Scored | None:
        """Score of a registered version that this session's are compared with.

        Taken once a session, on the same holdout or by the nodes before round 1; where that is not
        possible, the score that it was saved with stands in, if it is of the same source. None if
        there is no such version. Results per example stay in memory, to be paired with every
        round's.
        """
        if version is None:
            return None
        if version not in self.scores:
            arrays = load_round(store.weights_path(version))
            differs = difference(schema_of(arrays), self.schema)
            source = metric_source(metric, self.record.source)
            scored, record = Scored({}), None
            if source == CLIENTS:
                record = store.get_version(version)
                if record.run_id == self.run_id:
                    scored = Scored(record.metrics)  # the nodes evaluated it in its round
                why = "no node evaluated it in this session"
            elif source == TRAINING or self.evaluate_fn is None or differs:
                why = "it is not evaluated in this session"
            else:
                scored = evaluate(self.evaluate_fn, 0, arrays)
                why = f"evaluate_fn returned no {metric} for it"
            if metric is not None and metric not in scored.metrics:
                why = f"its arrays are not this session's: {differs}" if differs else why
                record = record or store.get_version(version)
                scored = registered_score(record, metric, source, why)
            self.scores[version] = scored
        return self.scores[version]

    def champion(self, store: ModelStore, metric: str | None) -> Scored | None:
        """Scores of the present Production, on the holdout and on the nodes; None without one."""
        version = store.get_latest_version(Stage.PRODUCTION)
        if version is not None and version not in self.champions:
            scored = self.score_of(store, version, metric) or Scored({})
            nodes = scored.nodes or read_node_scores(store.get_version(version).tags)
            self.champions[version] = replace(scored, nodes=nodes)
        return self.champions.get(version or "")

    def evidence(
        self,
        metrics: Mapping[str, float],
        holdout: Scored,
        closed: ClosedRound,
        *,
        metric: str | None,
        champion: Scored | None,
    ) -> Evidence:
        """What the gates look at after a round."""
        return gather_evidence(
            metrics,
            holdout,
            closed.node_scores,
            metric,
            champion=champion,
            best=self.best,
            looks=self.num_rounds,
        )

    def seconds_left(self, server_round: int) -> float:
        """Time that the rounds after ``server_round`` will take at the pace so far."""
        pace = (time.monotonic() - self.started_at) / max(1, server_round - self.offset)
        return pace * (self.num_rounds - server_round)

    def log_artifacts(
        self, store: ModelStore, tracker: Tracker, artifacts: Sequence[Artifacts]
    ) -> None:
        """Have the pictures and files of the session made, and log them to its run.

        One that cannot be made or stored is left out with a warning: the versions are worth more.

        Raises
        ------
        StoreUnavailable
            MLflow does not answer; all are logged again then.
        """
        report = self.report(store)
        for make in artifacts:
            try:
                with tempfile.TemporaryDirectory(prefix="fl-app-") as folder:
                    for path in make(report, Path(folder)):
                        tracker.log_artifact(path)
            except StoreUnavailable:
                raise
            except Exception as error:  # noqa: BLE001 - somebody else's code, or a full disk
                name = getattr(make, "__name__", type(make).__name__)
                logger.warning("%s is not logged: %s", name, one_line(error))

    def report(self, store: ModelStore) -> SessionReport:
        """The whole session, with the weights of its best version, or else of its last one."""
        versions = [r.version for r in self.reports if r.version is not None]
        staged = [
            r.version
            for r in self.reports
            if r.version is not None and r.stage in (Stage.STAGING, Stage.PRODUCTION)
        ]
        shown = (staged or versions)[-1:]
        return SessionReport(
            rounds=tuple(self.reports),
            run_id=self.run_id,
            history={name: tuple(values) for name, values in self.history.items()},
            weights=store.weights_path(shown[0]) if shown else None,
            shadow=self.shadow,
        )

    def complete(self, result: Result) -> Result:
        """Flower's result with the session's own numbers of rounds, arrays and server's scores.

        The scores by round are logged as well: Flower logs its result before they are known.
        """
        for told in (result.train_metrics_clientapp, result.evaluate_metrics_clientapp):
            numbered = {number + self.offset: metrics for number, metrics in told.items()}
            told.clear()
            told.update(numbered)
        if self.offset and not result.arrays:
            result.arrays = self.newest_arrays()
        by_round = dict(sorted(self.central.items()))
        result.evaluate_metrics_serverapp.update(by_round)
        if by_round:
            shown = pformat({number: dict(record) for number, record in by_round.items()})
            logger.info("ServerApp-side Evaluate Metrics, by round:\n%s", shown)
        return result
