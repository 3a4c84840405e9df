# SPDX-License-Identifier: Apache-2.0
"""The status of a probation, for people and programs. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from fl_app.retraining.probation.state import Phase, ProbationState, ProductionReport


@dataclass(frozen=True)
class ReportAnswer:
    """The answer to a report.

    Attributes
    ----------
    status : str
        ``ok``: the version is not on probation; ``watching``: it is; ``rolled_back``: it failed and
        another one is back; ``failed``: it failed, and there is none to go back to.
    version : str
        The version that the report was about.
    production : str
        The version in production now.
    reason : str
        The numbers, if it failed.
    report : int
        Number of the report, and its step in the metrics of the run.
    logged : bool
        Whether its numbers are in the version's run.
    """

    status: str
    version: str
    production: str
    reason: str
    report: int
    logged: bool


def answer_of(
    report: ProductionReport, counted: ProbationState, after: ProbationState, *, logged: bool
) -> ReportAnswer:
    """Return the answer about the version that was in production when the report was counted."""
    trial, failure, step = counted.trial, after.failure, counted.step_of(report.id)
    version = trial.version if trial is not None else ""
    mine = trial is not None and failure is not None and failure.promotion == trial.id
    if failure is not None and (mine or failure.report == report.id):
        status = "rolled_back" if failure.back else "failed"
        back = failure.back or failure.version
        return ReportAnswer(status, failure.version, back, failure.reason, step, logged)
    watching = trial is not None and trial.phase is Phase.WATCHING
    return ReportAnswer("watching" if watching else "ok", version, version, "", step, logged)


def status_of(state: ProbationState) -> dict[str, Any] | None:
    """Return the status of the version in production, as JSON types; None if there is none."""
    trial, failure, last = state.trial, state.failure, None
    if trial is None:
        return None
    if failure is not None:
        named = ("version", "source", "reason", "back")
        last = {k: v for k, v in asdict(failure).items() if k in named}
        last["time"] = _iso(failure.time)
    return {
        "version": trial.version,
        "phase": str(trial.phase),
        "since": _iso(trial.since),
        "until": _iso(trial.until),
        "reports": trial.healthy,
        "reports_needed": trial.needed,
        "comparisons": trial.compared,
        "critical_in_a_row": trial.in_a_row,
        "baseline": None if trial.baseline is None else asdict(trial.baseline),
        "last_failure": last,
    }


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def in_one_line(status: Mapping[str, Any] | None) -> str:
    """Return the result of ``status_of`` in one line of text; a dash for None."""
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
