# SPDX-License-Identifier: Apache-2.0
"""What people see of a session: lines, a table and commands in the terminal, and plots."""

from __future__ import annotations

import io
import logging
import math
import os
import shlex
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from fl_app.events import RoundReport
from fl_app.strategy.records import DECIDED, Artifacts, SessionReport, ShadowReport
from fl_registry import ModelManager, ModelStore, Stage, StoreUnavailable, Tracker
from fl_registry.home import DEFAULT_MODEL_NAME
from fl_registry.mlflow.address import absolute_address
from fl_registry.numbers import number_text
from fl_registry.redaction import one_line, redact

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH = 100
NAMED_CLASSES = 20
"""Classes that are named beside their curves."""


def round_line(report: RoundReport, metric: str | None, seconds_left: float) -> str:
    """Return one line on a round, with the remaining time at this pace."""
    head = f"round {report.round}/{report.num_rounds}"
    minutes, seconds = divmod(round(seconds_left), 60)
    left = f"{minutes} min {seconds:02d} s left" if minutes else f"{seconds} s left"
    if report.failed:
        return f"{head}  failed: {report.reason}  ({left})"
    known = report.metrics.get(metric) if metric else None
    score = "" if known is None else f"  {metric} {number_text(known)}"
    return f"{head}{score}  version {report.version} {_stage(report)}  ({left})"


def shadow_line(report: ShadowReport) -> str:
    """Return one line on a shadow round: its scores, the result so far, and its cost."""
    test, scores, size = report.test, report.scores, report.extra_bytes
    if report.why and not size:
        return f"shadow evaluation of version {report.candidate}: {report.why}"
    new = "nothing new"
    if scores:
        new = f"{number_text(scores['candidate'])} against {number_text(scores['champion'])}"
    parts = [
        f"shadow round {test.rounds}/{report.budget}  version {report.candidate}",
        f"{report.metric} {new}",
        *_counts_and_evidence(report),
        f"{size / 1e6:.1f} MB extra" if size >= 1e6 else f"{size / 1e3:.1f} kB extra",
        f"decided: {test.outcome}" if report.why == DECIDED else report.why,
    ]
    return "  ".join(filter(None, parts))


def shadow_reason(report: ShadowReport) -> str:
    """Return the result of a shadow evaluation, for the version's tag and the journal."""
    test, (counts, evidence) = report.test, _counts_and_evidence(report)
    verb = "undecided beside" if test.outcome == "undecided" else f"{test.outcome} than"
    result = f"{verb} version {report.champion} on the nodes: {counts}"
    if math.isfinite(test.mean_difference):
        side = "better" if test.mean_difference > 0 else "worse"
        result += f", {report.metric} {number_text(abs(test.mean_difference))} {side} on average"
    rounds = f"{test.rounds} round{'' if test.rounds == 1 else 's'}"
    why = "" if report.why == DECIDED else f"; {report.why}"
    return f"{result}, {evidence}, {rounds}{why}"


def _counts_and_evidence(report: ShadowReport) -> tuple[str, str]:
    test, what = report.test, "pairs of nodes" if report.ab_test else "nodes"
    equal = f", equal on {test.equal}" if test.equal else ""
    total = test.better + test.worse + test.equal
    best = max(test.evidence_better, test.evidence_worse)
    side = "better" if test.evidence_better >= test.evidence_worse else "worse"
    return (
        f"better on {test.better}, worse on {test.worse}{equal} of {total} {what}",
        f"evidence {best:.3g} for {side} ({test.needed:.3g} decides)",
    )


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
            "-" if score is None else number_text(score),
            "failed" if report.failed else _stage(report),
            report.reason,
        )
    text = io.StringIO()
    Console(file=text, width=WIDTH, color_system=None).print(table)
    return text.getvalue().rstrip()


def _stage(report: RoundReport) -> str:
    waits = " (pending approval)" if report.approval == "pending" else ""
    return f"{report.stage}{waits}"


