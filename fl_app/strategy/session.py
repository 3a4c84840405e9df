# SPDX-License-Identifier: Apache-2.0
"""What one ``start()`` remembers between its rounds, and what it wrote down of them."""

from __future__ import annotations

import logging
import math
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, cast

from flwr.app import ArrayRecord, Message, MetricRecord

from fl_app.events import Approval, RoundReport, SessionEnded, SessionStarted, SetAside
from fl_app.strategy.checkpoint import Schema, fits, load_round
from fl_app.strategy.console import shadow_reason
from fl_app.strategy.evaluation import (
    EvaluateFn,
    Scored,
    evaluate,
    gather_evidence,
    require_metric,
)
from fl_app.strategy.provenance import (
    Contribution,
    NodeScore,
    read_node_scores,
    shadow_tag,
    version_tags,
)
from fl_app.strategy.report import Artifacts, Origin, SessionReport, ShadowReport
from fl_app.strategy.screening import Needs, Screened, Screening, screen_train
from fl_app.strategy.set_aside import SetAsideNodes, set_aside_tag
from registry import Decision, Evidence, ModelStore, Stage, StageError, Tracker
from registry.redaction import one_line

logger = logging.getLogger("flwr.fl_app")

SHADOW = "shadow evaluation: "
"""What the words on a shadow evaluation begin with, in a version's reason."""
MAX_FAILED_ROUNDS = 3
"""Rounds without a new model, in a row, after which the run fails."""
MAX_REASON = 500
"""Characters of an error that hooks hear."""


class RunFailedError(RuntimeError):
    """Too many rounds in a row gave no model."""


@dataclass(frozen=True)
class ClosedRound:
    """A round with a new global model: what the worker needs to finish it."""

    round: int
    arrays: ArrayRecord
    weights: Path
    nodes: tuple[Contribution, ...]
    train: MetricRecord | None = None
    clients: MetricRecord | None = None
    node_scores: tuple[NodeScore, ...] = ()
    seconds: float = 0.0
    set_aside: tuple[SetAside, ...] = ()


@dataclass(frozen=True)
class FailedRound:
    """A round that left the global model as it was, and why."""

    round: int
    problem: str
    set_aside: tuple[SetAside, ...] = ()

    def tags(self) -> dict[str, str]:
        """The tags of the session's run that tell of it."""
        told = {"failed_round": self.problem, **set_aside_tag(self.set_aside)}
        return {f"{name}.{self.round}": value for name, value in told.items()}


