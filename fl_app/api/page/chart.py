# SPDX-License-Identifier: Apache-2.0
"""A metric of the versions, round after round, as the geometry of a drawing. Pure."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from typing import TYPE_CHECKING

from fl_app.api.page.registry_view import PROMOTING, STAGING, Row, number_text, score_metric

if TYPE_CHECKING:
    from fl_registry.journal.entries import Entry

MOST_POINTS = 200
MOST_METRICS = 60
WIDTH, HEIGHT = 760, 300
LEFT, RIGHT, TOP, BOTTOM = 58, 14, 22, 44
LABEL = 36
"""Width that a mark's label needs."""


@dataclass(frozen=True)
class Point:
    """A version in the drawing, and in the table that says the same.

    Attributes
    ----------
    x, y : float
        Its place.
    version, round, session, score : str
        What it is; a session is named by the time of its first version.
    staged : bool
        Whether it ever came to Staging or to Production.
    """

    x: float
    y: float
    version: str
    round: str
    session: str
    score: str
    staged: bool


@dataclass(frozen=True)
class Mark:
    """A move to Production: where, which version, and whether it was a rollback.

    ``label`` says the version beside it, and is empty where there is no room.
    """

    x: float
    y: float
    version: str
    back: bool
    time: str
    label: str


@dataclass(frozen=True)
class Text:
    """A text at an axis, centred at ``x``, or ending there."""

    x: float
    y: float
    text: str


@dataclass(frozen=True)
class Chart:
    """The drawing: paths in the units of its view box, texts, and a sentence that sums it up.

    Attributes
    ----------
    metric, summary : str
        What is drawn, and what it shows.
    lines : tuple[str, ...]
        A path for each session.
    served : str
        The path of the score of what was in Production.
    points, marks, ticks, rounds, sessions : tuple
        What is drawn at, around and between the lines.
    borders : tuple[float, ...]
        Where a session ends and the next begins.
    left_out : int
        Versions that are older than those that are drawn.
    """

    metric: str
    summary: str
    lines: tuple[str, ...]
    served: str
    points: tuple[Point, ...]
    marks: tuple[Mark, ...]
    ticks: tuple[Text, ...]
    rounds: tuple[Text, ...]
    sessions: tuple[Text, ...]
    borders: tuple[float, ...]
    left_out: int


def metrics_of(rows: Sequence[Row]) -> tuple[str, ...]:
    """The metrics that the newest versions have; the one that gates look at first."""
    recent = rows[:MOST_POINTS]
    names = {name for row in recent for name, value in row["metrics"].items() if _is_drawn(value)}
    gated = [score_metric(row) for row in recent]
    first = [name for name in dict.fromkeys(gated) if name in names]
    plain = sorted(names, key=lambda name: ("/" in name, name))
    return tuple(dict.fromkeys((*first, *plain)))[:MOST_METRICS]


def draw(rows: Sequence[Row], entries: Sequence[Entry], metric: str) -> Chart | None:
    """Draw a metric of the newest versions (newest first); None where none has it.

    The line of what was in Production moves where the journal says that it did, between the
    versions that were registered before and after.
    """
    have = [row for row in rows if _is_drawn(row["metrics"].get(metric))]
    shown = have[:MOST_POINTS][::-1]
    if not shown:
        return None
    scores = {row["version"]: row["metrics"][metric] for row in have}
    moves = [e for e in entries if e.op in PROMOTING]
    served = [scores[e.version] for e in moves if e.version in scores]
    axis = _Axis.over([*(row["metrics"][metric] for row in shown), *served], len(shown))
    points = _points(shown, entries, metric, axis)
    groups = _groups(shown)
    marks, path = _served(moves, scores, [row["created"] for row in shown], axis)
    return Chart(
        metric=metric,
        summary=_summary(metric, points, len(groups), moves, scores),
        lines=tuple(_path(points[a:b]) for a, b in groups),
        served=path,
        points=points,
        marks=marks,
        ticks=tuple(Text(LEFT - 8, axis.y(value), f"{value:g}") for value in axis.ticks),
        rounds=_rounds(points, axis),
        sessions=_sessions(points, groups, axis),
        borders=tuple(axis.edge(a) for a, _ in groups[1:]),
        left_out=len(have) - len(shown),
    )


