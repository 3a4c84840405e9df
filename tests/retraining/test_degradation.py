# SPDX-License-Identifier: Apache-2.0
"""The default rule of the monitor: which falls become a request, and what it makes of any score."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter
from scipy.signal import lfilter

from fl_app.retraining import (
    BestMinusThreshold,
    CappedCusum,
    DegradationRule,
    MonitorStore,
    RetrainingManager,
)
from fl_app.retraining.degradation import ARL, LIMIT, Rule, alarm_height, level_and_spread

CLIMB = [0.5 + 0.04 * i for i in range(11)]
any_scores = st.lists(
    st.one_of(st.floats(-LIMIT, LIMIT), st.floats(0, 1), st.sampled_from([0.8, 1e100, -1e100])),
    max_size=40,
)
impossible = pytest.mark.parametrize(
    "score", [math.nan, math.inf, -math.inf, 1e300, -1e300, 1.1e100]
)


def requests(rule: DegradationRule, scores: Iterable[float]) -> list[int]:
    """Rounds, from 0 on, in which the rule requests retraining."""
    rounds = []
    for number, score in enumerate(scores):
        rule, reason = rule.update(float(score))
        if reason:
            rounds.append(number)
    return rounds


def manager(**settings: int) -> RetrainingManager:
    return RetrainingManager(0.05, 300, store=MonitorStore(), **settings)


@pytest.mark.parametrize(
    ("before", "fallen"),
    [
        ([0.82, 0.90], 0.80),
        (CLIMB, 0.80),
        (CLIMB, 0.60),
        (CLIMB, 0.55),
        ([0.90] * 20, 0.84),
        ([0.90] * 20, 0.80),
        ([0.90], 0.80),
        ([0.90], 0.10),
        ([0.80] * 500, 0.74),
    ],
)
def test_a_fall_is_requested_within_ten_scores_with_no_version_known(
    before: list[float], fallen: float
) -> None:
    monitor = manager()
    for number, score in enumerate([*before, *[fallen] * 10]):
        monitor.update_metrics(score, number)
    first = monitor.trigger_history[0]
    assert first["outcome"] == "pending"
    assert f"it is {fallen:.4f} now" in first["reason"]


@pytest.mark.parametrize("seed", range(3))
def test_a_fall_back_after_a_slow_climb_is_found(seed: int) -> None:
    climb = np.r_[np.linspace(0.7, 0.8, 300), np.full(100, 0.8), np.full(10, 0.7)]
    scores = climb + np.random.default_rng(seed).normal(0, 0.02, climb.size)
    assert requests(CappedCusum(0.05), scores)[0] >= 400


@pytest.mark.parametrize("seed", range(3))
def test_a_slow_decline_is_found(seed: int) -> None:
    level = np.r_[np.full(100, 0.8), np.linspace(0.8, 0.7, 300)]
    scores = level + np.random.default_rng(seed).normal(0, 0.01, level.size)
    assert requests(CappedCusum(0.05), scores)[0] >= 150


def test_a_baseline_is_never_learned_from_a_fall() -> None:
    rule = CappedCusum(0.05)
    for score in [0.9] * 5 + [0.8] * 300:
        rule, _ = rule.update(score)
    assert set(rule.reference) == {0.9}


@given(st.integers(0, 2**32 - 1))
def test_noise_requests_nothing_before_its_size_is_known(seed: int) -> None:
    scores = 0.8 + np.random.default_rng(seed).normal(0, 0.02, 30)
    assert requests(CappedCusum(0.05), scores) == []


@pytest.mark.parametrize("wild", [0.0, 100.0, 1e90, -1e90])
@pytest.mark.parametrize("when", [3, 10, 60])
def test_one_wild_score_requests_nothing(wild: float, when: int) -> None:
    scores = 0.8 + np.random.default_rng(when).normal(0, 0.01, 200)
    scores[when] = wild
    assert requests(CappedCusum(0.05), scores) == []


def test_correlated_noise_requests_nothing() -> None:
    noise = np.random.default_rng(5).normal(0, 0.02 * math.sqrt(1 - 0.7**2), 700)
    assert requests(CappedCusum(0.05), 0.8 + lfilter([1], [1, -0.7], noise)) == []


def test_the_spread_counts_the_autocorrelation_and_not_the_step() -> None:
    noise = np.random.default_rng(5).normal(0, 0.02, 4000)
    correlated, none = lfilter([1], [1, -0.7], noise), np.zeros(0)  # 0.02 / (1 - 0.7) = 0.067
    assert level_and_spread(noise, none, 4000, 0)[1] == pytest.approx(0.02, rel=0.1)
    assert level_and_spread(correlated, none, 4000, 0)[1] == pytest.approx(0.067, rel=0.15)
    assert level_and_spread(noise, noise - 1, 4000, 0)[1] == pytest.approx(0.02, rel=0.1)


@pytest.mark.parametrize("spread", [0.005, 0.02, 0.1, 1.0])
def test_the_height_is_that_of_the_mean_run_length(spread: float) -> None:
    drift = 0.025 / spread
    y = 2 * drift * alarm_height(spread, 0.025) / spread
    assert (math.exp(y) - 1 - y) / (2 * drift**2) == pytest.approx(ARL, rel=0.01)


@given(any_scores, any_scores, st.sampled_from(["max", "min"]), st.floats(1e-100, 1e100))
def test_the_state_stays_finite_whatever_the_scores(
    first: list[float], second: list[float], mode: str, threshold: float
) -> None:
    rule = CappedCusum(threshold, mode)  # type: ignore[arg-type]
    for score in first:
        rule, _ = rule.update(score)
    if second:
        rule = rule.rebase(second[0])
    for score in second:
        rule, _ = rule.update(score)
    json.dumps(asdict(rule), allow_nan=False)


@pytest.mark.parametrize("kind", [CappedCusum, BestMinusThreshold])
@given(scores=any_scores)
def test_a_rule_goes_on_after_a_restart_as_if_there_was_none(
    kind: type[DegradationRule], scores: list[float]
) -> None:
    adapter = TypeAdapter(Rule)
    through = restarted = kind(0.05)
    for score in scores:
        through, reason = through.update(score)
        restarted = adapter.validate_json(adapter.dump_json(restarted))  # type: ignore[arg-type]
        restarted, again = restarted.update(score)
        assert (restarted, again) == (through, reason)


@given(any_scores)
def test_less_is_better_where_the_mode_says_so(scores: list[float]) -> None:
    up, down = CappedCusum(0.05), CappedCusum(0.05, "min")
    for score in scores:
        (up, fell), (down, rose) = up.update(score), down.update(-score)
        assert bool(fell) == bool(rose)
        assert (up.healthy, up.reference) == (down.healthy, tuple(-x for x in down.reference))


@impossible
def test_a_score_that_is_not_possible_is_rejected_with_its_value(
    score: float, caplog: pytest.LogCaptureFixture
) -> None:
    monitor = manager()
    for number in range(20):
        monitor.update_metrics(0.8, number)
    for number in range(4):
        monitor.update_metrics(score, 20 + number)
    assert (monitor.best_accuracy, monitor.current_accuracy) == (0.8, 0.8)
    assert f"the score of round 20 is {score}, expected a finite number" in caplog.text
    assert "rejected 4 times in a row" in caplog.text
    for number in range(100):
        monitor.update_metrics(0.8, 30 + number)
    assert monitor.trigger_history == []
    for number in range(5):
        monitor.update_metrics(0.7, 130 + number)
    assert monitor.trigger_history[0]["outcome"] == "pending"


@impossible
def test_no_version_starts_from_a_score_that_is_not_possible(
    score: float, caplog: pytest.LogCaptureFixture
) -> None:
    monitor = manager()
    monitor.start_from("1", 0.8)
    monitor.start_from("2", score)
    assert monitor.best_accuracy == 0.8
    assert f"the score of version 2 is {score}, expected a finite number" in caplog.text
    monitor.start_from("2", 0.7)  # it is accepted once it is one
    assert monitor.best_accuracy == 0.7


def test_after_a_retraining_a_new_fall_is_requested_again() -> None:
    monitor = manager(min_rounds_between_retrain=0, min_hours_between_retrain=0)
    served = []
    for score in [0.9] * 20 + [0.8] * 10 + [0.9] * 20 + [0.8] * 10:
        monitor.update_metrics(score, 1)
        request = monitor.take()
        if request is not None:
            served.append(request)
            with monitor.running(request):
                pass
    assert len(served) == 2


def test_a_fall_that_outlasts_the_cooldown_is_requested_after_it() -> None:
    monitor = manager(min_rounds_between_retrain=30, min_hours_between_retrain=0)
    monitor.manual_trigger("new data")
    request = monitor.take()
    assert request is not None
    with monitor.running(request):
        pass
    for score in [0.9] * 10 + [0.8] * 15:
        monitor.update_metrics(score, 1)
    assert {entry["outcome"] for entry in monitor.trigger_history} == {"done", "suppressed"}
    for _ in range(15):
        monitor.update_metrics(0.8, 1)
    assert monitor.take() is not None


def test_a_stored_rule_of_another_shape_is_not_used(caplog: pytest.LogCaptureFixture) -> None:
    store = MonitorStore()
    before = RetrainingManager(store=store)
    before.start_from("1", 0.9)
    _, stored = store.note("monitor", dict[str, Any]).read()
    assert stored is not None
    rule = {"policy": "capped_cusum", "mode": "max", "prior": 0.9, "best": 0.9}
    store.note("monitor", dict[str, Any]).write({**stored, "rule": rule})
    with caplog.at_level(logging.INFO, "flwr.fl_app"):
        after = RetrainingManager(store=store)
    assert after.best_accuracy is None
    assert "begins anew" in caplog.text
