# SPDX-License-Identifier: Apache-2.0
"""The drawing of a metric: whatever the versions hold, it fits its box and says what they say."""

from __future__ import annotations

import math
import re
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from fl_app.api.page.chart import (
    BOTTOM,
    HEIGHT,
    LEFT,
    MOST_POINTS,
    RIGHT,
    TOP,
    WIDTH,
    draw,
    metrics_of,
)
from fl_registry.journal.entries import Entry
from fl_registry.stages import Move

SCORES = [0.1, 0.4, 0.5, 0.3, 0.6, 0.7]


def row(number: int, score: float, *, run: str = "r", at: int | None = None) -> dict[str, Any]:
    created = datetime(2026, 11, 1, tzinfo=UTC) + timedelta(minutes=number if at is None else at)
    return {
        "version": str(number),
        "created": created.isoformat(),
        "metrics": {"mAP50": score, "loss": 1 - score, "client/mAP50": score},
        "tags": {"round": str(number), "metric": "mAP50"},
        "run_id": run,
    }


def entry(number: int, op: Move, version: str, minute: float) -> Entry:
    time = f"2026-11-01T00:{int(minute):02d}:30.000+00:00"
    return Entry(number, op, version, "", "Ada", "", time, "", "")


def newest_first(*rows: dict[str, Any]) -> list[dict[str, Any]]:
    return list(reversed(rows))


@given(
    st.lists(st.floats(allow_nan=True, allow_infinity=True), max_size=30),
    st.lists(st.tuples(st.sampled_from(list(Move)), st.integers(1, 40), st.integers(0, 50))),
)
def test_every_drawing_fits_its_box(
    scores: list[float], moves: list[tuple[Move, int, int]]
) -> None:
    rows = newest_first(*(row(n, score, run=f"{n // 7}") for n, score in enumerate(scores, 1)))
    entries = [entry(n, op, str(v), at) for n, (op, v, at) in enumerate(moves, start=1)]
    chart = draw(rows, sorted(entries, key=lambda e: e.time), "mAP50")
    drawn = [score for score in scores if math.isfinite(score) and abs(score) < 1e100]
    assert (chart is None) == (not drawn)
    if chart is None:
        return
    assert len(chart.points) == len(drawn)
    assert all(a.y > b.y for a, b in pairwise(chart.ticks))
    assert 2 <= len(chart.ticks) <= 8
    for place in (*chart.points, *chart.marks):
        assert LEFT <= place.x <= WIDTH - RIGHT
        assert TOP <= place.y <= HEIGHT - BOTTOM
    for x in chart.borders:
        assert LEFT < x < WIDTH - RIGHT
    for path in (*chart.lines, chart.served):
        assert re.fullmatch(r"([MLH][0-9.]+( [0-9.]+)?)*", path), path


def test_the_line_of_production_follows_the_journal() -> None:
    rows = newest_first(*(row(n, score, at=10 * n) for n, score in enumerate(SCORES, start=1)))
    entries = [
        entry(1, Move.PROMOTE, "3", 30),
        entry(2, Move.PROMOTE, "5", 50),
        entry(3, Move.ROLLBACK, "3", 50),
        entry(4, Move.STAGE, "6", 59),
    ]
    chart = draw(rows, entries, "mAP50")
    assert chart is not None
    assert [(mark.version, mark.back) for mark in chart.marks] == [
        ("3", False),
        ("5", False),
        ("3", True),
    ]
    assert [mark.label for mark in chart.marks] == ["v3", "v5", ""]  # no room for two in a place
    first, _, last = chart.marks
    assert first.x == (chart.points[2].x + chart.points[3].x) / 2
    assert (first.y, last.y) == (chart.points[2].y, chart.points[2].y)
    assert chart.served.endswith(f"H{WIDTH - RIGHT}")
    assert [point.staged for point in chart.points] == [False, False, True, False, True, True]
    assert chart.summary == (
        "mAP50 of 6 versions in 1 session: 0.1000 for version 1, 0.7000 for version 6. "
        "Version 3 is in Production with 0.5000."
    )


def test_each_session_has_a_line_of_its_own() -> None:
    rows = newest_first(*(row(n, 0.1 * n, run="a" if n < 4 else "b") for n in range(1, 7)))
    chart = draw(rows, [], "mAP50")
    assert chart is not None
    assert [line.count("L") for line in chart.lines] == [2, 2]
    assert chart.borders == ((chart.points[2].x + chart.points[3].x) / 2,)
    assert [text.text for text in chart.rounds] == list("123456")
    assert [text.text for text in chart.sessions] == [
        "session of 01 Nov 00:01",
        "session of 01 Nov 00:04",
    ]
    assert chart.summary.endswith("None has been in Production.")


def test_old_versions_are_left_out_but_what_was_served_is_drawn() -> None:
    rows = newest_first(*(row(n, 0.5 + n / 1000, at=n) for n in range(1, MOST_POINTS + 51)))
    chart = draw(rows, [entry(1, Move.PROMOTE, "2", 2)], "mAP50")
    assert chart is not None
    assert len(chart.points) == MOST_POINTS
    assert chart.left_out == 50
    assert len(chart.rounds) < 40
    assert chart.served == f"M{LEFT} {chart.marks[0].y:g}H{WIDTH - RIGHT}"


def test_the_metric_that_gates_look_at_comes_first_and_plain_names_before_others() -> None:
    rows = [row(2, 0.5), {**row(1, 0.4), "metrics": {"recall": 0.1, "broken": math.nan}}]
    assert metrics_of(rows) == ("mAP50", "loss", "recall", "client/mAP50")
    assert metrics_of([]) == ()
    assert draw(rows, [], "broken") is None
