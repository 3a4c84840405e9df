# SPDX-License-Identifier: Apache-2.0
"""The chart of a metric: whatever the versions hold, it is drawn and says what they say."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl_app.api.page.chart import MOST_POINTS, TICKS, chart_of, figure_of, metrics_of, svg
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
    return Entry(op, version, actor="Ada", number=number, time=time)


def newest_first(*rows: dict[str, Any]) -> list[dict[str, Any]]:
    return list(reversed(rows))


@given(
    st.lists(st.floats(allow_nan=True, allow_infinity=True), max_size=30),
    st.lists(st.tuples(st.sampled_from(list(Move)), st.integers(1, 40), st.integers(0, 50))),
)
def test_every_chart_can_be_drawn(scores: list[float], moves: list[tuple[Move, int, int]]) -> None:
    rows = newest_first(*(row(n, score, run=f"{n // 7}") for n, score in enumerate(scores, 1)))
    entries = [entry(n, op, str(v), at) for n, (op, v, at) in enumerate(moves, start=1)]
    chart = chart_of(rows, sorted(entries, key=lambda e: e.time), "mAP50")
    drawn = [score for score in scores if math.isfinite(score) and abs(score) < 1e100]
    assert (chart is None) == (not drawn)
    if chart is None:
        return
    assert [point.value for point in chart.points] == drawn
    assert [n for begin, end in chart.sessions for n in range(begin, end)] == [*range(len(drawn))]
    for move in chart.promotions:
        assert 0 <= move.place <= move.end <= len(drawn) + 1
    (axes,) = figure_of(chart, "light").axes
    low, high = axes.get_ylim()
    shown = [*drawn, *(move.value for move in chart.promotions)]
    assert low <= min(shown)
    assert max(shown) <= high


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_picture_is_svg_without_times_and_addresses(theme: str) -> None:
    rows = newest_first(*(row(n, score) for n, score in enumerate(SCORES, start=1)))
    chart = chart_of(rows, [entry(1, Move.PROMOTE, "3", 3)], "mAP50")
    assert chart is not None
    picture = svg(chart, theme)
    root = ElementTree.fromstring(picture)  # noqa: S314 - our own
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert b"date>" not in picture
    assert b"matplotlib.org" not in picture


def test_the_line_of_production_follows_the_journal() -> None:
    rows = newest_first(*(row(n, score, at=10 * n) for n, score in enumerate(SCORES, start=1)))
    entries = [
        entry(1, Move.PROMOTE, "3", 30),
        entry(2, Move.PROMOTE, "5", 50),
        entry(3, Move.ROLLBACK, "3", 50),
        entry(4, Move.STAGE, "6", 59),
    ]
    chart = chart_of(rows, entries, "mAP50")
    assert chart is not None
    assert [(p.version, p.back, p.place, p.end) for p in chart.promotions] == [
        ("3", False, 3, 5),
        ("5", False, 5, 5),
        ("3", True, 5, 7),
    ]
    assert [p.value for p in chart.promotions] == [0.5, 0.6, 0.5]
    assert [point.staged for point in chart.points] == [False, False, True, False, True, True]
    assert chart.summary == (
        "mAP50 of 6 versions in 1 session: 0.1000 for version 1, 0.7000 for version 6. "
        "Version 3 is in Production with 0.5000."
    )
    (axes,) = figure_of(chart, "light").axes
    texts = [text.get_text().strip() for text in axes.texts]
    assert texts == ["session of 01 Nov 00:10", "v3", "v3"]  # no room for two in a place
    assert [label.get_text() for label in figure_of(chart, "dark").legends[0].get_texts()] == [
        "a version",
        "one that went to Staging or on",
        "in Production",
        "promoted",
        "rolled back",
    ]


def test_each_session_has_a_line_of_its_own() -> None:
    rows = newest_first(*(row(n, 0.1 * n, run="a" if n < 4 else "b") for n in range(1, 7)))
    chart = chart_of(rows, [], "mAP50")
    assert chart is not None
    assert chart.sessions == ((0, 3), (3, 6))
    (axes,) = figure_of(chart, "light").axes
    lines = [[*line.get_xdata()] for line in axes.lines if len(line.get_xdata())]
    assert lines == [[0, 1, 2], [3, 4, 5], [2.5, 2.5]]  # and where one ends
    assert [text.get_text() for text in axes.get_xticklabels()] == list("123456")
    assert {text.get_text().strip() for text in axes.texts} == {
        "session of 01 Nov 00:01",
        "session of 01 Nov 00:04",
    }
    assert chart.summary.endswith("None has been in Production.")


def test_old_versions_are_left_out_but_what_was_served_is_drawn() -> None:
    rows = newest_first(*(row(n, 0.5 + n / 1000, at=n) for n in range(1, MOST_POINTS + 51)))
    chart = chart_of(rows, [entry(1, Move.PROMOTE, "2", 2)], "mAP50")
    assert chart is not None
    assert len(chart.points) == MOST_POINTS
    assert chart.left_out == 50
    (served,) = chart.promotions
    assert (served.place, served.end, served.value) == (0, MOST_POINTS + 1, 0.502)
    (axes,) = figure_of(chart, "light").axes
    ticks = [label.get_text() for label in axes.get_xticklabels()]
    assert len(ticks) <= TICKS
    assert ticks[0] == "v51"


@pytest.mark.parametrize("count", [8, 200, 1000])
def test_the_line_ends_at_what_is_in_production_now_however_many_versions(count: int) -> None:
    rows = newest_first(*(row(n, 0.5 + n / 5000, at=n // 50) for n in range(1, count + 1)))
    moves = [entry(1, Move.PROMOTE, "1", 0), entry(2, Move.PROMOTE, "2", 30)]
    moves += [entry(3, Move.PROMOTE, "4", 31), entry(4, Move.PROMOTE, "2", 32)]
    chart = chart_of(rows, moves, "mAP50")
    assert chart is not None
    figure = figure_of(chart, "light")
    (axes,) = figure.axes
    (lines,) = axes.collections
    ends = [segment[-1].tolist() for segment in lines.get_segments()]
    assert ends[-1] == [axes.get_xlim()[1], 0.5 + 2 / 5000]
    assert [end[1] for end in ends if end[0] == axes.get_xlim()[1]] == [0.5 + 2 / 5000]
    begins = [segment[0].tolist() for segment in lines.get_segments()]
    assert ends[-1][0] - begins[-1][0] >= (axes.get_xlim()[1] + 0.5) / 22  # one can see it
    figure.draw_without_rendering()
    assert axes.get_position().x0 < 0.07  # the picture is filled
    assert axes.get_position().y0 < 0.25
    labels = [text.get_text() for text in axes.texts if text.get_text().startswith("v")]
    assert labels[0] == "v2"
    assert all(label.get_text() for label in axes.get_xticklabels())


def test_the_metric_that_gates_look_at_comes_first_and_plain_names_before_others() -> None:
    rows = [row(2, 0.5), {**row(1, 0.4), "metrics": {"recall": 0.1, "broken": math.nan}}]
    assert metrics_of(rows) == ("mAP50", "loss", "recall", "client/mAP50")
    assert metrics_of([]) == ()
    chart = chart_of(rows, [], "broken")
    assert chart is not None
    assert chart.metric == "mAP50"
