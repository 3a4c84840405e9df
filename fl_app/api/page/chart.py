# SPDX-License-Identifier: Apache-2.0
"""A metric of the versions, round after round: its data for the table, and as an SVG picture.

The picture is drawn on the server, since the page has no script.
"""

from __future__ import annotations

import io
import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from datetime import datetime
from itertools import groupby
from typing import TYPE_CHECKING, Any, NamedTuple

from fl_app.api.page.style import COLOURS
from fl_app.versions.texts import Row, score_metric
from fl_registry.journal.entries import Entry
from fl_registry.numbers import number_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PROMOTING = ("promote", "rollback", "adopt")
STAGING = ("stage", "restore")
# Bounds on what a visit costs, however many versions there are.
MOST_POINTS = 1000
MOST_METRICS = 60
FEW_POINTS = 40
"""Points up to which the axis has the rounds; beyond, it has a few version numbers."""
TICKS = 12
"""Version numbers at the axis, at most."""
MOST_SESSIONS = 30
"""Sessions up to which a line shows where each begins."""


class Point(NamedTuple):
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


class Promotion(NamedTuple):
    """A move to Production.

    Attributes
    ----------
    place, end : int
        How many of the points were registered before it, and before the next one; one more than
        there are for what is in Production now.
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


class Chart(NamedTuple):
    """What is drawn of a metric.

    Attributes
    ----------
    metric : str
        The metric.
    metrics : Sequence[str]
        All that could be drawn instead.
    points : Sequence[Point]
        The versions that have it, oldest first.
    sessions : tuple[tuple[int, int], ...]
        Where each session begins and ends in the points.
    promotions : Sequence[Promotion]
        Those of versions that have the metric; others leave a gap.
    production : str
        The version in Production; empty if there never was one.
    left_out : int
        Versions that are older than the points.
    """

    metric: str
    metrics: Sequence[str]
    points: Sequence[Point]
    sessions: tuple[tuple[int, int], ...]
    promotions: Sequence[Promotion]
    production: str
    left_out: int

    @property
    def summary(self) -> str:
        """What the chart shows, in words."""
        first, last, sessions = self.points[0], self.points[-1], len(self.sessions)
        summary = (
            f"{self.metric} of {len(self.points)} versions in {sessions} "
            f"session{'' if sessions == 1 else 's'}: "
            f"{number_text(first.value)} for version {first.version}, "
            f"{number_text(last.value)} for version {last.version}."
        )
        if not self.production:
            return f"{summary} None has been in Production."
        now = [move for move in self.promotions[-1:] if move.version == self.production]
        score = f" with {number_text(now[0].value)}" if now else ""
        return f"{summary} Version {self.production} is in Production{score}."


def metrics_of(rows: Sequence[Row]) -> tuple[str, ...]:
    """The metrics that the newest versions have; the one that gates look at first."""
    recent = rows[:MOST_POINTS]
    names = {name for row in recent for name, value in row["metrics"].items() if _is_drawn(value)}
    gated = [name for name in map(score_metric, recent) if name in names]
    plain = sorted(names, key=lambda name: ("/" in name, name))
    return tuple(dict.fromkeys((*gated, *plain)))[:MOST_METRICS]


def chart_of(
    rows: Sequence[Row],
    entries: Sequence[Entry],
    metric: str,
    *,
    known: Sequence[Row] = (),
    total: int = 0,
) -> Chart | None:
    """Collect a metric of the newest versions; None where none has it.

    Parameters
    ----------
    rows : Sequence[Row]
        The versions, newest first.
    entries : Sequence[Entry]
        The journal, oldest first.
    metric : str
        The metric; by default, and where no version has it, the first of ``metrics_of``.
    known : Sequence[Row]
        Further versions, for what was in Production before the first of the points.
    total : int
        How many versions there are in all, if these are only the newest.
    """
    metrics = metrics_of(rows)
    if not metrics:
        return None
    metric = metric if metric in metrics else metrics[0]
    values = {row["version"]: row["metrics"].get(metric) for row in (*known, *rows)}
    have = [row for row in rows if _is_drawn(values[row["version"]])]
    shown = have[:MOST_POINTS][::-1]
    staged = {e.version for e in entries if e.op in (*PROMOTING, *STAGING)}
    points: list[Point] = []
    sessions: list[tuple[int, int]] = []
    for _, group in groupby(shown, _session):
        rounds = list(group)
        begun = f"{datetime.fromisoformat(rounds[0]['created']):%d %b %H:%M}"
        sessions.append((len(points), len(points) + len(rounds)))
        for row in rounds:
            version, name = row["version"], row["tags"].get("round", "")[:8]
            points.append(Point(version, name, begun, values[version], version in staged))
    all_moves = [entry for entry in entries if entry.op in PROMOTING]
    created = [row["created"] for row in shown]
    # Of those before the first point, only the last one is in the picture.
    before = bisect_right([move.time for move in all_moves], created[0]) if created else 0
    moves = all_moves[max(before - 1, 0) :]
    places = [bisect_right(created, move.time) for move in moves]
    promotions = [
        Promotion(place, end, e.version, values[e.version], e.op == "rollback", e.time)
        for e, place, end in zip(moves, places, [*places[1:], len(created) + 1], strict=False)
        if _is_drawn(values.get(e.version))
    ]
    now = moves[-1].version if moves else ""
    left_out = max(len(have), total - (len(rows) - len(have))) - len(shown)
    return Chart(metric, metrics, points, tuple(sessions), promotions, now, left_out)


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

    colours = {name: dark if theme == "dark" else light for name, (light, dark) in COLOURS.items()}
    figure = Figure(figsize=(10.5, 4.6), layout="constrained")
    axes = figure.subplots()
    axes.spines[:].set_visible(False)
    axes.tick_params(colors=colours["muted"], length=0, labelsize=12)
    axes.grid(axis="y", color=colours["line"])
    axes.set_xlim(-0.5, _x_of(chart, len(chart.points) + bool(chart.promotions)))
    _draw_sessions(axes, chart, colours)
    _draw_promotions(axes, chart, colours)
    figure.legend(
        loc="outside lower center", ncols=5, frameon=False, fontsize=12, labelcolor=colours["muted"]
    )
    return figure


def _x_of(chart: Chart, place: int) -> float:
    """Where a move is at the axis: between two points, or behind all of them for today."""
    last = len(chart.points)
    # Moves after the last version need room of their own, or none of them could be seen.
    return place - 0.5 if place <= last else last - 0.5 + max(1.0, last / 20)


def _draw_sessions(axes: Axes, chart: Chart, colours: Mapping[str, str]) -> None:
    """The curve of each session, its rounds and its name below, and where the next one begins."""
    points = chart.points
    values = [point.value for point in points]
    few = len(points) <= FEW_POINTS
    size = 7 if few else max(2.0, 5 - len(points) / 300)
    style: dict[str, Any] = {"color": colours["accent"], "markersize": size}
    style |= {"linewidth": 2 if few else 1, "markeredgewidth": 2 if few else 1}
    below: dict[str, Any] = {"transform": axes.get_xaxis_transform(), "ha": "center", "va": "top"}
    for begin, end in chart.sessions:
        label, part = "" if begin else "a version", values[begin:end]
        axes.plot(range(begin, end), part, "o-", mfc=colours["card"], label=label, **style)
        if begin and len(chart.sessions) <= MOST_SESSIONS:
            axes.axvline(begin - 0.5, color=colours["line"], linestyle=":", zorder=0)
        if few and end - begin > len(points) / 8:  # there is room for the name
            name = f"\n\nsession of {points[begin].session}"
            middle = (begin + end - 1) / 2
            axes.text(middle, 0, name, color=colours["muted"], fontsize=12, **below)
    staged = [n for n, point in enumerate(points) if point.staged]
    label = "one that went to Staging or on"
    axes.plot(staged, [values[n] for n in staged], "o", label=label, **style)
    if few:
        ticks = {n: p.round for n, p in enumerate(points) if p.round.isdecimal()}
    else:
        step = -(-len(points) // TICKS)
        ticks = {n: f"v{points[n].version}" for n in range(0, len(points), step)}
    axes.set_xticks([*ticks], [*ticks.values()])


def _draw_promotions(axes: Axes, chart: Chart, colours: Mapping[str, str]) -> None:
    """What was in Production, and the moves there; labels of versions where there is room."""
    moves = chart.promotions
    begins = [_x_of(chart, move.place) for move in moves]
    ends = [_x_of(chart, move.end) for move in moves]
    line: dict[str, Any] = {"colors": colours["good"], "linestyles": "dashed", "linewidth": 3}
    axes.hlines([move.value for move in moves], begins, ends, label="in Production", **line)
    # What came and went before all points is not in the picture.
    drawn = [move for move in moves if move.end]
    size = 9 if len(drawn) <= FEW_POINTS else 5
    style: dict[str, Any] = {"markersize": size, "mec": colours["card"]}
    for back, label, colour in ((False, "promoted", "good"), (True, "rolled back", "bad")):
        those = [move for move in drawn if move.back is back]
        x, y = [_x_of(chart, move.place) for move in those], [move.value for move in those]
        # An empty line that is not clipped would count as one at the corner of the figure.
        clips = not those
        axes.plot(x, y, "D", color=colours[colour], label=label, clip_on=clips, **style)
    # Along the upper edge, where no point is. The newest come first: they are looked for.
    above: dict[str, Any] = {"transform": axes.get_xaxis_transform(), "va": "bottom"}
    room, labelled = len(chart.points) / 20, math.inf
    for move in reversed(drawn):
        x_move = _x_of(chart, move.place)
        if labelled - x_move > room:
            labelled = x_move
            side = "left" if move.place == 0 else "center"
            text = f"v{move.version}"
            axes.text(x_move, 1, text, color=colours["muted"], weight="bold", ha=side, **above)


def _is_drawn(value: float | None) -> bool:
    return value is not None and math.isfinite(value) and abs(value) < 1e100


def _session(row: Row) -> str:
    tags = row["tags"]
    return str(row["run_id"] or (tags.get("flower_run_id", ""), tags.get("session", "")))
