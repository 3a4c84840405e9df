# SPDX-License-Identifier: Apache-2.0
"""What people and programs see of a probation: the answer to a report, and where a version stands.

Pure; what they see is decided elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from fl_app.retraining.probation.state import (
    Failure,
    Phase,
    ProbationState,
    ProductionReport,
    Trial,
)


@dataclass(frozen=True)
class ReportAnswer:
    """What a report led to.

    Attributes
    ----------
    status : str
        ``ok``: the version is not on probation (any more); ``watching``: it is; ``rolled_back``:
        it had to go; ``failed``: it should, but there is nothing to go back to.
    version : str
        The version that the report was about.
    production : str
        The version in production now.
    reason : str
        The numbers, where it failed.
    report : int
        Number of the report, and its step in the curves.
    logged : bool
        Whether the version's run holds its numbers.
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
    """Say what became of the version that was in production when the report was counted."""
    trial, failure, step = counted.trial, after.failure, counted.step_of(report.id)
    version = trial.version if trial is not None else ""
    mine = trial is not None and failure is not None and failure.promotion == trial.id
    if failure is not None and (mine or failure.report == report.id):
        status = "rolled_back" if failure.back else "failed"
        back = failure.back or failure.version
        return ReportAnswer(status, failure.version, back, failure.reason, step, logged)
    watching = trial is not None and trial.phase is Phase.WATCHING
    return ReportAnswer("watching" if watching else "ok", version, version, "", step, logged)


def shown(trial: Trial, failure: Failure | None) -> dict[str, Any]:
    """Say where a version stands, as JSON can hold it."""
    last = None
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


def in_one_line(shown: Mapping[str, Any] | None) -> str:
    """Say in one line what ``shown`` tells; a dash for None."""
    if shown is None:
        return "-"
    version, failure = shown["version"], shown["last_failure"]
    if shown["phase"] == Phase.PASSED:
        return f"version {version} passed"
    if shown["phase"] == Phase.WATCHING:
        baseline = shown["baseline"]
        limit = f", critical below {baseline['limit']:.4f}" if baseline else ""
        return (
            f"version {version}, until {shown['until'][:16].replace('T', ' ')} UTC at least: "
            f"{shown['reports']} of {shown['reports_needed']} reports all right, "
            f"{shown['critical_in_a_row']} critical in a row{limit}"
        )
    if shown["phase"] == Phase.FAILED:
        to = "the way back is still to be taken" if failure["back"] is None else "no way back"
        return f"version {version} failed, {to}: {failure['reason']}"
    if failure is not None and failure["back"] == version:
        return f"version {version} is back; {failure['version']} failed: {failure['reason']}"
    return f"version {version} is not on probation"
