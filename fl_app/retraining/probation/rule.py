# SPDX-License-Identifier: Apache-2.0
"""When a promoted version passes its probation, and when it fails: state in, state out. Pure.

`fl_app.retraining.probation.probation` carries it out.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from fl_app.retraining.probation.state import (
    Baseline,
    Failure,
    Phase,
    ProbationSettings,
    ProbationState,
    ProductionReport,
    Source,
    Trial,
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

_EVER = datetime.min.replace(tzinfo=UTC)


def follow(
    state: ProbationState, stays: Sequence[Tenure], settings: ProbationSettings
) -> ProbationState:
    """Begin the probation of the version in production, if it has not begun.

    A version that a rollback brought back is not put on probation again.
    """
    if not stays:
        return state
    if state.journal != stays[0].id:
        state = ProbationState(stays[0].id, steps=state.steps, seen=state.seen)
    if state.trial is not None and state.trial.number >= stays[-1].number:
        return state
    now = stays[-1]
    if state.trial is not None:
        until = next(stay.since for stay in stays if stay.number > state.trial.number)
        state = settle(state, until.timestamp())
    # The registered score is no baseline for the operator's reports: it is another metric on other
    # data. The reports on the version before are one.
    before = [accuracy for _, accuracy in state.recent[-RECENT:]]
    of = f"the {len(before)} reports before its promotion"
    trial = Trial(
        id=now.id,
        number=now.number,
        version=now.version,
        since=now.since.timestamp(),
        until=now.since.timestamp() + settings.hours * 3600,
        needed=settings.reports,
        # A version that came back is not watched: two versions that are both bad on new data would
        # alternate, and a person who brings one back has the last word.
        phase=Phase.WATCHING if settings.watch and not now.returned else Phase.EXEMPT,
        baseline=_baseline(before, of, settings.drop) if len(before) >= FEWEST else None,
    )
    return replace(state, trial=trial)


def settle(state: ProbationState, at: float) -> ProbationState:
    """Let a version pass after its hours, if enough reports or a comparison were healthy."""
    trial = state.trial
    if trial is None or trial.phase is not Phase.WATCHING or trial.in_a_row:
        return state
    # A known good version is one that was seen to be good. Hours alone prove nothing: without a
    # report or a comparison it stays on probation.
    if at < trial.until or (trial.healthy < trial.needed and not trial.compared):
        return state
    return _ended(state, trial, Phase.PASSED)


def add_report(
    state: ProbationState, report: ProductionReport, at: float, settings: ProbationSettings
) -> ProbationState:
    """Add an operator's report on the version in production."""
    trial = state.trial
    if trial is None or report.id in state.seen:
        return state
    state = replace(state, steps=state.steps + 1, seen=(*state.seen, report.id)[-SEEN:])
    if trial.phase is Phase.WATCHING and Source.FEED in settings.watch:
        state = _judged(state, trial, report, at, settings)
    failed = state.trial is not None and state.trial.phase is Phase.FAILED
    if report.accuracy is not None and not failed:
        recent = (*state.recent, (trial.version, report.accuracy))
        state = replace(state, recent=recent[-STORED:])
    return settle(state, at)


