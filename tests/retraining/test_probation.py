# SPDX-License-Identifier: Apache-2.0
"""Probation: when a promoted version passes, when it fails, and the rollback."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from fl_app.retraining import (
    MonitorStore,
    Probation,
    ProbationSettings,
    ProductionReport,
    RetrainingManager,
    TriggerKind,
)
from fl_app.retraining.probation.reports import Source
from fl_app.retraining.probation.state import (
    FEWEST,
    RECENT,
    Phase,
    ProbationState,
    in_one_line,
    ways_back,
)
from fl_registry import (
    Evidence,
    ExampleScores,
    InMemoryModelStore,
    StageError,
    StoreUnavailable,
    Tenure,
)
from fl_registry.files.weights import save_weights

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)
PROBATION = TypeAdapter(ProbationState)


def stay(number: int, version: str, *, returned: bool = False, displaced: str = "") -> Tenure:
    since = NOON + timedelta(hours=number)
    return Tenure(f"entry-{number}", number, version, since, returned, displaced=displaced)


BEFORE = "the 20 reports before its promotion"
ONE, TWO = stay(1, "1"), stay(2, "2", displaced="1")


def fed(state: ProbationState, values: list[float], **settings: Any) -> ProbationState:
    for value in values:
        report = ProductionReport(value)
        state = state.with_report(report, NOON, ProbationSettings(**settings))
    return state


def promoted(under_the_one_before: list[float], **settings: Any) -> ProbationState:
    """Version 2 on probation, after reports about version 1."""
    chosen = ProbationSettings(**settings)
    state = ProbationState().follow([ONE], chosen)
    state = fed(state, under_the_one_before, **settings)
    return state.follow([ONE, TWO], chosen)


# The rule.


@given(st.lists(st.floats(0.75, 0.85), max_size=200))
def test_a_fall_below_the_limit_never_fails(values: list[float]) -> None:
    assert fed(promoted([0.8] * FEWEST), values).failure is None


@given(st.integers(0, 2**32 - 1), st.sampled_from([0.002, 0.01, 0.02]))
def test_noise_alone_does_not_fail(seed: int, noise: float) -> None:
    values = np.clip(np.random.default_rng(seed).normal(0.8, noise, 320), 0, 1).tolist()
    assert fed(promoted(values[:20]), values[20:]).failure is None


@given(st.lists(st.sampled_from("x."), max_size=60), st.integers(1, 5))
def test_it_fails_at_so_many_critical_reports_in_a_row(marks: list[str], needed: int) -> None:
    values = [0.5 if mark == "x" else 0.8 for mark in marks]
    state = fed(promoted([0.8] * FEWEST, in_a_row=needed), values, in_a_row=needed)
    assert (state.failure is not None) == ("x" * needed in "".join(marks))
    assert state.steps == FEWEST + len(values)


@given(st.lists(st.floats(0, 1), min_size=FEWEST, max_size=40), st.lists(st.floats(0, 1)))
def test_a_stored_state_is_restored_as_it_was(before: list[float], after: list[float]) -> None:
    state = fed(promoted(before), after)
    assert PROBATION.validate_json(PROBATION.dump_json(state)) == state


def test_the_baseline_is_the_feed_under_the_version_before() -> None:
    baseline = promoted([0.9, 0.2, *[0.8] * 20]).trial.baseline  # type: ignore[union-attr]
    assert baseline is not None
    assert (baseline.level, baseline.of) == (0.8, BEFORE.replace("20", "22"))
    assert baseline.limit == pytest.approx(0.7)


def test_noisy_reports_have_a_lower_limit() -> None:
    noisy = [0.6, 0.7, 0.8, 0.9, 1.0] * 4
    baseline = promoted(noisy).trial.baseline  # type: ignore[union-attr]
    assert baseline is not None
    assert baseline.limit < 0.45


def test_without_reports_before_the_first_ones_are_the_baseline() -> None:
    few = promoted([0.9] * (FEWEST - 1))
    state = fed(few, [0.4] * FEWEST)
    trial = state.trial
    assert trial is not None
    assert trial.baseline is not None
    assert (trial.baseline.level, trial.healthy, state.failure) == (0.4, 0, None)
    failure = fed(state, [0.2] * 3).failure
    assert failure is not None
    assert "its own first 10 reports had 0.4000" in failure.reason


def wandering(random: np.random.Generator, count: int, deviation: float) -> list[float]:
    """Reports of which each is like the one before: four fifths of a deviation stay."""
    values = [random.normal(0, deviation)]
    for step in random.normal(0, 0.6 * deviation, count - 1):
        values.append(0.8 * values[-1] + step)
    return np.clip(0.8 + np.array(values), 0, 1).tolist()


def test_the_limit_follows_how_alike_reports_in_a_row_are() -> None:
    random = np.random.default_rng(2)
    like = wandering(random, 100, 0.05)
    limits = [promoted(values).trial.baseline for values in (like, random.permutation(like))]  # type: ignore[union-attr]
    falls = [base.level - base.limit for base in limits if base is not None]
    assert falls[0] > 1.5 * falls[1]
    one = promoted(like, in_a_row=1).trial.baseline  # type: ignore[union-attr]
    assert one is not None
    assert one.level - one.limit > falls[0]  # three in a row need less than one


@pytest.mark.parametrize("few", [False, True])
def test_reports_that_are_alike_or_of_few_predictions_do_not_fail(few: bool) -> None:
    random, failed = np.random.default_rng(4), 0
    for _ in range(20):
        drawn = random.binomial(20, 0.8, 220) / 20 if few else wandering(random, 220, 0.05)
        failed += fed(promoted(list(drawn[:20])), list(drawn[20:])).failure is not None
    assert failed <= 1


def test_reports_of_its_own_make_the_limit_surer_and_never_the_level_higher() -> None:
    random = np.random.default_rng(5)
    state = promoted(random.normal(0.8, 0.02, 10).tolist())
    before = state.trial.baseline  # type: ignore[union-attr]
    state = fed(state, random.normal(0.9, 0.02, 200).tolist())
    trial = state.trial
    assert trial is not None
    assert before is not None
    assert trial.baseline is not None
    assert trial.baseline.of == "the 10 reports before its promotion"
    assert trial.baseline.limit > before.limit
    assert len(trial.before) + len(trial.own) == RECENT
    assert fed(state, [0.6] * 3).failure is not None


def test_limits_of_latency_and_throughput_count_only_if_they_are_set() -> None:
    slow = ProductionReport(avg_latency_ms=900, throughput_qps=1)
    state = promoted([])
    for settings in (ProbationSettings(), ProbationSettings(max_latency_ms=250)):
        for number in range(3):
            report = replace(slow, id=f"{settings.max_latency_ms}-{number}")
            state = state.with_report(report, NOON, settings)
        assert (state.failure is None) == (settings.max_latency_ms is None)
    assert state.failure is not None
    assert "latency 900 ms, above 250" in state.failure.reason
    busy = ProbationSettings(in_a_row=1, min_throughput_qps=5)
    failure = promoted([]).with_report(slow, NOON, busy).failure
    assert failure is not None
    assert failure.reason.endswith("throughput 1 /s, below 5")


def test_a_report_that_is_sent_again_counts_once() -> None:
    report = ProductionReport(0.1)
    state = promoted([0.8] * FEWEST)
    for _ in range(5):
        state = state.with_report(report, NOON, ProbationSettings())
    assert state.trial is not None
    assert (state.trial.in_a_row, state.steps, state.step_of(report.id)) == (1, 11, 11)


def test_it_passes_after_hours_and_reports_and_not_before() -> None:
    state = fed(promoted([0.8] * FEWEST), [0.8] * 9)
    late = TWO.since + timedelta(hours=25)
    assert state.settle(late).trial.phase is Phase.WATCHING  # type: ignore[union-attr]
    enough = fed(state, [0.8])
    early = TWO.since + timedelta(hours=23)
    assert enough.settle(early).results == {}
    assert fed(enough, [0.1]).settle(late).results == {}  # not while it is falling
    passed = enough.settle(late)
    assert (passed.results, passed.untagged) == ({"2": Phase.PASSED}, ("2",))
    assert fed(passed, [0.1] * 9).failure is None


def test_a_version_passes_though_nobody_looked_before_the_next_came() -> None:
    state = fed(promoted([0.8] * FEWEST), [0.8] * 10)
    soon, late = (replace(stay(3, "3"), since=TWO.since + timedelta(hours=h)) for h in (23, 25))
    settings = ProbationSettings()
    assert state.follow([ONE, TWO, soon], settings).results == {}
    assert state.follow([ONE, TWO, late], settings).results == {"2": Phase.PASSED}


def test_what_came_back_is_not_on_probation() -> None:
    state = promoted([0.8] * FEWEST).follow([ONE, TWO, stay(3, "1", returned=True)], SETTINGS)
    assert state.trial is not None
    assert state.trial.phase is Phase.EXEMPT
    assert fed(state, [0.0] * 20).failure is None


def test_reports_of_what_failed_are_no_baseline_unless_a_person_brought_it_back() -> None:
    failed = fed(promoted([0.8] * 20), [0.1] * 6)
    assert {accuracy for _, accuracy in failed.recent} == {0.8}
    again = failed.follow([ONE, TWO, stay(3, "1", returned=True)], SETTINGS)
    again = again.follow([ONE, TWO, stay(3, "1"), stay(4, "2", returned=True)], SETTINGS)
    assert fed(again, [0.6] * 20).recent[-20:] == (("2", 0.6),) * 20


def test_watching_nothing_switches_it_off() -> None:
    assert promoted([], watch=()).trial.phase is Phase.EXEMPT  # type: ignore[union-attr]


def test_another_registry_resets_the_state() -> None:
    state = fed(promoted([0.8] * FEWEST), [0.1] * 3)
    other = replace(ONE, id="another-journal")
    begun = state.follow([other], SETTINGS)
    assert (begun.results, begun.failure, begun.recent) == ({}, None, ())
    assert begun.trial is not None
    assert (begun.trial.stay.id, begun.steps) == ("another-journal", state.steps)


SETTINGS = ProbationSettings(metric="m")


def compared(
    mine: float, theirs: float | None, registered: float | None = None, **scores: Any
) -> ProbationState:
    evidence = Evidence({"m": mine}, None if theirs is None else {"m": theirs}, **scores)
    return promoted([]).with_comparison(
        evidence, SETTINGS, rival="1", registered=registered, at=NOON
    )


@given(st.floats(0, 1), st.floats(0, 1))
def test_a_session_compares_both_on_the_same_data(mine: float, theirs: float) -> None:
    state = compared(mine, theirs, registered=1.0)
    assert (state.failure is not None) == (theirs - mine > 0.1)
    assert state.trial is not None
    assert state.trial.compared == (0 if state.failure else 1)


@given(st.floats(0, 1), st.floats(0, 1), st.sampled_from([math.nan, math.inf, -math.inf]))
def test_a_value_that_is_not_finite_does_not_count(
    mine: float, theirs: float, wrong: float
) -> None:
    assert compared(wrong, theirs).trial == promoted([]).trial
    assert compared(mine, wrong).trial == promoted([]).trial


def test_less_is_better_in_min_mode() -> None:
    settings = replace(SETTINGS, mode="min")
    for mine, fails in ((0.5, True), (0.3, False), (0.1, False)):
        evidence = Evidence({"m": mine}, {"m": 0.3})
        state = promoted([]).with_comparison(
            evidence, settings, rival="1", registered=None, at=NOON
        )
        assert (state.failure is not None) == fails


def test_a_fall_that_chance_explains_does_not_count() -> None:
    def scores(*right: int) -> ExampleScores:
        numbers = [*right, *[1] * 20]
        return ExampleScores({"m": numbers}, range(len(numbers)))

    by_chance = compared(
        0.8, 1.0, results=scores(1, 0, 0, 0, 0), champion_results=scores(0, 1, 1, 1, 1)
    )
    assert (by_chance.failure, by_chance.trial) == (None, promoted([]).trial)
    surely = compared(0.6, 1.0, results=scores(*[0] * 10), champion_results=scores(*[1] * 10))
    assert surely.failure is not None
    said = "on the same data version 1's m 1.0000 beats production's 0.6000"
    assert said in surely.failure.reason


def test_without_a_rival_the_registered_score_is_the_baseline() -> None:
    failure = compared(0.6, None, registered=0.8).failure
    assert failure is not None
    assert (failure.source, "registered with 0.8" in failure.reason) == (Source.FEDERATED, True)
    assert compared(0.75, None, registered=0.8).failure is None
    assert compared(0.1, None).trial == promoted([]).trial


@given(st.lists(st.sampled_from("12345"), min_size=1), st.sets(st.sampled_from("12345")), st.data())
def test_the_way_back_prefers_what_passed_and_never_takes_what_failed(
    order: list[str], good: set[str], data: st.DataObject
) -> None:
    failed = data.draw(st.sets(st.sampled_from("12345"))) - good
    results = dict.fromkeys(good, Phase.PASSED) | dict.fromkeys(failed, Phase.FAILED)
    ways = ways_back([stay(n, v) for n, v in enumerate(order)], results)
    assert set(ways) == set(order) - failed - {order[-1]}
    last = {version: place for place, version in enumerate(order)}
    assert list(ways) == sorted(ways, key=lambda v: (v in good, last[v]), reverse=True)


def drift_request(hour: int, *, started: int | None = None, kind: str = "drift") -> dict[str, Any]:
    def at(hours: int) -> str:
        return (NOON + timedelta(hours=hours)).isoformat()

    begun = None if started is None else at(started)
    return {"kind": kind, "created": at(hour), "started": begun, "reason": f"at {hour}"}


@pytest.mark.parametrize(
    ("requests", "reason"),
    [
        ([], ""),
        ([drift_request(5, kind="manual")], ""),
        ([drift_request(5)], "at 5"),
        ([drift_request(-5)], ""),
        ([drift_request(-5), drift_request(5)], ""),  # it was there when the version was promoted
        (
            [drift_request(-5, started=-4), drift_request(5)],
            "at 5",
        ),  # that one led to a session before
        (
            [drift_request(-5), drift_request(-3, started=-2, kind="manual"), drift_request(5)],
            "at 5",
        ),
        ([drift_request(-5), drift_request(3, started=4), drift_request(5)], "at 5"),
    ],
)
def test_only_an_alarm_that_began_after_the_promotion_counts(
    requests: list[dict[str, Any]], reason: str
) -> None:
    failure = promoted([]).with_drift(requests, NOON).failure
    assert ("" if failure is None else failure.reason) == reason


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"watch": ("feed", "moon")}, "expected 'federated', 'feed' or 'drift'"),
        ({"drop": 0}, "drop is 0, expected more than 0"),
        ({"drop": math.nan}, "drop is nan, expected a finite number"),
        ({"in_a_row": 0}, "in_a_row is 0, expected 1 or more"),
        ({"hours": -1}, "hours is -1"),
        ({"max_latency_ms": math.inf}, "max_latency_ms is inf"),
    ],
)
def test_invalid_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ProbationSettings(**settings)


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"accuracy": 87.0}, "0.87, not 87"),
        ({"accuracy": math.nan}, "accuracy is nan"),
        ({"avg_latency_ms": -1.0}, "expected 0 or more"),
        ({"throughput_qps": math.inf}, "throughput_qps is inf"),
        ({"metrics": {"recall": math.inf}}, "'recall' is inf"),
        ({"metrics": {"accuracy": 0.5}}, "cannot be called 'accuracy'"),
    ],
)
def test_invalid_reports_are_refused(numbers: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ProductionReport(**numbers)


# With a registry and a monitor.


class Clock:
    """A wall clock that goes on when the test says so."""

    def __init__(self) -> None:
        self.ahead = timedelta()

    def __call__(self) -> datetime:
        return datetime.now(UTC) + self.ahead


@pytest.fixture
def clock() -> Clock:
    return Clock()


class Models(InMemoryModelStore):
    """A registry that can be away."""

    def __init__(self) -> None:
        super().__init__()
        self.away: Callable[[], bool] = lambda: False

    def rollback(self, *arguments: Any, **named: Any) -> str:
        if self.away():
            raise StoreUnavailable("MLflow does not answer.")
        return super().rollback(*arguments, **named)


@pytest.fixture
def models(tmp_path: Path) -> Models:
    """Four versions, each from a run of its own."""
    store = Models()
    for number in range(1, 5):
        path = tmp_path / f"{number}.safetensors"
        save_weights({"w": np.full(3, number, dtype=np.float32)}, path)
        store.save_model_version(path, f"run-{number}", {"mAP50": 0.8})
    return store


@pytest.fixture
def monitor() -> RetrainingManager:
    return RetrainingManager()


MakeProbation = Callable[..., Probation]


@pytest.fixture
def make(models: Models, monitor: RetrainingManager, clock: Clock) -> MakeProbation:
    def probation(**settings: Any) -> Probation:
        return Probation(models, monitor, ProbationSettings(metric="mAP50", **settings), now=clock)

    return probation


def send(probation: Probation, *accuracies: float, **numbers: Any) -> str:
    """Send reports; return what the last one led to."""
    status = ""
    for accuracy in accuracies:
        status = probation.report(ProductionReport(accuracy, **numbers)).status
    return status


def good_then_bad(models: Models, probation: Probation) -> None:
    """Version 1 does well and version 2 does not, one report before it fails."""
    models.promote_to_production("1")
    send(probation, *[0.9] * 20)
    models.promote_to_production("2", actor="Ada")
    assert send(probation, 0.9, 0.5, 0.5) == "watching"


def test_a_critical_fall_brings_the_one_before_back_once(
    models: Models,
    monitor: RetrainingManager,
    make: MakeProbation,
    caplog: pytest.LogCaptureFixture,
) -> None:
    probation = make()
    good_then_bad(models, probation)
    answer = probation.report(ProductionReport(0.5))
    assert (answer.status, answer.version, answer.production) == ("rolled_back", "2", "1")
    last = models.history()[-1]
    assert (last.op, last.version, last.displaced, last.actor) == (
        "rollback",
        "1",
        "2",
        "probation",
    )
    numbers = "accuracy 0.5000, below 0.8000; the 20 reports before its promotion had 0.9000"
    for text in (answer.reason, last.reason, caplog.text):
        assert numbers in text
    tags = models.get_version("2").tags
    assert (tags["probation"], numbers in tags["probation_reason"]) == ("failed", True)
    (request,) = monitor.trigger_history
    assert (request["kind"], request["outcome"]) == ("probation", "pending")
    assert "version 1 is in production in its place" in request["reason"]
    # What came back is not watched, and a person may overrule.
    assert send(probation, *[0.1] * 10) == "ok"
    models.rollback("2", actor="Ada")
    assert send(probation, *[0.1] * 10) == "ok"
    assert [entry.actor for entry in models.history()] == ["", "Ada", "probation", "Ada"]
    assert len(monitor.trigger_history) == 1


def test_reports_are_in_the_run_of_the_version_that_they_are_about(
    models: Models, make: MakeProbation
) -> None:
    probation = make()
    good_then_bad(models, probation)
    answer = probation.report(
        ProductionReport(0.5, 45, 100, {"recall": 0.7}, predictions=[{"box": [1, 2]}], version="2")
    )
    assert (answer.report, answer.logged) == (24, True)
    run = models.runs["run-2"]
    assert run.metrics["production/accuracy"] == [(21, 0.9), (22, 0.5), (23, 0.5), (24, 0.5)]
    assert run.metrics["production/recall"] == [(24, 0.7)]
    assert run.metrics["production/avg_latency_ms"] == [(24, 45)]
    assert run.metrics["production/throughput_qps"] == [(24, 100)]
    assert set(run.metrics["production/version"]) == {(step, 2.0) for step in range(21, 25)}
    assert run.artifacts == ["production/24/predictions.json"]
    assert len(models.runs["run-1"].metrics["production/accuracy"]) == 20


def test_a_report_about_another_version_is_refused(models: Models, make: MakeProbation) -> None:
    probation = make()
    with pytest.raises(StageError, match="Nothing is in production yet"):
        probation.report(ProductionReport(0.5))
    models.promote_to_production("2")
    with pytest.raises(StageError, match="Version 1 is not in production, 2 is"):
        probation.report(ProductionReport(0.5, version="1"))
    assert models.runs == {}


def test_the_last_known_good_comes_back_and_not_just_the_one_before(
    models: Models, make: MakeProbation, clock: Clock
) -> None:
    probation = make()
    models.promote_to_production("1")
    send(probation, *[0.9] * 20)  # half of them are its baseline
    clock.ahead += timedelta(hours=25)
    send(probation, 0.9)
    assert models.get_version("1").tags["probation"] == "passed"
    for version in "23":
        models.promote_to_production(version)
        send(probation, 0.9)
    assert send(probation, 0.5, 0.5, 0.5) == "rolled_back"
    assert models.get_latest_version("Production") == "1"
    assert "probation" not in models.get_version("2").tags


def test_damaged_and_failed_versions_are_skipped(models: Models, make: MakeProbation) -> None:
    probation = make()
    models.promote_to_production("1")
    send(probation, *[0.9] * 20)
    for version in "23":
        models.promote_to_production(version)
    models.set_version_tags("2", {"probation": "failed"})  # by a probation with another memory
    models.promote_to_production("4")
    models.weights_path("3").write_bytes(b"damaged")
    send(probation, *[0.9] * FEWEST)
    assert send(probation, 0.5, 0.5, 0.5) == "rolled_back"
    assert models.get_latest_version("Production") == "1"


def test_with_nothing_to_go_back_to_it_stays_and_retraining_is_requested(
    models: Models,
    monitor: RetrainingManager,
    make: MakeProbation,
    caplog: pytest.LogCaptureFixture,
) -> None:
    probation = make()
    models.promote_to_production("1")
    send(probation, *[0.9] * FEWEST, 0.5, 0.5)
    answer = probation.report(ProductionReport(0.5))
    assert (answer.status, answer.production) == ("failed", "1")
    assert send(probation, 0.5) == "failed"
    assert len(models.history()) == 1
    (request,) = monitor.trigger_history
    assert "there is no other version to go back to, so it stays" in request["reason"]
    assert [r.levelname for r in caplog.records].count("ERROR") == 1
    assert models.get_version("1").tags["probation"] == "failed"


def test_a_decision_outlives_a_registry_that_is_away(
    models: Models, monitor: RetrainingManager, make: MakeProbation
) -> None:
    probation = make()
    good_then_bad(models, probation)
    models.away = lambda: True
    with pytest.raises(StoreUnavailable):
        probation.report(ProductionReport(0.5))
    probation.review()  # logged, and nothing else
    models.away = lambda: False
    make().review()  # another process, or the same after a restart
    assert models.get_latest_version("Production") == "1"
    make().review()
    assert [entry.actor for entry in models.history()].count("probation") == 1
    assert [request["kind"] for request in monitor.trigger_history] == ["probation"]


def test_a_crash_between_rollback_and_the_rest_leaves_the_rest_to_do(
    models: Models, monitor: RetrainingManager, make: MakeProbation, monkeypatch: pytest.MonkeyPatch
) -> None:
    probation = make()
    good_then_bad(models, probation)

    def killed(*_: object, **__: object) -> str:
        raise KeyboardInterrupt

    report = ProductionReport(0.5)
    with monkeypatch.context() as patch:
        patch.setattr(monitor, "request", killed)
        with pytest.raises(KeyboardInterrupt):
            probation.report(report)
    assert models.get_latest_version("Production") == "1"
    assert monitor.trigger_history == []
    answer = make().report(report)  # the operator got no answer, and sends it again
    assert (answer.status, answer.version, answer.production) == ("rolled_back", "2", "1")
    assert answer.report == 24
    assert [request["kind"] for request in monitor.trigger_history] == ["probation"]
    assert models.get_version("2").tags["probation"] == "failed"
    assert [entry.actor for entry in models.history()].count("probation") == 1


def test_a_person_who_was_faster_is_not_undone(models: Models, make: MakeProbation) -> None:
    probation = make()
    good_then_bad(models, probation)
    models.away = lambda: True
    with pytest.raises(StoreUnavailable):
        probation.report(ProductionReport(0.5))
    models.away = lambda: False
    models.promote_to_production("3", actor="Ada")
    probation.review()
    assert models.get_latest_version("Production") == "3"
    assert probation.status()["phase"] == "watching"  # type: ignore[index]


def test_two_servers_at_once_roll_back_once(
    models: Models, monitor: RetrainingManager, make: MakeProbation
) -> None:
    from concurrent.futures import ThreadPoolExecutor

    good_then_bad(models, make())

    def one(_: int) -> str:
        try:
            return send(make(), 0.5)
        except StageError as error:  # it left production before the report was counted
            return "ok" if "left production just now" in str(error) else str(error)

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(one, range(16)))
    assert models.get_latest_version("Production") == "1"
    assert [entry.actor for entry in models.history()].count("probation") == 1
    assert set(answers) <= {"rolled_back", "ok"}
    assert [request["kind"] for request in monitor.trigger_history] == ["probation"]


def test_a_session_that_finds_it_far_worse_brings_the_rival_back(
    models: Models, make: MakeProbation
) -> None:
    probation = make()
    assert probation.to_compare() is None
    for version in "12":
        models.promote_to_production(version)
    assert probation.to_compare() == ("2", "1")
    probation.update_production("2", Evidence({"mAP50": 0.75}, {"mAP50": 0.8}), rival="1")
    assert models.get_latest_version("Production") == "2"
    probation.update_production("2", Evidence({"mAP50": 0.6}, {"mAP50": 0.8}), rival="1")
    assert models.get_latest_version("Production") == "1"
    assert "on the same data version 1's mAP50 0.8000 beats" in models.history()[-1].reason
    assert probation.to_compare() is None
    probation.update_production("2", Evidence({"mAP50": 0.0}, {"mAP50": 0.8}), rival="1")
    assert models.get_latest_version("Production") == "1"


@pytest.mark.parametrize("watch", [("feed", "federated"), ("drift",)])
def test_drift_decides_only_where_it_is_watched(
    models: Models, monitor: RetrainingManager, make: MakeProbation, watch: tuple[str, ...]
) -> None:
    probation = make(watch=watch)
    for version in "12":
        models.promote_to_production(version)
    probation.review()
    assert models.get_latest_version("Production") == "2"
    monitor.request(TriggerKind.DRIFT, "in round 3 the data moved: sharpness lower")
    probation.review()
    assert models.get_latest_version("Production") == ("1" if watch == ("drift",) else "2")
    if watch == ("drift",):
        assert "sharpness lower" in models.history()[-1].reason


def test_a_registry_that_is_away_does_not_end_a_session(
    models: Models, make: MakeProbation, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(**_: object) -> None:
        raise StoreUnavailable("MLflow does not answer.")

    monkeypatch.setattr(models, "history", away)
    probation = make(watch=("drift", "federated"))
    probation.review()
    probation.update_production("2", Evidence({"mAP50": 0.6}, {"mAP50": 0.8}), rival="1")
    assert probation.to_compare() is None
    with pytest.raises(StoreUnavailable):
        send(probation, 0.5)


def test_status_has_phase_baseline_counts_and_last_failure(
    models: Models, make: MakeProbation
) -> None:
    probation = make()
    assert probation.status() is None
    models.promote_to_production("1")
    status = probation.status()
    assert status is not None
    assert (status["version"], status["phase"], status["baseline"]) == ("1", "watching", None)
    good_then_bad(models, probation)
    status = probation.status()
    assert status is not None
    assert status["baseline"] == {"level": 0.9, "limit": pytest.approx(0.8), "of": BEFORE}
    assert (status["reports"], status["reports_needed"], status["critical_in_a_row"]) == (1, 10, 2)
    send(probation, 0.5)
    status = probation.status()
    assert status is not None
    assert (status["version"], status["phase"]) == ("1", "exempt")
    assert (status["last_failure"]["version"], status["last_failure"]["back"]) == ("2", "1")


def test_the_status_in_one_line(models: Models, make: MakeProbation) -> None:
    probation = make(hours=0)
    assert in_one_line(probation.status()) == "-"
    models.promote_to_production("1")
    assert "0 of 10 reports healthy, 0 critical in a row" in in_one_line(probation.status())
    send(probation, *[0.9] * FEWEST, 0.5)
    assert in_one_line(probation.status()).endswith("1 critical in a row, critical below 0.8000")
    send(probation, 0.5, 0.5)
    assert in_one_line(probation.status()).startswith("version 1 failed, no way back: 3 reports")
    models.promote_to_production("2")
    send(probation, *[0.9] * FEWEST * 2)
    assert in_one_line(probation.status()) == "version 2 passed"
    models.promote_to_production("3")
    send(probation, 0.5, 0.5, 0.5)
    assert in_one_line(probation.status()).startswith("version 2 is back; 3 failed: 3 reports")
    models.rollback("1")
    assert in_one_line(probation.status()) == "version 1 is not on probation"


def test_two_models_in_one_memory_are_separate(tmp_path: Path, models: Models) -> None:
    url = f"sqlite:///{tmp_path / 'monitor.db'}"
    one, two = (RetrainingManager(store=MonitorStore(url, name)) for name in ("one", "two"))
    models.promote_to_production("1")
    send(Probation(models, one), *[0.9] * 12)
    assert Probation(models, one).status()["reports"] == 2  # type: ignore[index]
    assert Probation(models, two).status()["reports"] == 0  # type: ignore[index]
