# SPDX-License-Identifier: Apache-2.0
"""Early stopping: the rule, for any scores, and what a session does with it."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl_app.strategy.early_stopping import EarlyStopping, Progress

Mode = Literal["max", "min"]
whole = st.integers(-20, 20).map(float)
scores = st.lists(st.one_of(whole, st.sampled_from([math.nan, math.inf, -math.inf]), st.none()))
rules = st.builds(EarlyStopping, st.integers(1, 6), st.integers(0, 5).map(float))


def play(
    rule: EarlyStopping, values: list[float | None], mode: Mode = "max"
) -> tuple[int | None, Progress]:
    """Return the round after which the rule stops, or None, and how far it came."""
    progress = Progress()
    for server_round, value in enumerate(values, start=1):
        progress = rule.after(progress, server_round, value, mode=mode)
        if rule.verdict(progress, "m"):
            return server_round, progress
    return None, progress


def expected(rule: EarlyStopping, values: list[float | None]) -> int | None:
    """The same by its definition: `patience` rounds in a row, none of them a new record."""
    records: list[tuple[int, float]] = []
    for server_round, value in enumerate(values, start=1):
        finite = value is not None and math.isfinite(value)
        if finite and (not records or value > records[-1][1] + rule.min_delta):
            records.append((server_round, float(value)))
        if server_round - (records[-1][0] if records else 0) >= rule.patience:
            return server_round
    return None


@given(rules, scores)
def test_it_stops_after_patience_rounds_without_a_record(
    rule: EarlyStopping, values: list[float | None]
) -> None:
    assert play(rule, values)[0] == expected(rule, values)


@given(rules, scores)
def test_less_is_better_is_the_same_upside_down(
    rule: EarlyStopping, values: list[float | None]
) -> None:
    upside_down = [None if value is None else -value for value in values]
    assert play(rule, values, "max")[0] == play(rule, upside_down, "min")[0]


@given(rules, scores, st.data())
def test_saved_and_restored_in_between_it_decides_the_same(
    rule: EarlyStopping, values: list[float | None], data: st.DataObject
) -> None:
    stops, whole_way = play(rule, values)
    place = data.draw(st.integers(0, len(values) if stops is None else stops - 1))
    _, before = play(rule, values[:place])
    progress = Progress(**json.loads(json.dumps(asdict(before))))
    for server_round, value in enumerate(values[place : stops or None], start=place + 1):
        progress = rule.after(progress, server_round, value, mode="max")
    assert progress == whole_way


@given(rules, scores)
def test_more_patience_never_stops_earlier(rule: EarlyStopping, values: list[float | None]) -> None:
    soon = play(rule, values)[0] or math.inf
    late = play(EarlyStopping(rule.patience + 1, rule.min_delta), values)[0] or math.inf
    assert soon < late or soon == late == math.inf


@given(rules, st.integers(1, 50))
def test_steady_progress_never_stops(rule: EarlyStopping, rounds: int) -> None:
    step = rule.min_delta + 1
    assert play(rule, [step * n for n in range(rounds)])[0] is None


def test_the_sentence_names_metric_best_and_round() -> None:
    rule = EarlyStopping(2, min_delta=0.01)
    _, progress = play(rule, [0.5, 0.6, 0.605, 0.59])
    said = rule.verdict(progress, "mAP50")
    assert said == (
        "mAP50 has not improved by more than 0.01 for 2 rounds; the best was 0.6000 in round 2"
    )
    _, progress = play(rule, [math.nan, None])
    assert rule.verdict(progress, "mAP50") == ("mAP50 was not a finite number in any of 2 rounds")


@pytest.mark.parametrize(("patience", "min_delta"), [(0, 0.0), (-1, 0.0), (1, -0.1), (1, math.nan)])
def test_settings_that_make_no_sense_are_refused(patience: int, min_delta: float) -> None:
    with pytest.raises(ValueError, match="patience of at least 1 round"):
        EarlyStopping(patience, min_delta)
