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

import numpy as np

from fl_app.retraining.probation.reports import (
    ProbationSettings,
    ProductionReport,
    ReportAnswer,
    Source,
)
from fl_app.retraining.requests import TriggerKind
from fl_registry import BeatsChampion, Evidence, Tenure

FEWEST = 10
"""Reports of one version in a baseline, at least."""
RECENT = 100
"""Reports in a baseline, at most."""
STORED = 2 * RECENT
"""Accuracies that are stored: more than ``RECENT``, since those of a failed version are dropped."""
RARELY = 5e-6
"""Chance of a false rollback at each report by normal noise: one in 200 times in 1,000 reports.

Shares of few predictions are skewed, which takes it to one in 100."""
_SURE = 2.0  # standard errors above the estimated autocorrelation
_MOST_ALIKE = 0.95
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
    before : tuple[float, ...]
        The accuracies before the promotion; empty if they are fewer than ``FEWEST``.
    own : tuple[float, ...]
        Its own first accuracies that were not critical; with ``before`` at most ``RECENT``.
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
    before: tuple[float, ...] = ()
    own: tuple[float, ...] = ()
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
        before = tuple(accuracy for _, accuracy in state.recent[-RECENT:])
        trial = Trial(
            stay=now,
            until=now.since + timedelta(hours=settings.hours),
            needed=settings.reports,
            # A version that came back is not watched: two versions that are both bad on new data
            # would alternate, and a person who brings one back has the last word.
            phase=Phase.WATCHING if settings.watch and not now.returned else Phase.EXEMPT,
            before=before if len(before) >= FEWEST else (),
        )
        return replace(state, trial=replace(trial, baseline=_baseline(trial, settings)))

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
        if accuracy is not None and base is not None:
            why = f"accuracy {accuracy:.4f}, below {base.limit:.4f}; {base.of} had {base.level:.4f}"
            verdicts[why] = accuracy < base.limit
        learns = accuracy is not None and not any(verdicts.values())
        if accuracy is not None and learns and len(trial.before) + len(trial.own) < RECENT:
            trial = replace(trial, own=(*trial.own, accuracy))
            trial = replace(trial, baseline=_baseline(trial, settings))
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


def _baseline(trial: Trial, settings: ProbationSettings) -> Baseline | None:
    """Return the level of a version's reports, and a limit that noise alone rarely falls below.

    The level is the median before the promotion, or that of its own reports if it is lower: a few
    reports that follow each other may all lie too high. None if neither has ``FEWEST`` reports.
    """
    known = {
        f"the {len(trial.before)} reports before its promotion": trial.before,
        f"its own first {len(trial.own)} reports": trial.own,
    }
    levels = {
        of: statistics.median(values) for of, values in known.items() if len(values) >= FEWEST
    }
    if not levels:
        return None
    of = min(levels, key=lambda of: levels[of])
    noise = [value - statistics.median(values) for values in known.values() for value in values]
    fall = max(settings.drop, _reach(noise, settings.in_a_row))
    return Baseline(levels[of], levels[of] - fall, of)


def _reach(noise: Sequence[float], in_a_row: int) -> float:
    """Return how far below their level noise alone takes so many reports in a row, `RARELY`.

    The deviation is the larger one of two estimates,
    since either may be too small by chance: the scaled median absolute deviation, and the standard
    deviation without the farthest value. The more alike reports in a row are, the less each of them
    says beside the one before, and the less certain are level and deviation: both make the fall
    larger, by the autocorrelation at its upper limit, without the bias of M. G. Kendall (Biometrika
    41, 1954).
    """
    values = np.asarray(noise, float)
    sizes = np.abs(values)
    rest = np.delete(values, sizes.argmax())
    deviation = max(1.4826 * float(np.median(sizes)), float(rest.std()))
    if not deviation:
        return 0.0
    centred = np.clip(values, -3 * deviation, 3 * deviation)  # one outlier hides no correlation
    centred -= centred.mean()
    alike = float(centred[1:] @ centred[:-1]) / max(float(centred @ centred), 1e-300)
    alike += (1 + 3 * alike) / len(values)
    alike += _SURE * math.sqrt(max(0.0, 1 - alike**2) / len(values))
    alike = min(max(0.0, alike), _MOST_ALIKE)
    different = 1 + (in_a_row - 1) * (1 - alike)  # of the reports in a row
    sigmas = -statistics.NormalDist().inv_cdf(RARELY ** (1 / different))
    few = (9 + 5 * alike / (1 - alike)) / len(values)  # fitted (benchmarks/probation.py)
    return deviation * sigmas * (1 + few)


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
        if baseline and baseline["limit"] <= 0:
            limit = ", no accuracy is critical since reports differ as much without a fall"
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
