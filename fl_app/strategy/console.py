# SPDX-License-Identifier: Apache-2.0
"""What a person reads in the terminal: a line a round and a table at the end."""

from __future__ import annotations

import io
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from fl_app.events import RoundReport

WIDTH = 100


def round_line(report: RoundReport, metric: str | None, seconds_left: float) -> str:
    """One line on a round, with the time that the rest will take at this pace."""
    head = f"round {report.round}/{report.num_rounds}"
    left = f"{_duration(seconds_left)} left"
    if report.failed:
        return f"{head}  failed: {report.reason}  ({left})"
    score = f"  {metric} {report.metrics[metric]:.4f}" if metric else ""
    return f"{head}{score}  version {report.version} {_stage(report)}  ({left})"


def session_table(reports: Sequence[RoundReport], metric: str | None) -> str:
    """All rounds of a session: version, round, metric, stage, why."""
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


def next_commands(reports: Sequence[RoundReport]) -> list[str]:
    """What to type now."""
    waiting = [r.version for r in reports if r.approval == "pending"]
    promote = [f"fl-app promote {waiting[-1]}"] if waiting else []
    return ["fl-app versions", *promote, "fl-app ui"]


def _stage(report: RoundReport) -> str:
    waits = " (pending approval)" if report.approval == "pending" else ""
    return f"{report.stage}{waits}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
