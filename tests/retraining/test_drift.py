# SPDX-License-Identifier: Apache-2.0
"""The drift test: false alarms, delays, the reason of an alarm, and what is stored."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter
from scipy.stats import ks_2samp, uniform
from support.drift_nodes import MINUTES, NO_SEASON, Nodes, last_alarm, run

from fl_app.retraining.drift.check import DriftSettings, check, e_value
from fl_app.retraining.drift.merge import kolmogorov_p, merge
from fl_app.retraining.drift.state import DriftState, Window, difference
from fl_app.wire.data_summary import DataSummary, Feature, FeatureKind

QUIET = 12
"""Checks after which the variance between checks is known well enough for these tests."""


def one(*values: float) -> np.ndarray:
    """A shift of the first columns of four."""
    return np.array([*values, *[0.0] * (4 - len(values))])


@pytest.mark.parametrize("means", [0.0, 1.0])
def test_no_alarm_without_drift_however_much_the_nodes_differ(means: float) -> None:
    _, result = run(Nodes(10, 4, means=means), 300)
    assert last_alarm(result) is None


def test_a_changing_choice_of_nodes_is_no_drift() -> None:
    nodes, state = Nodes(20, 4, means=3.0), DriftState()
    for number in range(200):
        few = nodes.rng.permutation(nodes.summaries(hold=state.hold))[:3].tolist()  # type: ignore[arg-type]
        state, result = check(state, few, number * MINUTES, NO_SEASON)
        assert result is not None
        assert not result.is_alarm


def test_a_low_height_is_reached_no_more_often_than_promised() -> None:
    """At an alarm each 200 checks, 1,500 checks may ring 7 times on average."""
    settings = replace(NO_SEASON, false_alarm_days=200 * MINUTES / 86_400, min_effect=0.0)
    held = 0
    for seed in range(3):
        nodes, state = Nodes(3, 3, rows=60, baseline=60, seed=seed), DriftState()
        for number in range(500):
            state, _ = check(state, nodes.summaries(hold=state.hold), number * MINUTES, settings)
            held += state.hold
            if state.hold:
                state = replace(state, evidence=np.zeros_like(state.evidence), hold=False)
    assert held <= 14


@pytest.mark.parametrize(
    ("shift", "share", "most"),
    [(one(0.2), 1.0, 5), (one(0.5), 1.0, 2), (one(0.5), 0.2, 6), (one(0.2, -0.2, 0.2), 1.0, 4)],
)
def test_a_shift_is_found_in_a_few_checks(shift: np.ndarray, share: float, most: int) -> None:
    nodes = Nodes(10, 4, means=0.3, baseline=1000)
    state, _ = run(nodes, 12)
    _, result = run(nodes, most, moved=shift, share=share, state=state)
    alarm = last_alarm(result)
    assert alarm is not None
    assert {str(f.feature) for f in alarm.drifted} <= {f"x{i}" for i in np.flatnonzero(shift)}


def test_opposite_shifts_of_the_nodes_do_not_cancel() -> None:
    nodes = Nodes(10, 2, means=0.0)
    state, _ = run(nodes, QUIET)
    for number in range(3):
        up, down = nodes.summaries(0.5, hold=state.hold), nodes.summaries(-0.5, hold=state.hold)
        half = up[:5] + down[5:]
        state, result = check(state, half, (number + QUIET) * MINUTES, NO_SEASON)
    assert result is not None
    assert result.is_alarm


def test_the_reason_names_features_direction_effect_and_nodes() -> None:
    nodes = Nodes(5, 4, means=0.3)
    state, _ = run(nodes, QUIET)
    _, result = run(nodes, 5, moved=one(1.5, 0, -1.5), share=0.4, state=state)
    alarm = last_alarm(result)
    assert alarm is not None
    assert {str(f.feature): f.direction for f in alarm.drifted} == {"x0": "higher", "x2": "lower"}
    assert "x0 higher (effect 0." in alarm.reason
    assert "2 of 5 nodes" in alarm.reason


def test_a_wider_spread_is_no_direction() -> None:
    nodes = Nodes(3, 1, means=0.0)
    state, _ = run(nodes, QUIET)
    wide = nodes.rng.standard_normal((3, 200, 1)) * 4
    summaries = [replace(s) for s in nodes.summaries()]
    for node, rows in enumerate(wide):
        reference = nodes.references[node].with_rows({"x0": rows[:, 0]}, np.array([], np.uint64))
        _, summaries[node] = reference.summarised(str(node), nodes.rng)
    _, result = check(state, summaries, QUIET * MINUTES, NO_SEASON)
    assert result is not None
    assert result.drifted[0].direction == "with another spread"


def test_the_gate_ignores_a_shift_too_small_to_matter() -> None:
    def requests_retraining(min_effect: float) -> bool:
        nodes = Nodes(5, 2, means=0.0, rows=10_000, baseline=10_000)
        settings = replace(NO_SEASON, min_effect=min_effect)
        state, _ = run(nodes, QUIET, settings)
        _, result = run(nodes, 25, settings, moved=0.04, state=state)
        return last_alarm(result) is not None

    assert not requests_retraining(0.05)
    assert requests_retraining(0.002)


def rings_in_two_days(settings: DriftSettings, gross: float = 0.0) -> list[int]:
    """Checks each half hour of data with a daily cycle; from the 90th on they are shifted too."""
    nodes, state, alarms = Nodes(2, 2, means=0.0, rows=100), DriftState(), []
    for number in range(96):
        cycle = 0.3 * np.sin(2 * np.pi * number / 48) + (gross if number >= 90 else 0)
        state, result = check(
            state, nodes.summaries(cycle, hold=state.hold), number * 1800.0, settings
        )
        if result is not None and result.is_alarm:
            alarms.append(number)
    return alarms


def test_a_daily_cycle_is_a_season_and_a_gross_shift_is_not() -> None:
    assert rings_in_two_days(DriftSettings()) == []
    assert rings_in_two_days(NO_SEASON) == []  # the correlation of the checks is part of the test
    assert min(rings_in_two_days(DriftSettings(), gross=1.5)) in range(90, 96)


def test_a_lasting_shift_shows_in_a_whole_season() -> None:
    nodes = Nodes(4, 2, means=0.0)
    settings = DriftSettings(season="2h")
    state, result = run(nodes, 25, settings)
    _, result = run(nodes, 30, settings, moved=0.3, state=state)
    assert last_alarm(result) is not None
    assert 5 < len(result) < 25


def test_evidence_of_a_past_shift_decays() -> None:
    nodes = Nodes(5, 3, means=0.0)
    state, _ = run(nodes, QUIET)
    state, _ = run(nodes, 2, replace(NO_SEASON, min_effect=0.9), moved=0.5, state=state)
    assert state.hold
    state, _ = run(nodes, 60, replace(NO_SEASON, min_effect=0.9), state=state)
    assert not state.hold


def test_what_is_held_back_stays_out_of_the_reference() -> None:
    nodes = Nodes(3, 2, means=0.0)
    state, _ = run(nodes, QUIET)
    for number in range(4):
        summaries = nodes.summaries(2.0, hold=state.hold)
        state, _ = check(state, summaries, (QUIET + number) * MINUTES, NO_SEASON)
    grown = [int(r.grown[0].sum()) for r in nodes.references]
    assert grown == [600 + QUIET * 200] * 3


def test_the_height_is_the_checks_in_the_days_without_false_alarm() -> None:
    nodes = Nodes(2, 1)
    _, result = run(nodes, 5)
    assert result[-1] is not None
    assert result[-1].height == pytest.approx(365 * 86_400 / 300)
    _, result = run(nodes, 15, interval=3600.0)
    assert result[-1] is not None
    assert result[-1].height == pytest.approx(365 * 24)


def test_the_guide_s_rule_is_an_alarm_at_any_small_p() -> None:
    settings = DriftSettings(policy="per_check")
    alarms = 0
    for seed in range(60):
        _, result = run(Nodes(2, 10, seed=seed), 1, settings)
        alarms += last_alarm(result) is not None
    assert 10 <= alarms <= 40  # 1 - 0.95 ** 10 is 0.4


def test_a_node_without_a_disk_is_compared_with_the_server_s_reference() -> None:
    nodes, state = Nodes(5, 3, means=1.0), DriftState()
    state, result = check(state, nodes.bare(), 0.0, NO_SEASON)
    assert result is None
    for number in range(1, 60):
        state, result = check(state, nodes.bare(), number * MINUTES, NO_SEASON)
        assert result is not None
        assert not result.is_alarm
    assert {str(f.feature) for f in result.features} == {"x0", "x1", "x2"}
    for number in range(60, 63):
        state, result = check(state, nodes.bare(1.0), number * MINUTES, NO_SEASON)
    assert result is not None
    assert result.is_alarm


def test_noise_is_no_drift_and_a_shift_shows_through_it() -> None:
    nodes = Nodes(5, 3, rows=2000, baseline=4000, variance=70.0)
    state, result = run(nodes, 60)
    assert last_alarm(result) is None
    _, result = run(nodes, 5, moved=0.5, state=state)
    assert last_alarm(result) is not None


def test_the_noise_s_variance_is_in_the_test() -> None:
    """Uncorrected, noise of this size alone is significant nearly always."""
    p, without = [], []
    for seed in range(40):
        nodes = Nodes(3, 3, rows=600, baseline=2000, seed=seed, variance=900.0)
        summaries = nodes.summaries()
        names = summaries[0].features
        p += merge(summaries, names, 0.0).p.tolist()
        without += merge([replace(s, noise=(0.0,) * 3) for s in summaries], names, 0.0).p.tolist()
    assert np.mean(np.array(without) < 0.05) > 0.5
    assert np.mean(np.array(p) < 0.05) < 0.08


def test_missing_rows_are_named() -> None:
    features = (Feature("age"), Feature("age", FeatureKind.MISSING))

    def summaries(missing: int) -> list[DataSummary]:
        summaries = []
        for node in range(3):
            counts = np.zeros((2, 3, 64))
            counts[0, :, :4] = [[(400 - missing) / 4] * 4, [100] * 4, [100] * 4]
            counts[1, :, :2] = [[400 - missing, missing], [400, 0], [400, 0]]
            summaries.append(DataSummary(str(node), "", features, counts, (0.0,) * 3))
        return summaries

    state, result = check(DriftState(), summaries(0), 0.0, NO_SEASON)
    assert result is not None
    assert not result.is_alarm
    state, result = check(state, summaries(120), MINUTES, NO_SEASON)
    assert result is not None
    assert "age (missing) more often" in result.reason


def test_one_node_cannot_add_columns_or_other_bins() -> None:
    nodes = Nodes(3, 2)
    summaries = nodes.summaries()
    names = (*summaries[0].features, Feature("mine"))
    summaries[0] = replace(summaries[0], features=names, counts=summaries[0].counts[[0, 1, 1]])
    summaries[1] = replace(
        summaries[1], counts=summaries[1].counts.reshape(2, 3, 16, 4).sum(axis=3)
    )
    state, result = check(DriftState(), summaries, 0.0, NO_SEASON)
    assert result is not None
    assert [str(f) for f in state.features] == ["x0", "x1"]
    assert result.nodes == 2


def test_summaries_for_another_reference_are_left_out() -> None:
    nodes = Nodes(2, 2)
    state, result = check(DriftState("new"), nodes.summaries(5.0), 0.0, NO_SEASON)
    assert result is None
    assert state.checks == 0


def test_the_state_outlives_json_exactly_enough() -> None:
    nodes = Nodes(3, 3)
    state, _ = run(nodes, 30, DriftSettings())
    state, _ = check(state, nodes.bare(), 30 * MINUTES, DriftSettings())
    adapter = TypeAdapter(DriftState)
    stored = adapter.dump_json(state)
    restored = adapter.validate_json(stored)
    assert adapter.dump_json(restored) == stored
    summaries = nodes.summaries(0.5)
    _, mine = check(state, summaries, 31 * MINUTES, NO_SEASON)
    _, theirs = check(restored, summaries, 31 * MINUTES, NO_SEASON)
    assert mine is not None
    assert theirs is not None
    assert [f.effect for f in mine.features] == pytest.approx([f.effect for f in theirs.features])


def test_a_feature_without_recent_rows_is_dropped() -> None:
    nodes = Nodes(2, 2)
    state, _ = run(nodes, 3)
    for number in range(3, 17):
        summaries = [
            replace(s, features=s.features[:1], counts=s.counts[:1]) for s in nodes.summaries()
        ]
        state, _ = check(state, summaries, number * MINUTES, NO_SEASON)
    assert [str(f) for f in state.features] == ["x0"]


def test_e_values_of_uniform_p_have_a_mean_of_at_most_one() -> None:
    p = (np.arange(10**6) + 0.5) / 10**6
    assert e_value(p).mean() <= 1.0 + 1e-3
    assert e_value(np.array([0.0, 1e-320, 1.0])).tolist() == pytest.approx(
        [1e15, 1e15, 0.5], rel=1e-2
    )


@given(st.floats(0, 1), st.floats(0, 1))
def test_e_values_fall_as_p_grows(one: float, other: float) -> None:
    low, high = sorted((one, other))
    assert e_value(np.array(low)) >= e_value(np.array(high)) - 1e-6


def test_the_p_value_is_scipy_s_where_there_is_one_node_and_many_bins() -> None:
    rng = np.random.default_rng(1)
    past, now = np.sort(uniform.rvs(size=4000, random_state=rng)), rng.random(1000) ** 1.05
    edges = past[np.arange(1, 1000) * 4]
    counts = [np.bincount(np.searchsorted(edges, x), minlength=1000) for x in (now, past)]
    d = difference(counts[0], counts[1] / 4.0, np.array(1000))
    exact = ks_2samp(now, past, method="asymp")
    assert d == pytest.approx(exact.statistic, abs=0.003)
    assert kolmogorov_p(d, np.array(1 / 1000 + 1 / 4000)) == pytest.approx(exact.pvalue, rel=0.15)


def test_windows_add_up() -> None:
    flat, square = np.ones(2), np.ones((2, 4))
    window = Window(3.0, square, square, flat, flat, flat, flat, flat)
    both = window + replace(window, time=1.0)
    assert both.time == 3.0
    assert all((values == 2).all() for values in both.arrays)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"false_alarm_days": 0.0}, "false_alarm_days"),
        ({"min_effect": 1.0}, "min_effect"),
        ({"season": "a day"}, "'24h'"),
        ({"season": "0h"}, "'24h'"),
        ({"policy": "guide"}, "per_check"),
    ],
)
def test_invalid_settings_are_refused(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DriftSettings(**wrong)  # type: ignore[arg-type]
