# SPDX-License-Identifier: Apache-2.0
"""The state of a probation and its rules: when a version passes, and when it fails. Pure.

`fl_app.retraining.probation.probation` carries out what is decided here.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from fl_app.retraining.probation.reports import (
    ProbationSettings,
    ProductionReport,
    ReportAnswer,
    Source,
)
from fl_app.retraining.requests import TriggerKind
from fl_registry import BeatsChampion, Evidence, Tenure

FEWEST = 10
"""Reports in a baseline, at least."""
RECENT = 20
"""Reports before a promotion in the baseline of the promoted version, at most."""
STORED = 2 * RECENT
"""Accuracies that are stored: more than ``RECENT``, since those of a failed version are dropped."""
SIGMAS = 3.0
"""A fall of fewer standard deviations of a report may be noise."""
# With three critical reports in a row below this limit, 0, 4 and 7 of 1,000 simulated probations of
# 1,000 reports without a fall rolled back at a noise of 0.02, 0.05 and 0.1; with one report 1, 999
# and 1,000. A fall of 0.2 is detected after 3 reports at a noise of 0.05, and within 100 reports in
# 45 % of cases at 0.1 (benchmarks/probation.py).
SEEN = 100
"""Ids of reports that are stored, so that a report that is sent again counts once."""


class Phase(StrEnum):
    """The phase of a version in production."""

    WATCHING = "watching"
    PASSED = "passed"
    FAILED = "failed"
    EXEMPT = "exempt"  # brought back by a rollback, or no source is watched


@dataclass(frozen=True)
class Baseline:
    """What the reported accuracy is measured from.

    Attributes
    ----------
    level : float
        Median of earlier reports.
    limit : float
        Accuracy below which a report is critical.
    of : str
        Which reports they were, for the reason of a failure.
    """

    level: float
    limit: float
    of: str


@dataclass(frozen=True)
class Trial:
    """One version's stay in production, as far as it is judged.

    Attributes
    ----------
    stay : Tenure
        The stay.
    until : datetime
        Earliest end of the probation, in UTC.
    needed : int
        Healthy reports to pass, at least.
    phase : Phase
        Its phase.
    baseline : Baseline | None
        What reports are measured from; None until there are enough reports.
    first : tuple[float, ...]
        The first accuracies, which become the baseline without reports on the version before.
    in_a_row : int
        Critical reports since the last healthy one.
    healthy : int
        Healthy reports.
    compared : int
        Healthy comparisons in sessions.
    """

    stay: Tenure
    until: datetime
    needed: int
    phase: Phase = Phase.WATCHING
    baseline: Baseline | None = None
    first: tuple[float, ...] = ()
    in_a_row: int = 0
    healthy: int = 0
    compared: int = 0


@dataclass(frozen=True)
class Failure:
    """A failed probation, and how far it has been handled.

    Attributes
    ----------
    promotion : str
        Id of the journal's entry that put the version into production.
    version : str
        The version that failed.
    source : Source
        What the failure was detected by.
    reason : str
        One sentence with the numbers.
    time : datetime
        In UTC.
    report : str
        Id of the report that decided; empty for other sources.
    back : str | None
        The version that replaced it; empty if there is none to go back to. None until the rollback
        is done and retraining is requested.
    """

    promotion: str
    version: str
    source: Source
    reason: str
    time: datetime
    report: str = ""
    back: str | None = None

    def status(self) -> dict[str, Any]:
        """Return the failure as JSON types."""
        facts = {name: getattr(self, name) for name in ("version", "source", "reason", "back")}
        return {**facts, "time": self.time.isoformat(timespec="seconds")}

    def __str__(self) -> str:
        """Return one sentence: what failed, the consequence, and the reason."""
        end = (
            f"version {self.back} is in production in its place"
            if self.back
            else "there is no other version to go back to, so it stays in production"
        )
        return f"version {self.version} failed its probation, {end}: {self.reason}"


@dataclass(frozen=True)
class ProbationState:
    """The state of a probation, which several processes share.

    Attributes
    ----------
    journal : str
        Id of the journal's first entry about production; another journal resets the state.
    trial : Trial | None
        The version in production; None before the first.
    recent : tuple[tuple[str, float], ...]
        The last reported accuracies, each with its version, without failed versions.
    steps : int
        Number of reports, on all versions.
    seen : tuple[str, ...]
        Ids of the last reports.
    results : Mapping[str, Phase]
        ``PASSED`` or ``FAILED``, the last result of each version that has one.
    untagged : tuple[str, ...]
        Those of these versions whose tags are not set yet.
    failure : Failure | None
        The last failure.
    """

    journal: str = ""
    trial: Trial | None = None
    recent: tuple[tuple[str, float], ...] = ()
    steps: int = 0
    seen: tuple[str, ...] = ()
    results: Mapping[str, Phase] = field(default_factory=dict)
    untagged: tuple[str, ...] = ()
    failure: Failure | None = None

    @property
    def watched(self) -> Trial | None:
        """The version in production, if it is on probation."""
        trial = self.trial
        return trial if trial is not None and trial.phase is Phase.WATCHING else None

    def follow(self, stays: Sequence[Tenure], settings: ProbationSettings) -> ProbationState:
        """Begin the probation of the version in production, if it has not begun.

        A version that a rollback brought back is not put on probation again.
        """
        if not stays:
            return self
        now, state = stays[-1], self
        if self.journal != stays[0].id:
            state = ProbationState(stays[0].id, steps=self.steps, seen=self.seen)
        if state.trial is not None:
            number = state.trial.stay.number
            if number >= now.number:
                return state
            state = state.settle(next(stay.since for stay in stays if stay.number > number))
        # The registered score is no baseline for the operator's reports: it is another metric on
        # other data. The reports on the version before are one.
        before = [accuracy for _, accuracy in state.recent[-RECENT:]]
        of = f"the {len(before)} reports before its promotion"
        trial = Trial(
            stay=now,
            until=now.since + timedelta(hours=settings.hours),
            needed=settings.reports,
            # A version that came back is not watched: two versions that are both bad on new data
            # would alternate, and a person who brings one back has the last word.
            phase=Phase.WATCHING if settings.watch and not now.returned else Phase.EXEMPT,
            baseline=_baseline(before, of, settings.drop) if len(before) >= FEWEST else None,
        )
        return replace(state, trial=trial)

    def settle(self, at: datetime) -> ProbationState:
        """Let a version pass after its hours, if enough reports or a comparison were healthy."""
        trial = self.watched
        if trial is None or trial.in_a_row:
            return self
        # A known good version is one that was seen to be good. Hours alone prove nothing: without a
        # report or a comparison it stays on probation.
        if at < trial.until or (trial.healthy < trial.needed and not trial.compared):
            return self
        return self._ended(trial, Phase.PASSED)

    def with_report(
        self, report: ProductionReport, at: datetime, settings: ProbationSettings
    ) -> ProbationState:
        """Add an operator's report on the version in production."""
        trial = self.trial
        if trial is None or report.id in self.seen:
            return self
        state = replace(self, steps=self.steps + 1, seen=(*self.seen, report.id)[-SEEN:])
        state = state._judged(report, at, settings)
        failed = state.trial is not None and state.trial.phase is Phase.FAILED
        if report.accuracy is not None and not failed:
            recent = (*state.recent, (trial.stay.version, report.accuracy))
            state = replace(state, recent=recent[-STORED:])
        return state.settle(at)

    def with_comparison(
        self,
        evidence: Evidence,
        settings: ProbationSettings,
        *,
        rival: str | None,
        registered: float | None,
        at: datetime,
    ) -> ProbationState:
        """Add the scores of the version on probation and of its rival on the same data.

        Parameters
        ----------
        evidence : Evidence
            ``metrics`` and ``results`` of the version on probation, ``champion`` and
            ``champion_results`` of the rival.
        rival : str | None
            The version that a rollback would bring back, if any.
        registered : float | None
            The registered score of the version on probation, used if the rival has no score.
        """
        trial, metric, champion = self.watched, settings.metric or "", evidence.champion or {}
        mine, theirs = evidence.metrics.get(metric, math.nan), champion.get(metric, math.nan)
        other = theirs if math.isfinite(theirs) else registered
        if trial is None or other is None or not math.isfinite(mine):
            return self
        # Each source is compared with its own past. A session has something better: both versions
        # on the same data. A fall that the rival shows too is a reason to train, not to go back.
        fall = other - mine if settings.mode == "max" else mine - other
        if fall <= settings.drop:
            return replace(self, trial=replace(trial, compared=trial.compared + 1)).settle(at)
        if not math.isfinite(theirs):
            why = f"{metric} is {mine:.4f}, and it was registered with {other:.4f}"
            return self.fail(Source.FEDERATED, why, at)
        beats = BeatsChampion(metric, mode=settings.mode, confidence=settings.confidence)
        verdict = beats(
            Evidence(
                metrics=champion,
                champion=evidence.metrics,
                results=evidence.champion_results,
                champion_results=evidence.results,
            )
        )
        if not verdict.passed:  # a large fall, but chance may explain it
            return self
        why = f"on the same data version {rival}'s {verdict.reason}"
        return self.fail(Source.FEDERATED, why, at)

    def with_drift(self, requests: Sequence[Mapping[str, Any]], at: datetime) -> ProbationState:
        """Add the monitor's history of requests; an alarm that began after the promotion decides.

        An earlier alarm does not count, since the version was promoted in spite of it. It lasts
        until the next session, which begins a new reference.
        """
        alarms = [(r["created"], r["reason"]) for r in requests if r["kind"] == TriggerKind.DRIFT]
        sessions = [(r["started"], "") for r in requests if r["started"]]
        trial, began = self.watched, None
        for time, reason in sorted(alarms + sessions):  # as ISO texts in UTC they sort by time
            began = (began or datetime.fromisoformat(time)) if reason else None
            if trial is not None and began is not None and began > trial.stay.since:
                return self.fail(Source.DRIFT, reason, at)
        return self

    def fail(self, source: Source, reason: str, at: datetime, report: str = "") -> ProbationState:
        """Let the version on probation fail."""
        trial = self.watched
        if trial is None:
            return self
        return replace(
            self._ended(trial, Phase.FAILED),
            # A failed version's reports are no baseline for the next one.
            recent=tuple((v, accuracy) for v, accuracy in self.recent if v != trial.stay.version),
            failure=Failure(trial.stay.id, trial.stay.version, source, reason, at, report=report),
        )

    def _judged(
        self, report: ProductionReport, at: datetime, settings: ProbationSettings
    ) -> ProbationState:
        """Count a report as healthy or critical; enough critical ones in a row are a failure."""
        trial, accuracy, verdicts = self.watched, report.accuracy, dict[str, bool]()
        if trial is None or Source.FEED not in settings.watch:
            return self
        base = trial.baseline
        if accuracy is not None and base is None:
            # Without earlier reports its own first ones become the baseline.
            first = (*trial.first, accuracy)
            if len(first) == FEWEST:
                own = f"its own first {FEWEST} reports"
                base, first = _baseline(first, own, settings.drop), ()
            trial = replace(trial, first=first, baseline=base)
        elif accuracy is not None and base is not None:
            why = f"accuracy {accuracy:.4f}, below {base.limit:.4f}; {base.of} had {base.level:.4f}"
            verdicts[why] = accuracy < base.limit
        slow, latency = settings.max_latency_ms, report.avg_latency_ms
        if slow is not None and latency is not None:
            verdicts[f"latency {latency:g} ms, above {slow:g}"] = latency > slow
        busy, throughput = settings.min_throughput_qps, report.throughput_qps
        if busy is not None and throughput is not None:
            verdicts[f"throughput {throughput:g} /s, below {busy:g}"] = throughput < busy
        critical = [why for why, is_critical in verdicts.items() if is_critical]
        if critical:
            trial = replace(trial, in_a_row=trial.in_a_row + 1)
        elif verdicts:
            trial = replace(trial, in_a_row=0, healthy=trial.healthy + 1)
        judged = replace(self, trial=trial)
        if not critical or trial.in_a_row < settings.in_a_row:
            return judged
        last = "; ".join(critical)
        why = f"{trial.in_a_row} reports in a row were critical, the last one: {last}"
        return judged.fail(Source.FEED, why, at, report=report.id)

    def _ended(self, trial: Trial, result: Phase) -> ProbationState:
        return replace(
            self,
            trial=replace(trial, phase=result),
            results={**self.results, trial.stay.version: result},
            untagged=tuple(dict.fromkeys((*self.untagged, trial.stay.version))),
        )

    def step_of(self, report: str) -> int:
        """Return the number of a report; 0 if its id is not stored."""
        if report not in self.seen:
            return 0
        return self.steps - len(self.seen) + self.seen.index(report) + 1

    def answer(
        self, report: ProductionReport, after: ProbationState, *, logged: bool
    ) -> ReportAnswer:
        """Return the answer about the version that was in production when a report was counted.

        ``after`` is the state after what was decided has been carried out.
        """
        trial, failure, step = self.trial, after.failure, self.step_of(report.id)
        version = trial.stay.version if trial is not None else ""
        mine = trial is not None and failure is not None and failure.promotion == trial.stay.id
        if failure is not None and (mine or failure.report == report.id):
            status = "rolled_back" if failure.back else "failed"
            back = failure.back or failure.version
            return ReportAnswer(status, failure.version, back, failure.reason, step, logged)
        status = "ok" if self.watched is None else "watching"
        return ReportAnswer(status, version, version, "", step, logged)

    def status(self) -> dict[str, Any] | None:
        """Return the status of the version in production, as JSON types; None if there is none."""
        trial, failure = self.trial, self.failure
        if trial is None:
            return None
        return {
            "version": trial.stay.version,
            "phase": str(trial.phase),
            "since": trial.stay.since.isoformat(timespec="seconds"),
            "until": trial.until.isoformat(timespec="seconds"),
            "reports": trial.healthy,
            "reports_needed": trial.needed,
            "comparisons": trial.compared,
            "critical_in_a_row": trial.in_a_row,
            "baseline": None if trial.baseline is None else asdict(trial.baseline),
            "last_failure": None if failure is None else failure.status(),
        }