@dataclass(frozen=True)
class _Axis:
    """Where values and places go."""

    ticks: tuple[float, ...]
    count: int

    @classmethod
    def over(cls, values: Sequence[float], count: int) -> _Axis:
        low, high = min(values), max(values)
        if high - low < 1e-9 * max(abs(low), abs(high), 1e-9):
            low, high = low - (abs(low) or 1) / 2, high + (abs(high) or 1) / 2
        rough = (high - low) / 4
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(power * n for n in (1, 2, 5, 10) if power * n >= rough * 0.999)
        first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
        return cls(tuple(float(f"{n * step:.12g}") for n in range(first, last + 1)), count)

    @property
    def step(self) -> float:
        """Width of a place."""
        return (WIDTH - LEFT - RIGHT) / self.count

    def x(self, place: int) -> float:
        return round(LEFT + (place + 0.5) * self.step, 1)

    def edge(self, place: int) -> float:
        """Where a place begins."""
        return round(LEFT + place * self.step, 1)

    def y(self, value: float) -> float:
        low, high = self.ticks[0], self.ticks[-1]
        part = (value - low) / (high - low)
        return round(HEIGHT - BOTTOM - part * (HEIGHT - TOP - BOTTOM), 1)


def _is_drawn(value: float | None) -> bool:
    return value is not None and math.isfinite(value) and abs(value) < 1e100


def _points(
    shown: Sequence[Row], entries: Sequence[Entry], metric: str, axis: _Axis
) -> tuple[Point, ...]:
    staged = {e.version for e in entries if e.op in (*PROMOTING, *STAGING)}
    names, found = _session_names(shown), []
    for place, row in enumerate(shown):
        value = row["metrics"][metric]
        found.append(
            Point(
                x=axis.x(place),
                y=axis.y(value),
                version=row["version"],
                round=row["tags"].get("round", "")[:8],
                session=names[place],
                score=number_text(value),
                staged=row["version"] in staged,
            )
        )
    return tuple(found)


def _session_names(shown: Sequence[Row]) -> list[str]:
    """For each version the day and time at which its session's first version was registered."""
    first: dict[str, str] = {}
    for row in shown:
        first.setdefault(
            _session(row), datetime.fromisoformat(row["created"]).strftime("%d %b %H:%M")
        )
    return [first[_session(row)] for row in shown]


def _session(row: Row) -> str:
    tags = row["tags"]
    return str(row["run_id"] or (tags.get("flower_run_id", ""), tags.get("session", "")))


def _groups(shown: Sequence[Row]) -> list[tuple[int, int]]:
    """Where each session begins and ends."""
    keys = [_session(row) for row in shown]
    starts = [0, *(n for n, (a, b) in enumerate(pairwise(keys), start=1) if a != b)]
    return list(zip(starts, [*starts[1:], len(keys)], strict=True))


def _path(points: Sequence[Point]) -> str:
    return "M" + "L".join(f"{point.x:g} {point.y:g}" for point in points)


def _served(
    moves: Sequence[Entry], scores: Mapping[str, float], created: Sequence[str], axis: _Axis
) -> tuple[tuple[Mark, ...], str]:
    """Marks and path of what was in Production; what has no such score leaves a gap."""
    places = [bisect_right(created, move.time) for move in moves]
    ends = [*places[1:], len(created)] if places else []
    marks: list[Mark] = []
    parts: list[str] = []
    room = -math.inf
    for move, place, end in zip(moves, places, ends, strict=True):
        if move.version not in scores:
            continue
        x, y = axis.edge(place), axis.y(scores[move.version])
        parts.append(f"M{x:g} {y:g}H{axis.edge(end):g}")
        if place == 0 and end == 0:
            continue  # it came and went before what is drawn
        label = f"v{move.version}" if x - room >= LABEL else ""
        room = x if label else room
        marks.append(Mark(x, y, move.version, move.op == "rollback", move.time, label))
    return tuple(marks), "".join(parts)


def _rounds(points: Sequence[Point], axis: _Axis) -> tuple[Text, ...]:
    every = next(n for n in (1, 2, 5, 10, 25, 50, 100, 10**9) if axis.step * n >= 22)
    named = [p for p in points if p.round.isdecimal() and (every == 1 or int(p.round) % every == 0)]
    return tuple(Text(p.x, HEIGHT - BOTTOM + 16, p.round) for p in named)


def _sessions(
    points: Sequence[Point], groups: Sequence[tuple[int, int]], axis: _Axis
) -> tuple[Text, ...]:
    """The names of sessions under their rounds, where there is room."""
    found = []
    for begin, end in groups:
        if (end - begin) * axis.step >= 96:
            middle = (points[begin].x + points[end - 1].x) / 2
            found.append(Text(middle, HEIGHT - 8, f"session of {points[begin].session}"))
    return tuple(found)


def _summary(
    metric: str,
    points: Sequence[Point],
    sessions: int,
    moves: Sequence[Entry],
    scores: Mapping[str, float],
) -> str:
    first, last = points[0], points[-1]
    told = (
        f"{metric} of {len(points)} versions in {sessions} "
        f"{'session' if sessions == 1 else 'sessions'}: {first.score} for version "
        f"{first.version}, {last.score} for version {last.version}."
    )
    if not moves:
        return f"{told} None has been in Production."
    now = moves[-1].version
    score = f" with {number_text(scores[now])}" if now in scores else ""
    return f"{told} Version {now} is in Production{score}."
