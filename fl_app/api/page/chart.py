# SPDX-License-Identifier: Apache-2.0
"""A metric of the versions, round after round: its data for the table, and as an SVG picture.

The picture is drawn on the server, since the page has no script.
"""

from __future__ import annotations

import io
import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby
from typing import TYPE_CHECKING, Any, NamedTuple

from fl_app.api.page.registry_view import PROMOTING, STAGING, Row, number_text, score_metric

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from fl_registry.journal.entries import Entry

# Bounds on what a visit costs, however many versions there are.
MOST_POINTS = 200
MOST_METRICS = 60
MOST_ROUNDS = 32
"""Rounds that are named at the axis."""


class Theme(NamedTuple):
    """Colours, the same as in the style sheet."""

    text: str
    grid: str
    card: str
    curve: str
    production: str
    rollback: str


THEMES = {
    "light": Theme("#59636f", "#d5dae1", "#ffffff", "#1f5fbf", "#17693a", "#b3261e"),
    "dark": Theme("#a0abb8", "#333d49", "#181f27", "#7db4ff", "#73d296", "#ff9a92"),
}


@dataclass(frozen=True)
class Point:
    """A version in the chart.

    Attributes
    ----------
    version, round : str
        Which.
    session : str
        When the first version of its session was registered.
    value : float
        Its metric.
    staged : bool
        Whether it ever came to Staging or to Production.
    """

    version: str
    round: str
    session: str
    value: float
    staged: bool


@dataclass(frozen=True)
class Promotion:
    """A move to Production.

    Attributes
    ----------
    place, end : int
        How many of the points were registered before it, and before the next one.
    version : str
        What came to Production.
    value : float
        Its metric.
    back : bool
        Whether it was a rollback.
    time : str
        When, ISO-8601.
    """

    place: int
    end: int
    version: str
    value: float
    back: bool
    time: str


@dataclass(frozen=True)
class Chart:
    """What is drawn of a metric.

    Attributes
    ----------
    metric, summary : str
        The metric, and a sentence that says what the chart shows.
    points : tuple[Point, ...]
        The versions that have it, oldest first.
    sessions : tuple[tuple[int, int], ...]
        Where each session begins and ends in the points.
    promotions : tuple[Promotion, ...]
        Those of versions that have the metric.
    left_out : int
        Versions that are older than the points.
    """

    metric: str
    summary: str
    points: tuple[Point, ...]
    sessions: tuple[tuple[int, int], ...]
    promotions: tuple[Promotion, ...]
    left_out: int


def metrics_of(rows: Sequence[Row]) -> tuple[str, ...]:
    """The metrics that the newest versions have; the one that gates look at first."""
    recent = rows[:MOST_POINTS]
    names = {name for row in recent for name, value in row["metrics"].items() if _is_drawn(value)}
    gated = [score_metric(row) for row in recent]
    first = [name for name in dict.fromkeys(gated) if name in names]
    plain = sorted(names, key=lambda name: ("/" in name, name))
    return tuple(dict.fromkeys((*first, *plain)))[:MOST_METRICS]


def chart_of(rows: Sequence[Row], entries: Sequence[Entry], metric: str) -> Chart | None:
    """Collect a metric of the newest versions; None where none has it.

    Parameters
    ----------
    rows : Sequence[Row]
        The versions, newest first.
    entries : Sequence[Entry]
        The journal, oldest first.
    metric : str
        The metric; by default, and where no version has it, the first of ``metrics_of``.
    """
    known = metrics_of(rows)
    if not known:
        return None
    metric = metric if metric in known else known[0]
    have = [row for row in rows if _is_drawn(row["metrics"].get(metric))]
    shown = have[:MOST_POINTS][::-1]
    staged = {e.version for e in entries if e.op in (*PROMOTING, *STAGING)}
    begins: dict[str, str] = {}
    for row in shown:
        created = datetime.fromisoformat(row["created"])
        begins.setdefault(_session(row), f"{created:%d %b %H:%M}")
    points = tuple(
        Point(
            version=row["version"],
            round=row["tags"].get("round", "")[:8],
            session=begins[_session(row)],
            value=row["metrics"][metric],
            staged=row["version"] in staged,
        )
        for row in shown
    )
    groups = [list(group) for _, group in groupby(range(len(shown)), lambda n: _session(shown[n]))]
    values = {row["version"]: row["metrics"][metric] for row in have}
    moves = [entry for entry in entries if entry.op in PROMOTING]
    return Chart(
        metric=metric,
        summary=_summary(metric, points, len(groups), moves, values),
        points=points,
        sessions=tuple((group[0], group[-1] + 1) for group in groups),
        promotions=_promotions(moves, values, [row["created"] for row in shown]),
        left_out=len(have) - len(shown),
    )


def svg(chart: Chart, theme: str) -> bytes:
    """Draw a chart in the colours of a theme, ``light`` or ``dark``."""
    picture = io.BytesIO()
    # Without its metadata the picture has no time and no addresses.
    metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure_of(chart, theme).savefig(picture, format="svg", transparent=True, metadata=metadata)
    return picture.getvalue()