@dataclass
class Session:
    """State of a session; only Flower's thread and the one worker touch it, never at once.

    Attributes
    ----------
    run_id : str
        The MLflow run.
    tags : Mapping[str, str]
        Where the session comes from; the run's tags and its versions'.
    folder : Path
        Where the global arrays of the last round are.
    schema : Schema
        Arrays that the first global model has, and every later one must have.
    sent : ArrayRecord
        What the nodes were sent in the round that is under way.
    set_aside : SetAsideNodes
        Nodes whose replies did not count.
    scores : dict[str, Scored]
        Registered versions scored on this session's holdout.
    best : Mapping[str, float] | None
        Metrics of the best version so far.
    current : ClosedRound | FailedRound
        What aggregation made of the round that is under way.
    unfinished : Future | None
        The round that the worker has in hand.
    shadow : ShadowReport | None
        What the shadow evaluation at the end has come to.
    """

    run_id: str
    tags: Mapping[str, str]
    num_rounds: int
    folder: Path
    schema: Schema
    evaluate_fn: EvaluateFn | None
    sent: ArrayRecord
    set_aside: SetAsideNodes = field(default_factory=SetAsideNodes)
    started_at: float = field(default_factory=time.monotonic)
    opened: float = field(default_factory=time.monotonic)
    scores: dict[str, Scored] = field(default_factory=dict)
    best: Mapping[str, float] | None = None
    failed_in_a_row: int = 0
    current: ClosedRound | FailedRound = field(default_factory=lambda: FailedRound(0, "no round"))
    unfinished: Future[None] | None = None
    reports: list[RoundReport] = field(default_factory=list)
    shadow: ShadowReport | None = None
    history: dict[str, list[tuple[int, float]]] = field(default_factory=dict)

    def started(self, origin: Origin, store: ModelStore) -> SessionStarted:
        """What hooks hear before the first round."""
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

    def ended(self, origin: Origin, error: BaseException | None) -> SessionEnded:
        """What hooks hear at the end; ``error`` is what ended it before its last round."""
        failed: Literal["failed", "killed"] = "failed" if isinstance(error, Exception) else "killed"
        said = "" if error is None else f"{type(error).__name__}: {error}".rstrip(": ")
        waiting = [r.version for r in self.reports if r.approval == "pending"]
        return SessionEnded(
            run_id=self.run_id,
            session=origin.session,
            status="finished" if error is None else failed,
            reason=said[:MAX_REASON],
            versions=tuple(r.version for r in self.reports if r.version is not None),
            pending=waiting[-1] if waiting else None,
            failed_rounds=sum(r.failed for r in self.reports),
            seconds=time.monotonic() - self.started_at,
        )

    def failed_report(self, failed: FailedRound) -> RoundReport:
        """What hooks hear of a round without a new model."""
        return RoundReport(
            round=failed.round,
            num_rounds=self.num_rounds,
            reason=failed.problem,
            failed=True,
            run_id=self.run_id,
            set_aside=failed.set_aside,
        )

    def count_failure(self, failed: FailedRound) -> None:
        """Count a round without a new model; too many in a row raise RunFailedError."""
        self.failed_in_a_row += 1
        if self.failed_in_a_row >= MAX_FAILED_ROUNDS:
            raise RunFailedError(
                f"{MAX_FAILED_ROUNDS} rounds in a row gave no model, the last one because "
                f"{failed.problem}; look at the clients' log and run again."
            )

    def screen(self, replies: Iterable[Message], rules: Screening | None, needs: Needs) -> Screened:
        """Screen the replies to what the nodes were sent in this round."""
        return screen_train(replies, rules, needs=needs, model=self.sent, schema=self.schema)

    def require_metric(self, metric: str | None, metrics: dict[str, float]) -> None:
        """Raise MetricError if nobody reports the metric; once it was told, it may be missing.

        Then it is not a number, which stages nothing.
        """
        if metric is not None and metric in self.history:
            metrics.setdefault(metric, math.nan)
        require_metric(metric, metrics)

    def version_tags(self, closed: ClosedRound) -> dict[str, str]:
        """The tags of the version that a round becomes."""
        own = version_tags(closed.round, closed.nodes, closed.node_scores)
        return {**self.tags, **own, **set_aside_tag(closed.set_aside)}

    def remember(self, metrics: Mapping[str, float], step: int) -> None:
        """Keep the metrics of a step for the pictures at the end."""
        for name, value in metrics.items():
            self.history.setdefault(name, []).append((step, value))

    def score_of(self, store: ModelStore, version: str | None) -> Scored | None:
        """Scores of a registered version on this session's holdout, taken once per session.

        None if there is no such version; without metrics if it cannot be scored, which no gate
        lets pass. Results per example stay in memory, to be paired with every round's.
        """
        if version is None:
            return None
        if version not in self.scores:
            arrays = load_round(store.weights_path(version))
            comparable = fits(arrays, self.schema)
            self.scores[version] = evaluate(self.evaluate_fn if comparable else None, 0, arrays)
        return self.scores[version]

    def champion(self, store: ModelStore) -> Scored | None:
        """Scores of the present Production, on the holdout and on the nodes; None without one."""
        version = store.get_latest_version(Stage.PRODUCTION)
        scored = self.score_of(store, version)
        if version is None or scored is None:
            return None
        return replace(scored, nodes=read_node_scores(store.get_version(version).tags))

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

    def stage(
        self,
        store: ModelStore,
        version: str,
        decision: Decision,
        closed: ClosedRound,
        metrics: Mapping[str, float],
    ) -> RoundReport:
        """Move the version as decided; Production is only marked, a person or the end grants it."""
        staged = decision.stage is not Stage.NONE
        ready = decision.stage is Stage.PRODUCTION
        if staged:
            self.supersede(store, version)
            store.promote_to_staging(version, actor="policy", reason=decision.reason)
            self.best = metrics
        approval: Literal["none", "pending"] = "pending" if ready else "none"
        store.set_version_tags(version, {"reason": decision.why, "approval": approval})
        return RoundReport(
            round=closed.round,
            num_rounds=self.num_rounds,
            metrics=metrics,
            version=version,
            stage=Stage.STAGING if staged else Stage.NONE,
            approval=approval,
            reason=decision.why,
            seconds=closed.seconds,
            run_id=self.run_id,
            set_aside=closed.set_aside,
        )

    def supersede(self, store: ModelStore, version: str) -> None:
        """Make room in Staging for ``version``: what is there waits for approval no longer."""
        old = store.get_latest_version(Stage.STAGING)
        if old is None or old == version:
            return
        if store.get_version(old).tags.get("approval") == "pending":
            store.set_version_tags(old, {"approval": "superseded"})
        for index, report in enumerate(self.reports):
            if report.version == old:
                approval = "superseded" if report.approval == "pending" else report.approval
                self.reports[index] = replace(report, stage=Stage.ARCHIVED, approval=approval)

    def promote_waiting(self, store: ModelStore) -> None:
        """Promote the version of this session that passed the gates of Production, if any."""
        for index, report in enumerate(self.reports):
            if report.approval == "pending" and report.version is not None:
                store.promote_to_production(report.version, actor="policy", reason=report.reason)
                store.set_version_tags(report.version, {"approval": "approved"})
                self.reports[index] = replace(report, stage=Stage.PRODUCTION, approval="approved")

    def settle(self, store: ModelStore, shadow: ShadowReport, *, promote: bool) -> None:
        """Do what a shadow evaluation asks for: archive what is worse; ``promote`` what is better.

        What is neither, or has been moved meanwhile by a person, is left to people.
        """
        version, said = shadow.candidate, f"{SHADOW}{shadow_reason(shadow)}"
        gates = store.get_version(version).tags.get("reason", "").partition(f"; {SHADOW}")[0]
        reason = f"{gates}; {said}".removeprefix("; ")
        store.set_version_tags(version, {"reason": reason, "shadow": shadow_tag(shadow)})
        logger.info("version %s: %s", version, said)
        champion = store.get_latest_version(Stage.PRODUCTION)
        try:
            if champion != shadow.champion:
                logger.warning("version %s is in Production by now: a person decides", champion)
            elif shadow.test.outcome == "worse":
                store.reject_version(version, actor="policy", reason=said)
            elif shadow.test.outcome == "better" and promote:
                store.approve_version(version, actor="policy", reason=reason)
        except StageError as error:
            logger.warning("the shadow evaluation changes nothing: %s", error)
        record = store.get_version(version)
        for index, report in enumerate(self.reports):
            if report.version == version:
                approval = cast("Approval", record.tags.get("approval", report.approval))
                self.reports[index] = replace(
                    report, stage=record.stage, approval=approval, reason=reason
                )

    def seconds_left(self, server_round: int) -> float:
        """Time that the rounds after ``server_round`` will take at the pace so far."""
        pace = (time.monotonic() - self.started_at) / server_round
        return pace * (self.num_rounds - server_round)

    def log_artifacts(
        self, store: ModelStore, tracker: Tracker, artifacts: Sequence[Artifacts]
    ) -> None:
        """Have the pictures and files of the session made, and log them to its run.

        One that cannot be made or stored is left out with a warning: the versions are worth more.
        """
        report = self.report(store)
        for make in artifacts:
            try:
                with tempfile.TemporaryDirectory(prefix="fl-app-") as folder:
                    for path in make(report, Path(folder)):
                        tracker.log_artifact(path)
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
