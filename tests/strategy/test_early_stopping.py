# SPDX-License-Identifier: Apache-2.0
"""Early stopping: the rule, for any scores, and what a session does with it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Literal

import pytest
from flwr.app import ArrayRecord, Error, Message, MetricRecord
from hypothesis import given
from hypothesis import strategies as st
from support.docs import run_block
from support.local_grid import LocalGrid, add_one, model

from fl_app import LifecycleStrategy, RoundReport
from fl_app.events import Event, SessionEnded
from fl_app.strategy import RoundSettings
from fl_app.strategy.early_stopping import EarlyStopping
from fl_registry import InMemoryModelStore, InMemoryTracker

Mode = Literal["max", "min"]
whole = st.integers(-20, 20).map(float)
scores = st.lists(st.one_of(whole, st.sampled_from([math.nan, math.inf, -math.inf])))
rules = st.builds(EarlyStopping, st.integers(1, 6), st.integers(0, 5).map(float))


def judged(rule: EarlyStopping, values: list[float], mode: Mode = "max") -> str:
    """What the rule says after rounds with these scores."""
    reports = [RoundReport(n, 99, {"m": value}) for n, value in enumerate(values, start=1)]
    return rule.judge(reports, metric="m", mode=mode)


def play(rule: EarlyStopping, values: list[float], mode: Mode = "max") -> int | None:
    """Return the round after which the rule stops, or None."""
    ends = range(1, len(values) + 1)
    return next((end for end in ends if judged(rule, values[:end], mode)), None)


def expected(rule: EarlyStopping, values: list[float]) -> int | None:
    """The same by its definition: `patience` rounds in a row, none of them a new record."""
    records: list[tuple[int, float]] = []
    for server_round, value in enumerate(values, start=1):
        if math.isfinite(value) and (not records or value > records[-1][1] + rule.min_delta):
            records.append((server_round, value))
        if server_round - (records[-1][0] if records else 0) >= rule.patience:
            return server_round
    return None


@given(rules, scores)
def test_it_stops_after_patience_rounds_without_a_record(
    rule: EarlyStopping, values: list[float]
) -> None:
    assert play(rule, values) == expected(rule, values)


@given(rules, scores)
def test_once_it_stops_it_has_stopped(rule: EarlyStopping, values: list[float]) -> None:
    assert bool(judged(rule, values)) == (play(rule, values) is not None)


@given(rules, scores)
def test_less_is_better_is_the_same_upside_down(rule: EarlyStopping, values: list[float]) -> None:
    upside_down = [-value for value in values]
    assert play(rule, values, "max") == play(rule, upside_down, "min")


@given(rules, scores)
def test_more_patience_never_stops_earlier(rule: EarlyStopping, values: list[float]) -> None:
    soon = play(rule, values) or math.inf
    late = play(EarlyStopping(rule.patience + 1, rule.min_delta), values) or math.inf
    assert soon < late or soon == late == math.inf


@given(rules, st.integers(1, 50))
def test_steady_progress_never_stops(rule: EarlyStopping, rounds: int) -> None:
    step = rule.min_delta + 1
    assert play(rule, [step * n for n in range(rounds)]) is None


def test_the_sentence_names_metric_best_and_round() -> None:
    rule = EarlyStopping(2, min_delta=0.01)
    assert judged(rule, [0.5, 0.6, 0.605, 0.59]) == (
        "m has not improved by more than 0.01 for 2 rounds; the best was 0.6000 in round 2"
    )
    assert judged(rule, [math.nan] * 2) == "m was not a finite number in any of 2 rounds"


@given(rules, scores, st.lists(st.sampled_from(["", "failed", "not evaluated"]), min_size=50))
def test_rounds_that_failed_or_were_not_evaluated_do_not_count(
    rule: EarlyStopping, values: list[float], states: list[str]
) -> None:
    rounds = list(enumerate(zip(values, states, strict=False), start=1))
    reports = [
        RoundReport(n, 99, {"m": v} if state != "not evaluated" else {}, failed=state == "failed")
        for n, (v, state) in rounds
    ]
    kept = [value for _, (value, state) in rounds if not state]
    said = rule.judge(reports, metric="m", mode="max")
    assert bool(said) == (play(rule, kept) is not None)


@pytest.mark.parametrize(("patience", "min_delta"), [(0, 0.0), (-1, 0.0), (1, -0.1), (1, math.nan)])
def test_settings_that_make_no_sense_are_refused(patience: int, min_delta: float) -> None:
    with pytest.raises(ValueError, match=r"(patience|min_delta) is .*, expected"):
        EarlyStopping(patience, min_delta)


def flat(best: int) -> object:
    """A holdout whose accuracy grows by 0.1 a round, up to round `best`."""

    def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        reached = float(arrays.to_numpy_ndarrays()[0].mean())
        return MetricRecord({"accuracy": min(reached, best) / 10})

    return evaluate


@pytest.mark.parametrize(("pipeline", "rounds"), [(False, 4), (True, 5)])
def test_a_session_stops_and_says_why(
    pipeline: bool, rounds: int, caplog: pytest.LogCaptureFixture
) -> None:
    """With a pipeline one round later: that one was on its way when the verdict was known."""
    caplog.set_level("INFO", logger="flwr.fl_app")
    store, tracker, events = InMemoryModelStore(), InMemoryTracker(), list[Event]()
    grid = LocalGrid(add_one)
    result = LifecycleStrategy(
        metric="accuracy",
        rounds=RoundSettings(early_stopping=EarlyStopping(2), pipeline=pipeline),
        store=store,
        tracker=tracker,
        hooks=[events.append],
    ).start(grid, model(), num_rounds=9, evaluate_fn=flat(2))  # type: ignore[arg-type]
    assert [row["tags"]["round"] for row in reversed(store.list_all_versions())] == [
        str(number) for number in range(1, rounds + 1)
    ]
    assert len(grid.sent) == 2 * 3 * rounds
    assert float(result.arrays.to_numpy_ndarrays()[0].mean()) == rounds
    why = "accuracy has not improved by more than 0 for 2 rounds; the best was 0.2000 in round 2"
    assert f"early stopping: {why}; {9 - rounds} rounds are left out" in caplog.messages
    assert tracker.runs[0].tags["early_stopping"] == why
    assert tracker.runs[0].status == "FINISHED"
    assert not [name for name in tracker.runs[0].tags if name.startswith("failed_round")]
    (ended,) = (event for event in events if isinstance(event, SessionEnded))
    assert (ended.status, ended.reason, ended.failed_rounds) == ("finished", why, 0)
    assert sorted(result.evaluate_metrics_serverapp) == list(range(rounds + 1))


def test_a_session_that_improves_runs_to_its_end() -> None:
    store = InMemoryModelStore()
    LifecycleStrategy(
        metric="accuracy",
        rounds=RoundSettings(early_stopping=EarlyStopping(1)),
        store=store,
        tracker=InMemoryTracker(),
    ).start(LocalGrid(add_one), model(), num_rounds=4, evaluate_fn=flat(9))  # type: ignore[arg-type]
    assert len(store.list_all_versions()) == 4


def test_failed_rounds_do_not_wear_the_patience_out() -> None:
    trained = {"n": 0}

    def answer(node_id: int, message: Message) -> object:
        if message.metadata.message_type == "train":
            trained["n"] += 1
            if trained["n"] in (7, 8, 9):  # all three nodes in round 3
                return Error(code=100, reason="out of memory")
        return add_one(node_id, message)

    store = InMemoryModelStore()
    LifecycleStrategy(
        metric="accuracy",
        rounds=RoundSettings(early_stopping=EarlyStopping(2), pipeline=False),
        store=store,
        tracker=InMemoryTracker(),
    ).start(LocalGrid(answer), model(), num_rounds=9, evaluate_fn=flat(2))  # type: ignore[arg-type]
    rounds = [row["tags"]["round"] for row in reversed(store.list_all_versions())]
    assert rounds == ["1", "2", "4", "5"]


def test_without_a_metric_there_is_nothing_to_look_at() -> None:
    with pytest.raises(ValueError, match="early_stopping needs a metric"):
        LifecycleStrategy(rounds=RoundSettings(early_stopping=EarlyStopping(2)))


def test_the_page_s_strategy_is_made(home: Path) -> None:
    names = run_block("rounds.md", "EarlyStopping(")
    assert names["rounds"].early_stopping == EarlyStopping(5, 0.001)
    assert names["rounds"].node_wait_timeout == 120
