# SPDX-License-Identifier: Apache-2.0
"""One node of ten neither causes an alarm of drift nor prevents one, whatever it counts."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from support.drift_nodes import MINUTES, NO_SEASON, Nodes

from fl_app.retraining.drift.check import DriftSettings, check
from fl_app.retraining.drift.merge import merge
from fl_app.retraining.drift.state import DriftState, difference
from fl_app.wire.data_summary import DataSummary, Feature, FeatureKind

NODES, SHARE, LIAR = 10, 2 / 10, 0
Lie = Callable[[DataSummary, int], DataSummary]


def counted(now: Callable[[np.ndarray, int], np.ndarray]) -> Lie:
    """Lie about the new rows; the number of a check is the second argument."""

    def lie(summary: DataSummary, number: int) -> DataSummary:
        counts = summary.counts.copy()
        counts[:, 0] = now(counts[:, 0], number)
        return replace(summary, counts=counts)

    return lie


def one_bin(rows: float, place: int = -1) -> Callable[[np.ndarray, int], np.ndarray]:
    def now(honest: np.ndarray, number: int) -> np.ndarray:
        lie = np.zeros_like(honest)
        lie[:, place] = rows
        return lie

    return now


def missing(summary: DataSummary, number: int) -> DataSummary:
    """Half of all rows are missing, a feature that no other node has."""
    features = tuple(Feature(f.name, FeatureKind.MISSING) for f in summary.features)
    rows = summary.counts.sum(axis=2)
    counts = np.zeros_like(summary.counts)
    counts[:, :, 0] = rows
    counts[:, 0, 1] = 1e8
    return replace(
        summary,
        features=(*summary.features, *features),
        counts=np.concatenate([summary.counts, counts]),
    )


def tiny_reference(summary: DataSummary, number: int) -> DataSummary:
    """The reference is one row in the first bin, and 1e9 rows are in the last one."""
    counts = np.zeros_like(summary.counts)
    counts[:, 1:, 0] = 1
    counts[:, 0, -1] = 1e9
    return replace(summary, counts=counts)


LIES: dict[str, Lie] = {
    "1e9 rows as they were": counted(lambda honest, number: honest * np.rint(1e9 / 200)),
    "1e9 rows in one bin": counted(one_bin(1e9)),
    "1,000 rows in one bin": counted(one_bin(1000)),
    "all rows in the first bin": counted(one_bin(200, 0)),
    "one row": counted(one_bin(1)),
    "one bin or another by turns": counted(lambda h, n: one_bin(1e6, -(n % 2))(h, n)),
    "a reference of one row": tiny_reference,
    "rows missing": missing,
}


def alarms(
    lie: Lie | None, *, moved: float = 0.0, settings: DriftSettings = NO_SEASON, checks: int = 40
) -> list[int]:
    """Checks with an alarm; the data of the others move in the twentieth."""
    nodes, state, found = Nodes(NODES, 2, means=0.3), DriftState(), []
    for number in range(checks):
        summaries = nodes.summaries(moved if number >= 20 else 0.0, hold=state.hold)
        if lie is not None:
            summaries[LIAR] = lie(summaries[LIAR], number)
        state, result = check(state, summaries, number * MINUTES, settings)
        assert result is not None
        if result.is_alarm:
            found.append(number)
            break
    return found


@pytest.mark.parametrize("name", LIES)
def test_one_of_ten_causes_no_alarm(name: str) -> None:
    assert alarms(LIES[name]) == []


@pytest.mark.parametrize("name", LIES)
def test_one_of_ten_prevents_no_alarm(name: str) -> None:
    assert alarms(LIES[name], moved=1.0)[0] in (20, 21)


@pytest.mark.parametrize("name", LIES)
def test_one_that_begins_to_lie_causes_no_alarm(name: str) -> None:
    def late(summary: DataSummary, number: int) -> DataSummary:
        return LIES[name](summary, number) if number >= 20 else summary

    assert alarms(late) == []


@pytest.mark.parametrize("name", LIES)
def test_one_of_ten_moves_the_statistic_by_two_tenths_at_most(name: str) -> None:
    summaries = Nodes(NODES, 2, means=0.3).summaries()
    lied = [*summaries]
    lied[LIAR] = LIES[name](summaries[LIAR], 1)
    features = summaries[0].features
    others = merge(summaries[1:], features, 0.0, shares=2.0).window
    honest, told = (merge(each, features, 0.0, shares=2.0).window for each in (summaries, lied))
    assert np.abs(told.effect - honest.effect).max() <= SHARE
    shift, without = (difference(w.now, w.expected, w.rows) for w in (told, others))
    assert np.abs(shift - without).max() <= SHARE
    assert np.allclose(
        told.rows - others.rows, np.minimum(SHARE * told.rows, told.rows - others.rows)
    )


def test_without_a_limit_a_large_node_counts_in_full() -> None:
    summaries = Nodes(NODES, 2, means=0.3).summaries()
    summaries[LIAR] = LIES["1e9 rows in one bin"](summaries[LIAR], 0)
    features = summaries[0].features
    limited, free = (merge(summaries, features, 0.0, shares=s).window for s in (2.0, None))
    assert free.effect.min() > limited.effect.max()


def test_a_node_whose_rows_count_less_is_named(caplog: pytest.LogCaptureFixture) -> None:
    summaries = Nodes(NODES, 2, means=0.3).summaries()
    summaries[LIAR] = LIES["1e9 rows in one bin"](summaries[LIAR], 0)
    with caplog.at_level(logging.INFO):
        check(DriftState(), summaries, 0.0, NO_SEASON)
    assert "the 1000000000 new rows of node 0 count as" in caplog.text


def test_a_node_that_is_unlike_the_others_is_named(caplog: pytest.LogCaptureFixture) -> None:
    summaries = Nodes(NODES, 2, means=0.3).summaries()
    with caplog.at_level(logging.INFO):
        merge(summaries, summaries[0].features, 0.0, shares=2.0)
    assert caplog.text == ""
    summaries[LIAR] = LIES["all rows in the first bin"](summaries[LIAR], 0)
    with caplog.at_level(logging.INFO):
        merge(summaries, summaries[0].features, 0.0, shares=2.0)
    assert "the new rows of node 0 are unlike the others' in x0 and 1 more feature" in caplog.text
