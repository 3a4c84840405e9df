# SPDX-License-Identifier: Apache-2.0
"""Gates on results per example: how sure they are, how often wrong, and what they say."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_registry import BeatsChampion, Evidence, ExampleScores, NoRegression, Verdict
from fl_registry.gates.dependence import dependence
from fl_registry.gates.paired import bootstrap_interval, mcnemar

Random = np.random.Generator


def asked(
    old: Sequence[float],
    new: Sequence[float],
    gate: BeatsChampion | None = None,
    *,
    looks: int = 1,
    groups: Sequence[Any] | None = None,
) -> Verdict:
    """What a gate says of two models whose metric is the mean of these numbers."""
    means = [float(np.mean(side)) for side in (new, old)]
    return (gate or BeatsChampion("m"))(
        Evidence(
            {"m": means[0]},
            {"m": means[1]},
            results=ExampleScores({"m": new}, groups),
            champion_results=ExampleScores({"m": old}, groups),
            looks=looks,
        )
    )


def test_a_gain_on_each_example_is_sure_and_a_lucky_one_is_not() -> None:
    random = np.random.default_rng(1)
    old = random.normal(0.5, 0.2, 100)
    sure = asked(old.tolist(), (old + random.normal(0.05, 0.05, 100)).tolist())
    assert sure.passed
    assert "95 % sure on 100 examples" in sure.reason
    lucky = asked(old.tolist(), random.normal(0.52, 0.2, 100).tolist())
    assert not lucky.passed
    assert "does not surely beat" in lucky.reason


def test_a_margin_and_a_direction_count_in_the_interval() -> None:
    random = np.random.default_rng(2)
    old = random.normal(0.5, 0.2, 100)
    less = (old - random.normal(0.05, 0.05, 100)).tolist()
    assert asked(old.tolist(), less, BeatsChampion("m", mode="min")).passed
    assert asked(old.tolist(), less, BeatsChampion("m", margin=0.03, mode="min")).passed
    assert not asked(old.tolist(), less, BeatsChampion("m", margin=0.06, mode="min")).passed
    assert not asked(old.tolist(), less).passed
    assert asked(old.tolist(), less, BeatsChampion("m", margin=-0.1)).passed


def test_right_and_wrong_are_compared_by_mcnemar() -> None:
    old, new = [1.0] * 16, [1.0] * 16
    for example in (1, 2, 5, 8, 11, 14):
        old[example] = 0.0
    won = asked(old, new)
    assert won.passed  # 16 examples would be too few for a bootstrap
    assert "6 of 16 examples speak for it, 0 against it, p 0.0312" in won.reason
    assert not asked([0.0] * 5 + [1.0] * 11, [1.0] * 16).passed  # p is 0.0625
    assert asked(new, old, BeatsChampion("m", mode="min")).passed
    assert not asked(new, old).passed
    assert mcnemar(np.array([True, False]), np.array([True, False])) == (0, 0, 1.0)


def test_what_cannot_be_paired_says_so() -> None:
    few = asked([0.1] * 10, [0.9] * 10)
    assert not few.passed
    assert "10 examples are too few" in few.reason
    evidence = Evidence({"m": 0.9}, {"m": 0.1}, results=ExampleScores({"m": [0.9] * 30}))
    alone = BeatsChampion("m")(evidence)
    assert alone.passed
    assert "two numbers alone: there are no results per example" in alone.reason
    others = ExampleScores({"other": [0.1] * 30})
    missing = Evidence({"m": 0.9}, {"m": 0.1}, results=evidence.results, champion_results=others)
    assert "there is no m per example" in BeatsChampion("m")(missing).reason
    unlike = asked([0.1] * 30, [0.9] * 29)
    assert not unlike.passed
    assert "29 results per example, production 30" in unlike.reason
    broken = asked([0.1] * 30, [0.9] * 29 + [math.inf])
    assert not broken.passed
    numbers = BeatsChampion("m", confidence=None)
    assert asked([0.1] * 10, [0.9] * 10, numbers).reason == "m 0.9000 beats production's 0.1000"


@pytest.mark.parametrize("confidence", [0.0, 1.0, -1.0, math.nan])
def test_a_confidence_out_of_range_is_refused(confidence: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        BeatsChampion("m", confidence=confidence)


@pytest.mark.parametrize("binary", [False, True])
def test_equally_good_models_are_seldom_promoted_and_better_ones_mostly(binary: bool) -> None:
    random, wrong, right = np.random.default_rng(3), 0, 0
    for _ in range(200):
        hard = random.normal(size=100)
        old, same, better = (hard + random.normal(gain, 0.5, 100) for gain in (0, 0, 0.4))
        if binary:
            old, same, better = ((side > 0).astype(float) for side in (old, same, better))
        wrong += asked(old.tolist(), same.tolist()).passed
        right += asked(old.tolist(), better.tolist()).passed
    assert wrong <= 16  # 2.5 % are to be expected
    assert right >= 100


@pytest.mark.parametrize("binary", [True, False])
def test_the_best_of_many_equally_good_candidates_is_seldom_promoted(binary: bool) -> None:
    random, rounds, sessions = np.random.default_rng(9), 8, 60
    promoted = {1: 0, rounds: 0}
    for _ in range(sessions):
        examples = random.random((rounds + 1, 100))
        old, *new = (examples < 0.6).astype(float) if binary else examples
        for looks in promoted:
            promoted[looks] += any(asked(old, one, looks=looks).passed for one in new)
    assert promoted[rounds] <= 0.1 * sessions  # 5 % are promised, and chance
    assert promoted[1] > promoted[rounds]  # what the promise costs nothing to break


def test_the_reason_tells_how_sure_each_look_has_to_be() -> None:
    old = np.random.default_rng(1).normal(0.5, 0.2, 100)
    verdict = asked(old.tolist(), (old + 0.1).tolist(), looks=8)
    assert verdict.passed
    assert "99.38 % sure on 100 examples" in verdict.reason


def test_a_tail_that_the_draws_do_not_reach_is_the_normal_one() -> None:
    random = np.random.default_rng(4)
    old = ExampleScores({"m": random.normal(0.5, 0.2, 400).tolist()})
    new = ExampleScores({"m": random.normal(0.5, 0.2, 400).tolist()})
    intervals = {c: bootstrap_interval(old, new, "m", confidence=c) for c in (0.99, 0.996, 0.9999)}
    widths = [high - low for low, high in filter(None, intervals.values())]
    assert widths == sorted(widths)
    error = math.hypot(*(np.std(side.scores["m"]) / 20 for side in (old, new)))
    assert widths[2] == pytest.approx(2 * 3.8906 * error, rel=0.06)


def test_the_interval_is_the_same_for_the_same_results() -> None:
    one, two = (ExampleScores({"m": side}) for side in ([0.0] * 20 + [1.0] * 10, [0.5] * 30))
    first = bootstrap_interval(one, two, "m")
    assert first == bootstrap_interval(one, two, "m")
    turned = bootstrap_interval(two, one, "m")
    assert first is not None
    assert turned is not None
    assert turned == pytest.approx((-first[1], -first[0]), abs=0.02)


SCORES = st.lists(st.floats(-10, 10), min_size=20, max_size=40)


@settings(deadline=None, max_examples=30)
@given(scores=SCORES, gain=st.floats(0, 5), more=st.floats(0, 5), data=st.data())
def test_what_is_better_on_every_example_passes_wherever_the_worse_one_does(
    scores: list[float], gain: float, more: float, data: st.DataObject
) -> None:
    noise = data.draw(st.lists(st.floats(-1, 1), min_size=len(scores), max_size=len(scores)))
    weaker = [s + gain + n for s, n in zip(scores, noise, strict=True)]
    stronger = [s + more for s in weaker]
    gate = BeatsChampion("m", margin=0.5)
    assert asked(scores, weaker, gate).passed <= asked(scores, stronger, gate).passed


@settings(deadline=None, max_examples=30)
@given(
    old=st.lists(st.floats(), max_size=40),
    new=st.lists(st.floats(), max_size=40),
    mode=st.sampled_from(["max", "min"]),
)
def test_no_results_of_any_kind_crash_a_gate(old: Any, new: Any, mode: str) -> None:
    evidence = Evidence(
        {"m": 1.0},
        {"m": 1.0},
        results=ExampleScores({"m": new}),
        champion_results=ExampleScores({"m": old}),
    )
    verdict = BeatsChampion("m", mode=mode)(evidence)
    assert verdict.reason
    if not np.isfinite([*old, *new]).all():
        assert not verdict.passed


def clips(random: Random, gain: float = 0.0, *, binary: bool = False) -> list[list[float]]:
    """Scores of two models on five clips of 100 examples; they differ by clip and by example."""
    found = []
    for better in (0.0, gain):
        alike = np.repeat(random.normal(better, 0.3**0.5, 5), 100)
        scores = alike + random.normal(0, 0.7**0.5, 500)
        found.append((scores > 0).astype(float).tolist() if binary else scores.tolist())
    return found


CLIPS = np.repeat(np.arange(5), 100).tolist()


@pytest.mark.parametrize("binary", [True, False])
def test_clips_are_no_independent_examples(binary: bool) -> None:
    random, passed, warned = np.random.default_rng(11), np.zeros(3, int), 0
    for _ in range(60):
        old, new = clips(random, binary=binary)
        one_each = asked(old, new, groups=range(500))
        unknown = asked(old, new)
        passed += [asked(old, new, groups=CLIPS).passed, unknown.passed, one_each.passed]
        warned += "vary together, so 500 count as about" in unknown.note
    assert passed[0] <= 6  # 2.5 % are to be expected
    assert passed[1] <= 9
    assert warned >= 50
    assert passed[2] >= 12  # what the clips would cost if they were not known


@pytest.mark.parametrize("binary", [True, False])
def test_a_gain_in_each_clip_passes_and_the_clips_are_counted(binary: bool) -> None:
    old, new = clips(np.random.default_rng(12), gain=4.0, binary=binary)
    verdict = asked(old, new, groups=CLIPS)
    assert verdict.passed
    assert "95 % sure on 500 examples of 5 groups" in verdict.reason
    assert not verdict.note
    assert asked(new, old, BeatsChampion("m", mode="min"), groups=[*"abcde"] * 100).passed


def test_a_gain_in_one_of_two_groups_or_in_a_large_one_is_not_sure() -> None:
    old, new = [0.0] * 60, [1.0] * 30 + [0.0] * 30
    assert not asked(old, new, groups=[0] * 30 + [1] * 30).passed
    large = asked(old, new, groups=[0] * 58 + [1, 2])
    assert not large.passed
    assert "3 groups, which count as 1.1 of one size, are too few" in large.reason
    assert "1 groups are too few, expected 2" in asked(old, new, groups=[7] * 60).reason


def test_groups_that_cannot_be_used_are_refused() -> None:
    with pytest.raises(ValueError, match="2 groups for 3 examples, expected one for each"):
        ExampleScores({"m": [0.0, 1.0, 1.0]}, ["a", "b"])
    sides = [ExampleScores({"m": [0.5] * 30}, groups) for groups in ([0] * 30, None)]
    evidence = Evidence({"m": 1}, {"m": 0}, results=sides[0], champion_results=sides[1])
    assert "in other groups than production's" in BeatsChampion("m")(evidence).reason


def test_a_metric_that_needs_one_group_is_not_sure() -> None:
    class Boxes(ExampleScores):
        """A metric of the examples of the first group alone, as a class that one clip shows."""

        def resampled(self, metric: str, counts: np.ndarray) -> np.ndarray | None:
            with np.errstate(invalid="ignore"):
                found: np.ndarray = counts[:, :30] @ self.scores[metric][:30]
                return np.asarray(found / counts[:, :30].sum(axis=1))

    old, new = (Boxes({"m": [score] * 90}, [*"abc"] * 30) for score in (0.1, 0.9))
    evidence = Evidence({"m": 0.9}, {"m": 0.1}, results=new, champion_results=old)
    assert BeatsChampion("m")(evidence).passed
    old, new = (Boxes(side.scores, [0] * 30 + [1] * 30 + [2] * 30) for side in (old, new))
    evidence = Evidence({"m": 0.9}, {"m": 0.1}, results=new, champion_results=old)
    verdict = BeatsChampion("m")(evidence)
    assert not verdict.passed
    assert "m cannot be computed without each of the groups" in verdict.reason


def test_more_groups_than_are_left_out_one_by_one_are_taken_together() -> None:
    random = np.random.default_rng(13)
    old = random.normal(0, 1, 6000)
    new = old + random.normal(0.1, 0.5, 6000)
    results = [ExampleScores({"m": side.tolist()}, range(6000)) for side in (old, new)]
    alike = dependence(*results, "m")
    assert alike is not None
    assert alike.error == pytest.approx(0.5 / 6000**0.5, rel=0.1)
    assert (alike.groups, alike.freedom) == (6000, pytest.approx(5999))


# Nowhere worse.


CHAMPION = {"m": 0.6, "m/fish": 0.5, "m/shark": 0.7, "other/ray": 0.9}


def test_a_class_that_falls_is_named_and_others_are_not() -> None:
    gate = NoRegression("m", margin=0.05)
    verdict = gate(Evidence({"m": 0.9, "m/fish": 0.4, "m/shark": 0.66}, CHAMPION))
    assert not verdict.passed
    assert verdict.reason == "more than 0.0500 of m is lost: class fish goes from 0.5000 to 0.4000"
    kept = gate(Evidence({"m": 0.5, "m/fish": 0.5, "m/shark": 0.65}, CHAMPION))
    assert kept.passed
    assert "class shark goes from 0.7000 to 0.6500" in kept.reason
    assert gate(Evidence({"m": 0.1})).passed


def test_a_class_that_is_missing_or_no_number_is_a_loss() -> None:
    for metrics in ({"m/shark": 0.9}, {"m/shark": 0.9, "m/fish": math.nan}):
        verdict = NoRegression("m", margin=0.9)(Evidence(metrics, CHAMPION))
        assert not verdict.passed
        assert "class fish goes from 0.5000 to no number" in verdict.reason
    verdict = NoRegression("m", margin=0.9)(Evidence({"m": 0.9, "m/fish": 0.9}, {"m": 0.5}))
    assert not verdict.passed
    assert "no m of production by class (m/…)" in verdict.reason


def test_a_node_that_falls_is_named_and_only_shared_ones_count() -> None:
    gate = NoRegression("m", margin=0.1, by="node")
    nodes = {"11": {"m": 0.2}, "12": {"m": 0.6}, "13": {"m": 0.1}}
    before = {"11": {"m": 0.5}, "12": {"m": 0.5}, "14": {"m": 0.9}}
    verdict = gate(Evidence({}, {}, nodes=nodes, champion_nodes=before))
    assert not verdict.passed
    assert verdict.reason == "more than 0.1000 of m is lost: node 11 goes from 0.5000 to 0.2000"
    assert gate(Evidence({}, {}, nodes=nodes, champion_nodes={"12": before["12"]})).passed
    unknown = gate(Evidence({}, {}, nodes=nodes))
    assert not unknown.passed
    assert "node that scored both" in unknown.reason


def test_the_worst_are_named_first_and_the_rest_counted() -> None:
    champion = {f"m/{name}": 0.9 for name in "abcde"}
    metrics = {f"m/{name}": 0.1 * rank for rank, name in enumerate("abcde")}
    reason = NoRegression("m")(Evidence(metrics, champion)).reason
    assert reason.index("class a") < reason.index("class b") < reason.index("class c")
    assert reason.endswith("and 2 more")


def test_less_can_be_better_in_every_class() -> None:
    gate = NoRegression("loss", margin=0.1, mode="min")
    champion = {"loss/fish": 0.5}
    assert gate(Evidence({"loss/fish": 0.1}, champion)).passed
    assert not gate(Evidence({"loss/fish": 0.7}, champion)).passed


@pytest.mark.parametrize("wrong", [{"margin": -0.1}, {"by": "site"}, {"mode": "up"}])
def test_a_floor_that_makes_no_sense_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"must be|expects"):
        NoRegression("m", **wrong)


VALUES = st.floats() | st.none()


@given(
    old=st.dictionaries(st.sampled_from("abc"), VALUES),
    new=st.dictionaries(st.sampled_from("abc"), VALUES),
    margin=st.floats(0, 1e6),
    by=st.sampled_from(["class", "node"]),
)
def test_a_wider_margin_never_refuses_more(old: Any, new: Any, margin: float, by: str) -> None:
    evidence = Evidence(
        {f"m/{name}": value for name, value in new.items()},
        {f"m/{name}": value for name, value in old.items()},
        nodes={name: {"m": value} for name, value in new.items()},
        champion_nodes={name: {"m": value} for name, value in old.items()},
    )
    tight, wide = (NoRegression("m", m, by=by)(evidence) for m in (margin / 2, margin))
    assert tight.passed <= wide.passed
    assert tight.reason
