# SPDX-License-Identifier: Apache-2.0
"""Gates and the climb: what passes, what it says, and what must never pass."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl_registry import (
    AtLeast,
    AtMost,
    BeatsChampion,
    BestSoFar,
    Evidence,
    Finite,
    Gate,
    Stage,
    Verdict,
    decide_stage,
)
from fl_registry.gates.gates import _words

ALONE = " (two numbers alone: there are no results per example)"

GATES: list[Gate] = [
    Finite(),
    AtLeast("m", -1e300),
    AtMost("m", 1e300),
    BestSoFar("m"),
    BestSoFar("m", mode="min"),
    BeatsChampion("m", margin=-1e300),
    BeatsChampion("m", margin=-1e300, mode="min"),
]
bad_values = st.sampled_from([math.nan, math.inf, -math.inf, None, True, "0.9", "x", [], object()])
numbers = st.floats(-1e6, 1e6)
maybe = st.none() | st.fixed_dictionaries({}, optional={"m": numbers})


@pytest.mark.parametrize(
    ("gate", "evidence", "passed", "reason"),
    [
        (Finite(), Evidence({"a": 1.0, "b": 2.0}), True, "all 2 metrics are finite"),
        (Finite(), Evidence({"a": 1.0, "b": math.nan}), False, "not a finite number: b"),
        (Finite(), Evidence({}), False, "no metrics were reported"),
        (AtLeast("mAP50", 0.5), Evidence({"mAP50": 0.61}), True, "mAP50 0.6100 is at least 0.5000"),
        (AtLeast("mAP50", 0.5), Evidence({"mAP50": 0.5}), True, "mAP50 0.5000 is at least 0.5000"),
        (AtLeast("m", 0.5), Evidence({"m": 0.4999999}), False, "m 0.4999999 is below 0.5"),
        (
            AtLeast("mAP50", 0.5),
            Evidence({"loss": 0.1}),
            False,
            "the candidate has no metric mAP50 (there are: loss)",
        ),
        (AtMost("loss", 1), Evidence({"loss": 1.5}), False, "loss 1.5000 is above 1.0000"),
        (AtMost("loss", 1e-6), Evidence({"loss": 1e-7}), True, "loss 1e-07 is at most 1e-06"),
        (BestSoFar("m"), Evidence({"m": 0.1}), True, "m 0.1000 is the first candidate's"),
        (
            BestSoFar("m"),
            Evidence({"m": 0.6}, best={"m": 0.5}),
            True,
            "m 0.6000 beats the best so far, 0.5000",
        ),
        (
            BestSoFar("m"),
            Evidence({"m": 0.5}, best={"m": 0.5}),
            False,
            "m 0.5000 does not beat the best so far, 0.5000",
        ),
        (
            BestSoFar("m", mode="min"),
            Evidence({"m": 0.4}, best={"m": 0.5}),
            True,
            "m 0.4000 beats the best so far, 0.5000",
        ),
        (
            BeatsChampion("m"),
            Evidence({"m": 0.5}),
            True,
            "m 0.5000, and there is no production version to beat",
        ),
        (
            BeatsChampion("m"),
            Evidence({"m": 0.5}, champion={"m": 0.5}),
            False,
            f"m 0.5000 does not beat production's 0.5000{ALONE}",
        ),
        (
            BeatsChampion("m", margin=0.01),
            Evidence({"m": 0.57}, champion={"m": 0.56}),
            True,
            f"m 0.5700 beats production's 0.5600 by 0.0100{ALONE}",
        ),
        (
            BeatsChampion("m", margin=0.02),
            Evidence({"m": 0.57}, champion={"m": 0.56}),
            False,
            f"m 0.5700 does not beat production's 0.5600 by 0.0200{ALONE}",
        ),
        (
            BeatsChampion("m", margin=0.1, mode="min"),
            Evidence({"m": 1.0}, champion={"m": 1.2}),
            True,
            f"m 1.0000 beats production's 1.2000 by 0.1000{ALONE}",
        ),
        (
            BeatsChampion("m"),
            Evidence({"m": 1.0}, champion={"m": math.nan}),
            False,
            "m of the production version is nan, not a finite number",
        ),
    ],
)
def test_what_a_gate_says(gate: Gate, evidence: Evidence, passed: bool, reason: str) -> None:
    verdict = gate(evidence)
    assert (verdict.passed, verdict.reason) == (passed, reason)
    assert verdict.gate.startswith(type(gate).__name__)


def test_a_small_loss_can_be_allowed() -> None:
    gate = BeatsChampion("m", margin=-0.02)
    assert gate(Evidence({"m": 0.49}, champion={"m": 0.5})).passed
    assert not gate(Evidence({"m": 0.47}, champion={"m": 0.5})).passed


@pytest.mark.parametrize("make", [BestSoFar, BeatsChampion])
def test_an_unknown_direction_is_refused(make: Any) -> None:
    with pytest.raises(ValueError, match='"max" or "min", not \'up\''):
        make("m", mode="up")


def test_a_bound_that_is_not_a_number_is_refused() -> None:
    for make in (lambda: AtLeast("m", math.nan), lambda: BeatsChampion("m", margin=math.inf)):
        with pytest.raises(ValueError, match="finite number"):
            make()


@given(value=bad_values, champion=maybe, best=maybe, gate=st.sampled_from(GATES))
def test_what_is_not_a_finite_number_never_passes(
    value: Any, champion: Any, best: Any, gate: Gate
) -> None:
    verdict = gate(Evidence({"m": value}, champion, best))
    assert not verdict.passed
    assert verdict.reason


@given(champion=maybe, best=maybe, gate=st.sampled_from(GATES))
def test_a_missing_metric_never_passes(champion: Any, best: Any, gate: Gate) -> None:
    assert not gate(Evidence({}, champion, best)).passed


def say(answer: bool, _: Evidence) -> Verdict:
    return Verdict("say", answer, "said so")


@given(
    staging=st.none() | st.lists(st.booleans(), max_size=3),
    production=st.none() | st.lists(st.booleans(), max_size=3),
)
def test_the_climb_never_skips_a_no(
    staging: list[bool] | None, production: list[bool] | None
) -> None:
    def gates(answers: list[bool]) -> list[Gate]:
        return [partial(say, answer) for answer in answers]

    policy = {
        stage: gates(answers)
        for stage, answers in ((Stage.PRODUCTION, production), (Stage.STAGING, staging))
        if answers is not None
    }
    decision = decide_stage(policy, Evidence({}))
    expected = Stage.NONE
    if staging is not None and all(staging):
        expected = Stage.STAGING
    if production is not None and all(production) and (staging is None or all(staging)):
        expected = Stage.PRODUCTION
    assert decision.stage is expected
    blocked = staging is not None and not all(staging)
    asked = (staging or []) + ([] if blocked else production or [])
    assert [v.passed for v in decision.verdicts] == asked
    assert decision.reason


def test_the_reason_names_the_stage_and_every_refusal() -> None:
    policy: dict[Stage, list[Gate]] = {
        Stage.STAGING: [Finite(), AtLeast("m", 0.5)],
        Stage.PRODUCTION: [AtLeast("m", 0.9), BeatsChampion("m")],
    }
    decision = decide_stage(policy, Evidence({"m": 0.6}, champion={"m": 0.7}))
    assert decision.stage is Stage.STAGING
    assert decision.reason == (
        "Staging: all 1 metrics are finite; m 0.6000 is at least 0.5000. "
        "not Production: m 0.6000 is below 0.9000; "
        f"m 0.6000 does not beat production's 0.7000{ALONE}"
    )
    assert decide_stage({}, Evidence({"m": 1.0})).stage is Stage.NONE


def test_a_policy_for_another_stage_is_refused() -> None:
    with pytest.raises(ValueError, match="not for Archived"):
        decide_stage({Stage.ARCHIVED: []}, Evidence({}))


@given(st.floats(), st.floats())
def test_different_numbers_look_different_in_as_few_digits_as_it_takes(a: float, b: float) -> None:
    texts = _words(a, b)
    assert (texts[0] != texts[1]) == (a != b and not (math.isnan(a) and math.isnan(b)))


def test_two_scores_that_are_nearly_the_same_are_short() -> None:
    assert _words(0.9763854909640989, 0.9763802237527666) == ("0.97639", "0.97638")
    assert _words(0.5, 0.25) == ("0.5000", "0.2500")