def add_comparison(
    state: ProbationState,
    evidence: Evidence,
    settings: ProbationSettings,
    *,
    rival: str | None,
    registered: float | None,
    at: float,
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
    trial, metric = state.trial, settings.metric or ""
    mine = _number(evidence.metrics.get(metric))
    if trial is None or trial.phase is not Phase.WATCHING or mine is None:
        return state
    theirs = _number((evidence.champion or {}).get(metric))
    other = registered if theirs is None else theirs
    if other is None:
        return state
    # Each source is compared with its own past. A session has something better: both versions on
    # the same data. A fall that the rival shows as well is a reason to train, not to go back.
    fall = other - mine if settings.mode == "max" else mine - other
    if fall <= settings.drop:
        return settle(replace(state, trial=replace(trial, compared=trial.compared + 1)), at)
    if theirs is None:
        why = f"{metric} is {mine:.4f}, and it was registered with {other:.4f}"
        return fail(state, Source.FEDERATED, why, at=at)
    verdict = BeatsChampion(metric, mode=settings.mode, confidence=settings.confidence)(
        Evidence(
            metrics=evidence.champion or {},
            champion=evidence.metrics,
            results=evidence.champion_results,
            champion_results=evidence.results,
        )
    )
    if not verdict.passed:  # a large fall, but chance may explain it
        return state
    return fail(
        state, Source.FEDERATED, f"on the same data version {rival}'s {verdict.reason}", at=at
    )


def fail(
    state: ProbationState, source: Source, reason: str, *, at: float, report: str = ""
) -> ProbationState:
    """Let the version on probation fail."""
    trial = state.trial
    if trial is None or trial.phase is not Phase.WATCHING:
        return state
    return replace(
        _ended(state, trial, Phase.FAILED),
        # A failed version's reports are no baseline for the next one.
        recent=tuple((v, accuracy) for v, accuracy in state.recent if v != trial.version),
        failure=Failure(trial.id, trial.version, source, reason, at, report=report),
    )


def ways_back(stays: Sequence[Tenure], results: Mapping[str, Phase]) -> tuple[str, ...]:
    """Return the versions to go back to, the best first.

    First those that passed, then the others that were in production, both with the newest first.
    Failed versions are left out.
    """
    newest_first = dict.fromkeys(stay.version for stay in reversed(stays))
    old = [v for v in newest_first if v != stays[-1].version and results.get(v) != Phase.FAILED]
    return tuple(sorted(old, key=lambda v: results.get(v) != Phase.PASSED))


def drift_since(requests: Sequence[Mapping[str, Any]], since: datetime) -> str:
    """Return the reason of a drift alarm that began after a promotion, or an empty text.

    An earlier alarm does not count, since the version was promoted in spite of it. It lasts until
    the next session, which begins a new reference.

    Parameters
    ----------
    requests : Sequence[Mapping[str, Any]]
        The monitor's history, oldest first.
    since : datetime
        Time of the promotion.
    """
    drifts = [
        (datetime.fromisoformat(request["created"]), str(request["reason"]))
        for request in requests
        if request["kind"] == TriggerKind.DRIFT
    ]
    sessions = [datetime.fromisoformat(r["started"]) for r in requests if r["started"]]
    for requested, reason in drifts:
        reference = max((time for time in sessions if time <= requested), default=_EVER)
        if requested > since and not any(reference < earlier <= since for earlier, _ in drifts):
            return reason
    return ""


def _judged(
    state: ProbationState,
    trial: Trial,
    report: ProductionReport,
    at: float,
    settings: ProbationSettings,
) -> ProbationState:
    """Count a report as healthy or critical; enough critical ones in a row are a failure."""
    trial, verdicts = _verdicts(trial, report, settings)
    if not verdicts:
        return replace(state, trial=trial)
    critical = [why for why in verdicts if why]
    if not critical:
        return replace(state, trial=replace(trial, in_a_row=0, healthy=trial.healthy + 1))
    trial = replace(trial, in_a_row=trial.in_a_row + 1)
    state = replace(state, trial=trial)
    if trial.in_a_row < settings.in_a_row:
        return state
    why = f"{trial.in_a_row} reports in a row were critical, the last one: {'; '.join(critical)}"
    return fail(state, Source.FEED, why, at=at, report=report.id)


def _verdicts(
    trial: Trial, report: ProductionReport, settings: ProbationSettings
) -> tuple[Trial, list[str]]:
    """Return for each number that can be judged what is critical about it, or an empty text."""
    verdicts = []
    if report.accuracy is not None and trial.baseline is not None:
        verdicts.append(_too_low(report.accuracy, trial.baseline))
    elif report.accuracy is not None:
        trial = _with_first(trial, report.accuracy, settings.drop)
    slow, busy = settings.max_latency_ms, settings.min_throughput_qps
    if slow is not None and report.avg_latency_ms is not None:
        over = report.avg_latency_ms > slow
        verdicts.append(f"latency {report.avg_latency_ms:g} ms, above {slow:g}" if over else "")
    if busy is not None and report.throughput_qps is not None:
        under = report.throughput_qps < busy
        verdicts.append(f"throughput {report.throughput_qps:g} /s, below {busy:g}" if under else "")
    return trial, verdicts


def _too_low(accuracy: float, baseline: Baseline) -> str:
    if accuracy >= baseline.limit:
        return ""
    return (
        f"accuracy {accuracy:.4f}, below {baseline.limit:.4f}; "
        f"{baseline.of} had {baseline.level:.4f}"
    )


def _with_first(trial: Trial, accuracy: float, drop: float) -> Trial:
    """Add one of the first accuracies, which are the baseline without earlier reports."""
    first = (*trial.first, accuracy)
    if len(first) < FEWEST:
        return replace(trial, first=first)
    own = _baseline(first, f"its own first {FEWEST} reports", drop)
    return replace(trial, first=(), baseline=own)


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


def _ended(state: ProbationState, trial: Trial, result: Phase) -> ProbationState:
    return replace(
        state,
        trial=replace(trial, phase=result),
        results={**state.results, trial.version: result},
        untagged=tuple(dict.fromkeys((*state.untagged, trial.version))),
    )


def _number(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