def figure_of(chart: Chart, theme: str) -> Figure:
    """Return the picture as matplotlib's figure.

    It has no names from outside, which matplotlib could read as formulas or have no glyphs for.
    """
    # pyplot would register the figure globally and is not safe in the threads of a server.
    from matplotlib.figure import Figure

    colours = THEMES[theme]
    figure = Figure(figsize=(10.5, 4.6), layout="constrained")
    axes = figure.subplots()
    axes.spines[:].set_visible(False)
    axes.tick_params(colors=colours.text, length=0, labelsize=12)
    axes.grid(axis="y", color=colours.grid)
    axes.set_xlim(-0.5, len(chart.points) - 0.5)
    _draw_sessions(axes, chart, colours)
    _draw_promotions(axes, chart, colours)
    legend: dict[str, Any] = {"frameon": False, "fontsize": 12, "labelcolor": colours.text}
    figure.legend(loc="outside lower center", ncols=5, **legend)
    return figure


def _draw_sessions(axes: Axes, chart: Chart, colours: Theme) -> None:
    """The curve of each session, its rounds and its name below, and where the next one begins."""
    points = chart.points
    values = [point.value for point in points]
    style: dict[str, Any] = {"color": colours.curve, "linewidth": 2, "markeredgewidth": 2}
    style["markersize"] = 7 if len(points) <= 60 else 4
    for begin, end in chart.sessions:
        label = "" if begin else "a version"
        part = values[begin:end]
        axes.plot(range(begin, end), part, "o-", markerfacecolor=colours.card, label=label, **style)
        if begin:
            axes.axvline(begin - 0.5, color=colours.grid, linestyle=":", zorder=0)
        if end - begin > len(points) / 8:  # there is room for the name
            name = f"\n\nsession of {points[begin].session}"
            place: dict[str, Any] = {
                "transform": axes.get_xaxis_transform(),
                "ha": "center",
                "va": "top",
            }
            axes.text((begin + end - 1) / 2, 0, name, color=colours.text, fontsize=12, **place)
    staged = [n for n, point in enumerate(points) if point.staged]
    axes.plot(
        staged, [values[n] for n in staged], "o", label="one that went to Staging or on", **style
    )
    rounds = {n: point.round for n, point in enumerate(points) if point.round.isdecimal()}
    step = 1 + len(points) // MOST_ROUNDS
    ticks = [n for n, name in rounds.items() if int(name) % step == 0]
    axes.set_xticks(ticks, [rounds[n] for n in ticks])


def _draw_promotions(axes: Axes, chart: Chart, colours: Theme) -> None:
    """What was in Production, and the moves there; labels of versions where there is room."""
    moves = chart.promotions
    begins, ends = [move.place - 0.5 for move in moves], [move.end - 0.5 for move in moves]
    line: dict[str, Any] = {"colors": colours.production, "linestyles": "dashed", "linewidth": 3}
    axes.hlines([move.value for move in moves], begins, ends, label="in Production", **line)
    # What came and went before all points is not in the picture.
    drawn = [move for move in moves if move.end]
    for back, label in ((False, "promoted"), (True, "rolled back")):
        places = [(move.place - 0.5, move.value) for move in drawn if move.back is back]
        style: dict[str, Any] = {
            "color": colours.rollback if back else colours.production,
            "markersize": 9,
        }
        x, y = [x for x, _ in places], [y for _, y in places]
        axes.plot(x, y, "D", markeredgecolor=colours.card, clip_on=False, label=label, **style)
    labelled = -math.inf
    for move in drawn:
        if move.place - labelled > len(chart.points) / 20:
            labelled = move.place
            above: dict[str, Any] = {
                "xytext": (0, 9),
                "textcoords": "offset points",
                "ha": "center",
            }
            at = (move.place - 0.5, move.value)
            axes.annotate(f"v{move.version}", at, color=colours.text, weight="bold", **above)


def _is_drawn(value: float | None) -> bool:
    return value is not None and math.isfinite(value) and abs(value) < 1e100


def _session(row: Row) -> str:
    tags = row["tags"]
    return str(row["run_id"] or (tags.get("flower_run_id", ""), tags.get("session", "")))


def _promotions(
    moves: Sequence[Entry], values: Mapping[str, float], created: Sequence[str]
) -> tuple[Promotion, ...]:
    """The moves to Production of versions that have the metric; others leave a gap."""
    places = [bisect_right(created, move.time) for move in moves]
    return tuple(
        Promotion(place, end, move.version, values[move.version], move.op == "rollback", move.time)
        for move, place, end in zip(moves, places, [*places[1:], len(created)], strict=False)
        if move.version in values
    )


def _summary(
    metric: str,
    points: Sequence[Point],
    sessions: int,
    moves: Sequence[Entry],
    values: Mapping[str, float],
) -> str:
    first, last = points[0], points[-1]
    plural = "session" if sessions == 1 else "sessions"
    summary = (
        f"{metric} of {len(points)} versions in {sessions} {plural}: "
        f"{number_text(first.value)} for version {first.version}, "
        f"{number_text(last.value)} for version {last.version}."
    )
    if not moves:
        return f"{summary} None has been in Production."
    now = moves[-1].version
    score = f" with {number_text(values[now])}" if now in values else ""
    return f"{summary} Version {now} is in Production{score}."
