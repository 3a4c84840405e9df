# SPDX-License-Identifier: Apache-2.0
"""The monitor: what becomes a request, what does not, and the loop that serves requests."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
from flwr.serverapp.strategy import FedAvg
from hypothesis import given
from hypothesis import strategies as st
from support.docs import run_block

from fl_app import LifecycleStrategy
from fl_app.api import create_trigger_api
from fl_app.retraining import (
    BestMinusThreshold,
    CappedCusum,
    MonitorStore,
    Probation,
    RetrainingManager,
    RetrainRequest,
    train_and_retrain,
)
from fl_registry import ModelManager

scores = st.lists(st.floats(0, 1), min_size=1, max_size=40)


def outcomes(manager: RetrainingManager) -> list[str]:
    return [entry["outcome"] for entry in manager.trigger_history]


@given(scores, st.floats(0.001, 0.5))
def test_it_asks_exactly_when_the_score_is_below_the_best_by_more(
    values: list[float], threshold: float
) -> None:
    rule, best = BestMinusThreshold(threshold), -math.inf
    for value in values:
        best = max(best, value)
        rule, reason = rule.update(value)
        assert bool(reason) == (best - value > threshold)
        assert (rule.best, rule.current) == (best, value)


@given(scores)
def test_min_mode_mirrors_max_mode(values: list[float]) -> None:
    up, down = BestMinusThreshold(0.1, "max"), BestMinusThreshold(0.1, "min")
    for value in values:
        (up, fell), (down, rose) = up.update(value), down.update(-value)
        assert bool(fell) == bool(rose)


def fed(rule: CappedCusum, values: Iterable[float]) -> tuple[CappedCusum, list[int]]:
    """Feed scores; return the rule and the rounds of its requests."""
    rounds = []
    for number, value in enumerate(values):
        rule, reason = rule.update(value)
        if reason:
            rounds.append(number)
    return rule, rounds


@given(st.integers(0, 2**32 - 1), st.sampled_from([0.002, 0.005, 0.01]))
def test_noise_alone_does_not_ring_the_cusum(seed: int, noise: float) -> None:
    scores = 0.8 + np.random.default_rng(seed).normal(0, noise, 200)
    assert fed(CappedCusum(0.05).rebase(0.8), scores)[1] == []


@given(st.integers(0, 2**32 - 1))
def test_a_lasting_fall_rings_the_cusum_soon(seed: int) -> None:
    rng = np.random.default_rng(seed)
    good, bad = rng.normal(0.8, 0.01, 60), rng.normal(0.72, 0.01, 15)
    rounds = fed(CappedCusum(0.05).rebase(0.8), [*good, *bad])[1]
    assert rounds
    assert 61 <= rounds[0] < 75


@given(st.integers(0, 100), st.floats(0, 0.7))
def test_one_outlier_never_rings_it(when: int, value: float) -> None:
    scores = [0.8] * 101
    scores[when] = value
    assert fed(CappedCusum(0.05).rebase(0.8), scores)[1] == []


def test_before_it_knows_the_noise_three_rounds_far_below_are_enough() -> None:
    assert fed(CappedCusum(0.05).rebase(0.9), [0.9, 0.2, 0.2, 0.2])[1] == [3]


def test_without_a_promoted_version_a_rising_score_rings_nothing() -> None:
    assert fed(CappedCusum(0.05), [i / 60 for i in range(60)])[1] == []


@given(st.integers(0, 2**32 - 1), st.integers(0, 80))
def test_the_cusum_mirrors_itself_in_min_mode(seed: int, fall_at: int) -> None:
    scores = np.random.default_rng(seed).normal(0.8, 0.02, 100)
    scores[fall_at:] -= 0.1
    up = fed(CappedCusum(0.05).rebase(0.8), scores)[1]
    assert fed(CappedCusum(0.05, "min").rebase(-0.8), -scores)[1] == up


def test_falls_are_measured_against_the_version_that_is_served() -> None:
    manager = RetrainingManager(0.05, policy="best_minus_threshold")
    manager.start_from("1", 0.9)
    manager.update_metrics(0.88, 1)
    manager.start_from("1", 0.5)  # the same version, scored again: the baseline stays
    assert manager.best_accuracy == 0.9
    manager.start_from("2", 0.7)
    assert manager.best_accuracy == 0.7
    assert manager.trigger_history == []


@given(st.lists(st.one_of(st.floats(), st.just("manual"), st.just("take")), max_size=60))
def test_at_most_one_request_waits_and_each_ends_once(events: list[float | str]) -> None:
    manager = RetrainingManager(
        min_rounds_between_retrain=2, policy="best_minus_threshold", store=MonitorStore()
    )
    for event in events:
        if event == "manual":
            manager.manual_trigger("why not")
        elif event == "take":
            request = manager.take()
            if request is not None:
                with manager.running(request):
                    pass
        else:
            assert isinstance(event, float)
            manager.update_metrics(event, 1)
        assert outcomes(manager).count("pending") <= 1
        assert manager.best_accuracy is None or math.isfinite(manager.best_accuracy)
    ids = [entry["id"] for entry in manager.trigger_history]
    assert len(ids) == len(set(ids))


def test_later_requests_join_the_one_that_waits() -> None:
    manager = RetrainingManager()
    first = manager.manual_trigger("new data")
    assert manager.manual_trigger("again") == first
    assert outcomes(manager) == ["pending", "joined"]


def test_rules_wait_after_a_retraining_and_people_do_not() -> None:
    manager = RetrainingManager(0.05, 300, 3, policy="best_minus_threshold")
    manager.manual_trigger()
    request = manager.take()
    assert request is not None
    with manager.running(request):
        pass
    for score in (0.9, 0.5):
        manager.update_metrics(score, 1)
    assert manager.take() is None
    assert "only 2 rounds" in manager.trigger_history[-1]["why"]
    manager.manual_trigger("now")
    assert manager.take() is not None


@pytest.mark.parametrize("threshold", [0, -1, math.nan, math.inf])
def test_an_invalid_threshold_is_refused(threshold: float) -> None:
    with pytest.raises(ValueError, match="expected a positive number"):
        RetrainingManager(threshold)


def test_a_negative_interval_is_refused() -> None:
    with pytest.raises(ValueError, match="expected 0 or more"):
        RetrainingManager(0.05, 300, -1)


def test_the_loop_serves_what_waits_up_to_the_limit() -> None:
    manager = RetrainingManager()
    seen: list[tuple[int, str]] = []

    def session(number: int, request: RetrainRequest | None) -> int:
        seen.append((number, request.reason if request else ""))
        manager.manual_trigger(f"after {number}")
        return number

    assert train_and_retrain(session, manager, max_retrains=2) == [1, 2, 3]
    assert seen == [(1, ""), (2, "after 1"), (3, "after 2")]
    assert outcomes(manager) == ["done", "done", "pending"]


def test_the_loop_ends_without_a_request() -> None:
    assert train_and_retrain(lambda n, r: n, RetrainingManager(), max_retrains=5) == [1]


def test_a_session_that_fails_is_marked_and_ends_the_loop() -> None:
    manager = RetrainingManager()
    manager.manual_trigger()

    def session(number: int, request: RetrainRequest | None) -> None:
        if request is not None:
            raise RuntimeError("no nodes")

    with pytest.raises(RuntimeError, match="no nodes"):
        train_and_retrain(session, manager, max_retrains=2)
    assert outcomes(manager) == ["failed"]


def test_the_page_s_snippet_runs(capsys: pytest.CaptureFixture[str]) -> None:
    run_block("retraining.md", "manual_trigger(")
    assert "new pictures" in capsys.readouterr().out
    waiting = RetrainingManager().take()  # as a server would that starts later
    assert waiting is not None
    assert waiting.reason == "new pictures"


def test_the_requests_of_one_model_are_not_served_by_another(home: Path) -> None:
    asked, digits = RetrainingManager(model="digits"), ModelManager(None, "digits", home=home)
    asked.manual_trigger("new digits")
    assert RetrainingManager().trigger_history == []
    (request,) = RetrainingManager(model="digits").trigger_history
    assert request["reason"] == "new digits"
    uses: list[Callable[[RetrainingManager], object]] = [
        lambda monitor: LifecycleStrategy(FedAvg(), store=digits, monitor=monitor),
        lambda monitor: create_trigger_api(monitor, store=digits),
        lambda monitor: Probation(digits, monitor),
    ]
    for use in uses:
        use(asked)
        use(RetrainingManager(store=MonitorStore()))  # in memory: nobody else sees its requests
        with pytest.raises(ValueError, match=r"RetrainingManager\(model='digits'\)"):
            use(RetrainingManager())
