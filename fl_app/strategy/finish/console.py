# SPDX-License-Identifier: Apache-2.0
"""The lines of rounds and the table of a session in the terminal."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from fl_app.events import RoundReport
from fl_app.strategy.records import DECIDED, ShadowReport

WIDTH = 100


def round_line(report: RoundReport, metric: str | None, seconds_left: float) -> str:
    """Return one line on a round, with the remaining time at this pace."""
    head = f"round {report.round}/{report.num_rounds}"
    left = f"{_duration(seconds_left)} left"
    if report.failed:
        return f"{head}  failed: {report.reason}  ({left})"
    known = report.metrics.get(metric) if metric else None
    score = "" if known is None else f"  {metric} {known:.4f}"
    return f"{head}{score}  version {report.version} {_stage(report)}  ({left})"


def shadow_line(report: ShadowReport) -> str:
    """Return one line on a shadow round: its scores, the result so far, and its cost."""
    test, scores = report.test, report.scores
    if report.why and not report.extra_bytes:
        return f"shadow evaluation of version {report.candidate}: {report.why}"
    new = "nothing new"
    if scores:
        new = f"{scores['candidate']:.4f} against {scores['champion']:.4f}"
    parts = [
        f"shadow round {test.rounds}/{report.budget}  version {report.candidate}",
        f"{report.metric} {new}",
        _counts(report),
        f"evidence {_evidence(report)}",
        f"{_bytes(report.extra_bytes)} extra",
        f"decided: {test.outcome}" if report.why == DECIDED else report.why,
    ]
    return "  ".join(filter(None, parts))


def shadow_reason(report: ShadowReport) -> str:
    """Return the result of a shadow evaluation, for the version's tag and the journal."""
    test = report.test
    verb = "undecided beside" if test.outcome == "undecided" else f"{test.outcome} than"
    result = f"{verb} version {report.champion} on the nodes: {_counts(report)}"
    if math.isfinite(test.mean_difference):
        side = "better" if test.mean_difference > 0 else "worse"
        result += f", {report.metric} {abs(test.mean_difference):.4f} {side} on average"
    rounds = f"{test.rounds} round{'' if test.rounds == 1 else 's'}"
    why = "" if report.why == DECIDED else f"; {report.why}"
    return f"{result}, evidence {_evidence(report)}, {rounds}{why}"


def _counts(report: ShadowReport) -> str:
    test, what = report.test, "pairs of nodes" if report.ab_test else "nodes"
    equal = f", equal on {test.equal}" if test.equal else ""
    total = test.better + test.worse + test.equal
    return f"better on {test.better}, worse on {test.worse}{equal} of {total} {what}"


def _evidence(report: ShadowReport) -> str:
    test = report.test
    best = max(test.evidence_better, test.evidence_worse)
    side = "better" if test.evidence_better >= test.evidence_worse else "worse"
    return f"{best:.3g} for {side} ({test.needed:.3g} decides)"


def _bytes(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 1e6 else f"{count / 1e3:.1f} kB"


def session_table(reports: Sequence[RoundReport], metric: str | None) -> str:
    """Return the table of a session's rounds: version, round, metric, stage, why."""
    table = Table(box=None, pad_edge=False)
    for name in ("version", "round", metric or "metric", "stage", "why"):
        table.add_column(name, overflow="fold")
    for report in reports:
        score = report.metrics.get(metric) if metric else None
        table.add_row(
            report.version or "-",
            str(report.round),
            "-" if score is None else f"{score:.4f}",
            "failed" if report.failed else _stage(report),
            report.reason,
        )
    text = io.StringIO()
    Console(file=text, width=WIDTH, color_system=None).print(table)
    return text.getvalue().rstrip()


def _stage(report: RoundReport) -> str:
    waits = " (pending approval)" if report.approval == "pending" else ""
    return f"{report.stage}{waits}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
