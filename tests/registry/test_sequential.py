# SPDX-License-Identifier: Apache-2.0
"""The sequential test of paired differences: how often it errs, and what cannot matter to it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_app.shares import largest_weight
from fl_registry.gates.paired import fewest_differences, sequential_test

sizes = st.floats(0.001, 1000)
differences = st.one_of(st.just(0.0), sizes, sizes.map(lambda size: -size))
rounds = st.lists(st.lists(differences, max_size=6), max_size=6)


def one_by_one(values: Sequence[float]) -> list[list[float]]:
    return [[value] for value in values]


@settings(max_examples=6, deadline=None)
@given(st.lists(sizes, min_size=10, max_size=10), st.sampled_from([0.8, 0.9, 0.95]))
def test_whatever_the_sizes_few_patterns_of_signs_decide(
    drawn: list[float], confidence: float
) -> None:
    """Equally good models make all 1,024 equally likely; a look after each of ten differences."""
    outcomes = [
        sequential_test(one_by_one(np.multiply(signs, drawn)), confidence=confidence).outcome
        for signs in itertools.product((-1, 1), repeat=10)
    ]
    wrong = 1 - outcomes.count("undecided") / len(outcomes)
    assert wrong <= 1 - confidence
    assert outcomes.count("better") == outcomes.count("worse")


def unequal(random: np.random.Generator, count: int) -> np.ndarray:
    """Nodes of very different size, some of which see no difference."""
    return random.normal(0, random.choice([0.0, 0.01, 0.1, 1.0], count))


@pytest.mark.parametrize(
    "draw",
    [
        lambda random, count: random.normal(size=count),
        lambda random, count: random.standard_t(1.5, size=count),
        unequal,
    ],
    ids=["normal", "heavy tails", "unequal nodes"],
)
def test_equally_good_models_are_seldom_told_apart(draw: object) -> None:
    random, runs, wrong = np.random.default_rng(7), 2000, 0
    for _ in range(runs):
        drawn = draw(random, 40)  # type: ignore[operator]
        wrong += sequential_test(one_by_one(drawn)).outcome != "undecided"
    # Three standard errors above 5 % are what chance allows.
    assert wrong / runs <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / runs)


SHARE = partial(largest_weight, shares=2.0)


def test_lowered_differences_err_no_more_often() -> None:
    random, runs, wrong = np.random.default_rng(8), 1000, 0
    for _ in range(runs):
        drawn = [random.standard_t(1.5, size=10) for _ in range(3)]
        wrong += sequential_test(drawn, span=5, largest=SHARE).outcome != "undecided"
    assert wrong / runs <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / runs)


@pytest.mark.parametrize("lie", [-1.0, -1e300, -math.inf, 1.0, 1e300, math.inf])
def test_one_of_ten_moves_the_mean_by_two_tenths_and_one_of_twenty_stops_nothing(
    lie: float,
) -> None:
    random = np.random.default_rng(9)
    for count in (10, 20):
        honest = random.uniform(0.02, 0.06, count)
        lied = [*honest[1:], lie]
        one = sequential_test([honest], span=1, largest=SHARE)
        two = sequential_test([lied], span=1, largest=SHARE)
        assert abs(two.mean_difference - one.mean_difference) <= 2 / count
        assert one.outcome == "better"
        assert two.outcome in ({"better"} if lie > 0 or count == 20 else {"better", "undecided"})
        alone = sequential_test([lied], largest=SHARE)  # a metric without a range
        assert abs(alone.mean_difference) <= 0.06


@pytest.mark.parametrize("seed", range(3))
def test_a_better_model_is_found(seed: int) -> None:
    random = np.random.default_rng(seed)
    found = [
        sequential_test([random.normal(1.5, 1, 4) for _ in range(4)]).outcome for _ in range(50)
    ]
    assert found.count("better") >= 35
    assert found.count("worse") == 0


@given(rounds)
def test_better_for_one_is_worse_for_the_other(drawn: list[list[float]]) -> None:
    ours = sequential_test(drawn)
    theirs = sequential_test([[-value for value in new] for new in drawn])
    swapped = {"better": "worse", "worse": "better", "undecided": "undecided"}
    assert theirs.outcome == swapped[ours.outcome]
    assert theirs.evidence_worse == pytest.approx(ours.evidence_better)
    assert (theirs.better, theirs.worse, theirs.equal) == (ours.worse, ours.better, ours.equal)


@given(rounds, st.randoms(use_true_random=False))
def test_the_order_within_a_round_does_not_matter(drawn: list[list[float]], random: object) -> None:
    shuffled = [sorted(new, key=lambda value: random.random()) for new in drawn]  # type: ignore[attr-defined]
    one, two = sequential_test(drawn), sequential_test(shuffled)
    assert two.evidence_better == pytest.approx(one.evidence_better)
    assert two.evidence_worse == pytest.approx(one.evidence_worse)


@given(rounds, st.sampled_from([1e-6, 0.01, 100, 1e6]))
def test_the_unit_of_the_metric_does_not_matter(drawn: list[list[float]], factor: float) -> None:
    one = sequential_test(drawn)
    two = sequential_test([[factor * value for value in new] for new in drawn])
    assert two.evidence_better == pytest.approx(one.evidence_better)
    assert two.outcome == one.outcome


@given(rounds, st.integers(0, 5), st.integers(1, 4))
def test_ties_are_no_evidence(drawn: list[list[float]], place: int, ties: int) -> None:
    more = [*drawn[:place], [0.0] * ties, *drawn[place:]]
    one, two = sequential_test(drawn), sequential_test(more)
    assert two.evidence_better == pytest.approx(one.evidence_better)
    assert two.equal == one.equal + ties


@given(rounds, rounds)
def test_more_rounds_take_nothing_back(before: list[list[float]], after: list[list[float]]) -> None:
    one, two = sequential_test(before), sequential_test(before + after)
    assert two.evidence_better >= one.evidence_better
    assert two.evidence_worse >= one.evidence_worse
    if one.outcome != "undecided":
        assert two.outcome == one.outcome
    assert two.rounds == len(before) + len(after)


@pytest.mark.parametrize(("confidence", "fewest"), [(0.8, 4), (0.9, 5), (0.95, 6), (0.99, 9)])
def test_the_fewest_differences_that_decide(confidence: float, fewest: int) -> None:
    assert fewest_differences(confidence) == fewest
    few = sequential_test([[1.0] * (fewest - 1)], confidence=confidence)
    assert few.outcome == "undecided"
    assert few.evidence_better < few.needed == pytest.approx(2 / (1 - confidence))


@pytest.mark.parametrize("rounds", [[], [[]], [[0.0, 0.0]], [[0.3]]])
def test_nothing_much_decides_nothing(rounds: list[list[float]]) -> None:
    result = sequential_test(rounds)
    assert result.outcome == "undecided"
    assert math.isnan(result.mean_difference) == (rounds in ([], [[]]))


def test_one_great_loss_outweighs_many_small_gains() -> None:
    many = [0.01] * 10
    assert sequential_test([many]).outcome == "better"
    with_a_loss = sequential_test([[*many, -1.0]])
    assert with_a_loss.outcome == "undecided"
    assert with_a_loss.mean_difference < 0


def test_a_missing_score_counts_against_the_one_that_lacks_it() -> None:
    lacking = sequential_test([[0.1] * 8, [-math.inf] + [0.1] * 20])
    assert lacking.outcome == "better"  # decided before
    assert sequential_test([[-math.inf] + [0.1] * 20]).outcome == "undecided"
    assert sequential_test([[-math.inf] * 7]).outcome == "worse"
    assert math.isnan(sequential_test([[-math.inf, math.inf]]).mean_difference)


def test_extremes_stay_numbers() -> None:
    for scale in (1e-300, 1e300):
        result = sequential_test([[scale] * 3000])
        assert result.outcome == "better"
        assert math.isfinite(result.evidence_better)


def test_what_is_no_difference_is_refused() -> None:
    with pytest.raises(ValueError, match="leave out pairs without a difference"):
        sequential_test([[0.1, math.nan]])
    for wrong in (0.0, 1.0, 95.0, math.nan):
        with pytest.raises(ValueError, match="between 0 and 1"):
            sequential_test([], confidence=wrong)