def ways_back(stays: Sequence[Tenure], results: Mapping[str, Phase]) -> tuple[str, ...]:
    """Return the versions to go back to, the best first.

    First those that passed, then the others that were in production, both with the newest first.
    Failed versions are left out.
    """
    newest_first = dict.fromkeys(stay.version for stay in reversed(stays))
    old = [v for v in newest_first if v != stays[-1].version and results.get(v) != Phase.FAILED]
    return tuple(sorted(old, key=lambda v: results.get(v) != Phase.PASSED))


def _baseline(values: Sequence[float], of: str, drop: float) -> Baseline:
    """Return the median, and a limit below it that noise rarely reaches three times in a row.

    The noise is the larger one of two estimates, since either may be too small by chance: the
    scaled median absolute deviation, and the standard deviation without the farthest value.
    """
    level = statistics.median(values)
    nearest = sorted(values, key=lambda value: abs(value - level))
    deviation = statistics.median(abs(value - level) for value in values)
    noise = max(1.4826 * deviation, statistics.pstdev(nearest[:-1]))
    return Baseline(level, level - max(drop, SIGMAS * noise), of)


def in_one_line(status: Mapping[str, Any] | None) -> str:
    """Return the result of ``ProbationState.status`` in one line of text; a dash for None."""
    if status is None:
        return "-"
    version, failure = status["version"], status["last_failure"]
    if status["phase"] == Phase.PASSED:
        return f"version {version} passed"
    if status["phase"] == Phase.WATCHING:
        baseline = status["baseline"]
        limit = f", critical below {baseline['limit']:.4f}" if baseline else ""
        return (
            f"version {version}, until {status['until'][:16].replace('T', ' ')} UTC at least: "
            f"{status['reports']} of {status['reports_needed']} reports healthy, "
            f"{status['critical_in_a_row']} critical in a row{limit}"
        )
    if status["phase"] == Phase.FAILED:
        to = "the rollback is pending" if failure["back"] is None else "no way back"
        return f"version {version} failed, {to}: {failure['reason']}"
    if failure is not None and failure["back"] == version:
        return f"version {version} is back; {failure['version']} failed: {failure['reason']}"
    return f"version {version} is not on probation"