def next_commands(reports: Sequence[RoundReport], store: ModelStore, home: Path) -> str:
    """Return the commands to type next, one a line.

    Parameters
    ----------
    reports : Sequence[RoundReport]
        The session's rounds.
    store : ModelStore
        Where its versions are; commands read only those in MLflow.
    home : Path
        The app's home, named if it is not the default of the commands.
    """
    if not isinstance(store, ModelManager):
        return "these versions are in memory only, and are lost when this process ends"
    lines = ["versions"]
    waiting = [report.version for report in reports if report.approval == "pending"]
    if waiting:
        production = store.get_latest_version(Stage.PRODUCTION)
        lines += [f"compare {production} {waiting[-1]}"] if production else []
        lines += [f"approve {waiting[-1]} --note 'why'"]
    name, uri = store.registered_model_name, store.tracking_uri
    where = "" if name == DEFAULT_MODEL_NAME else f" --name {shlex.quote(name)}"
    address = ""
    if uri != absolute_address(None, home):
        address = f" --tracking-uri {shlex.quote(redact(uri, uri))}"
    command = "uv run fl-app" if "UV" in os.environ else "fl-app"
    if home != Path(os.environ.get("FL_APP_HOME") or "~/.fl-app").expanduser().resolve():
        command = f"FL_APP_HOME={shlex.quote(str(home))} {command}"
    typed = [f"{line}{where}{address}" for line in (*lines, "serve")]
    return "\n  ".join(["next:", *(f"{command} {line}" for line in (*typed, f"ui{address}"))])


logger = logging.getLogger("flwr.fl_app")


def plot_metrics(report: SessionReport, folder: Path) -> Iterable[Path]:
    """Draw each metric over the steps, staged versions marked, into ``metrics.png``.

    A metric by class, such as ``mAP50/fish``, is a thin line below ``mAP50``, named beside it.
    """
    from matplotlib.figure import Figure

    parts = [name for name in report.history if name.rpartition("/")[0] in report.history]
    names = sorted(report.history.keys() - set(parts))
    if not names:
        return []
    figure = Figure(figsize=(9 if parts else 7, 2.2 * len(names)), layout="constrained")
    staged = [r.round for r in report.rounds if r.stage != "None" and r.version is not None]
    rows = figure.subplots(len(names), squeeze=False, sharex=True)[:, 0]
    for axes, name in zip(rows, names, strict=True):
        own = [part for part in parts if part.rpartition("/")[0] == name]
        _plot_parts(axes, {part: report.history[part] for part in own})
        steps, values = zip(*report.history[name], strict=True)
        axes.plot(steps, values, color="black", marker="o", markersize=3)
        for step in staged:
            axes.axvline(step, color="0.85", zorder=0)
        axes.set_title(_plain(name), loc="left", fontsize=9)
        axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_xlabel("round (grey: the version went to Staging)")
    path = folder / "metrics.png"
    figure.savefig(path, dpi=110)
    return [path]


def _plot_parts(axes: Axes, parts: Mapping[str, tuple[tuple[int, float], ...]]) -> None:
    """Draw the lines of a metric's classes and name them, the lowest first, with their ends."""
    lowest = sorted(parts, key=lambda part: parts[part][-1][1])
    for number, part in enumerate(lowest):
        named = number < NAMED_CLASSES
        label = f"{part.rpartition('/')[2]} {parts[part][-1][1]:.3f}" if named else None
        colour = f"C{number % 10}" if named else "0.8"
        style = "-" if number < 10 else ":"
        axes.plot(
            *zip(*parts[part], strict=True),
            color=colour,
            linestyle=style,
            linewidth=0.8,
            label=label and _plain(label),
        )
    if lowest:
        more = len(lowest) - NAMED_CLASSES
        title = f"lowest of {len(lowest)} classes" if more > 0 else None
        axes.legend(
            loc="upper left", bbox_to_anchor=(1.01, 1), fontsize=6, frameon=False, title=title
        )


def _plain(text: str) -> str:
    return text.replace("$", r"\$")  # matplotlib reads formulas between dollar signs


def log_artifacts(report: SessionReport, tracker: Tracker, artifacts: Sequence[Artifacts]) -> None:
    """Have the plots and files of a session made, and log them to its MLflow run.

    One that cannot be made or stored is left out with a warning: the versions are worth more.

    Raises
    ------
    StoreUnavailable
        MLflow does not answer; all are logged again then.
    """
    for make in artifacts:
        try:
            with tempfile.TemporaryDirectory(prefix="fl-app-") as folder:
                for path in make(report, Path(folder)):
                    tracker.log_artifact(path)
        except StoreUnavailable:
            raise
        except Exception as error:  # noqa: BLE001 - the user's code, or a full disk
            name = getattr(make, "__name__", type(make).__name__)
            logger.warning("%s is not logged: %s", name, one_line(error))
