# SPDX-License-Identifier: Apache-2.0
"""Statistics of two models' scores on the same examples, or on the same nodes round by round."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Literal

import numpy as np

from fl_registry.gates.dependence import dependence
from fl_registry.gates.results import BLOCK, ExampleScores, Results

Outcome = Literal["better", "worse", "undecided"]

DRAWS, SEED = 2000, 0
FEWEST = 20
"""Fewest examples for a bootstrap; with fewer its interval is far too narrow."""
BETS = (0.5, 1.0, 2.0, 4.0, 16.0)
"""Bets on the sign of a difference, in units of the root mean square of all differences."""

_CONFIDENCE = 0.95  # of the interval of a comparison
_FEWEST_IN_TAIL = 5  # draws beyond a percentile; with fewer it is nearly the extreme draw
_LARGEST = 700.0  # largest logarithm of evidence that is reported; its exponential is a float


def bootstrap_interval(
    one: Results, two: Results, metric: str, *, confidence: float = 0.95
) -> tuple[float, float] | None:
    """Return a confidence interval of the difference `two` - `one` in `metric`: paired bootstrap.

    The examples are resampled with replacement, and both models are scored on each sample; the
    interval runs between the percentiles that leave out half of ``1 - confidence`` on either side
    (the percentile interval of B. Efron and R. Tibshirani, *An Introduction to the
    Bootstrap*, 1993, chapter 13; used on paired results of two systems by P. Koehn, "Statistical
    Significance Tests for Machine Translation Evaluation", EMNLP 2004). If there are
    too few draws for such a tail, a normal distribution with the draws' mean and standard
    deviation is used. The seed is fixed: the same results give the same interval.

    Returns
    -------
    tuple[float, float] | None
        None if one of the models has no such metric; NaN if a result is not a number.
    """
    count, random = len(one), np.random.default_rng(SEED)
    rows = max(1, BLOCK // count)  # samples at a time, which bounds the memory
    differences = []
    for start in range(0, DRAWS, rows):
        counts = _drawn(random, min(rows, DRAWS - start), count)
        scores = one.resampled(metric, counts), two.resampled(metric, counts)
        if scores[0] is None or scores[1] is None:
            return None
        differences.append(scores[1] - scores[0])
    drawn, tail = np.concatenate(differences), (1 - confidence) / 2
    if tail * DRAWS < _FEWEST_IN_TAIL:
        mean, reach = drawn.mean(), -NormalDist().inv_cdf(tail) * drawn.std()
        return float(mean - reach), float(mean + reach)
    low, high = np.quantile(drawn, [tail, 1 - tail])
    return float(low), float(high)


def hull(one: tuple[float, float], two: tuple[float, float]) -> tuple[float, float]:
    """Return the least interval that holds both; NaN if one of them is not a number."""
    low, high = np.minimum(one, two)[0], np.maximum(one, two)[1]
    return float(low), float(high)


def paired_verdict(
    one: Mapping[str, float] | None, two: Mapping[str, float] | None
) -> dict[str, Any] | None:
    """Return whether the second version is better on the examples that both were scored on.

    The interval is that of `bootstrap_interval` for the mean difference. It is wider if neighbours
    in the order of the names vary together (see `dependence`), as the frames of a clip do.
    "better" or "worse" means that the whole interval lies on one side of zero; with fewer than
    20 shared examples it is always "undecided". Higher scores are better.

    None where a side has no results per example.
    """
    if not one or not two:
        return None
    shared = sorted(one.keys() & two.keys())
    scores = [[side[name] for name in shared] for side in (one, two)]
    first, second = (ExampleScores({"score": numbers}) for numbers in scores)
    interval, verdict, alike = None, "undecided", None
    if shared:
        interval = bootstrap_interval(first, second, "score", confidence=_CONFIDENCE)
        alike = dependence(first, second, "score")
    if interval is not None and alike is not None:
        interval = hull(interval, alike.interval(_CONFIDENCE))
    if interval is not None and len(shared) >= FEWEST:
        verdict = "better" if interval[0] > 0 else "worse" if interval[1] < 0 else verdict
    return {
        "verdict": verdict,
        "mean_difference": float(np.subtract(scores[1], scores[0]).mean()) if shared else None,
        "interval": None if interval is None else [*interval],
        "confidence": _CONFIDENCE,
        "examples": len(shared),
        "independent_examples": len(shared) if alike is None else alike.examples,
        "only_in_version1": len(one) - len(shared),
        "only_in_version2": len(two) - len(shared),
        "draws": DRAWS,
        "seed": SEED,
    }


def mcnemar(one: np.ndarray, two: np.ndarray) -> tuple[int, int, float]:
    """Return how many examples only `two` has right, how many only `one`, and the p-value.

    The exact two-sided test of Q. McNemar (Psychometrika 12, 1947): if both are equally good, an
    example that only one of them has right is as often right in `one` as in `two`.

    Parameters
    ----------
    one, two : np.ndarray
        Which examples each has right, bool, shape (examples,).
    """
    from scipy.stats import binomtest

    won, lost = int((two & ~one).sum()), int((one & ~two).sum())
    return won, lost, float(binomtest(won, won + lost).pvalue) if won + lost else 1.0


def _drawn(random: np.random.Generator, draws: int, count: int) -> np.ndarray:
    """Return how often each of `count` examples is in each of `draws` samples of that size."""
    picks = random.integers(0, count, (draws, count)) + np.arange(draws)[:, None] * count
    counts = np.bincount(picks.ravel(), minlength=draws * count)
    return counts.reshape(draws, count).astype(np.float32)


@dataclass(frozen=True)
class SequentialResult:
    """The result of a sequential test of paired differences.

    Attributes
    ----------
    outcome : {"better", "worse", "undecided"}
        The verdict on the second model; once decided it never changes.
    evidence_better, evidence_worse : float
        The greatest evidence so far for either: an e-value, 1 for none.
    needed : float
        Evidence at which the test decides.
    mean_difference : float
        Mean of all differences as they are counted, in units of the metric; NaN without any.
    better, worse, equal : int
        Differences above, below and at zero.
    rounds : int
        Number of rounds so far.
    """

    outcome: Outcome
    evidence_better: float
    evidence_worse: float
    needed: float
    mean_difference: float
    better: int
    worse: int
    equal: int
    rounds: int


def sequential_test(
    rounds: Sequence[Sequence[float]],
    *,
    confidence: float = 0.95,
    span: float = math.inf,
    largest: Callable[[Sequence[float]], float] = lambda sizes: math.inf,
) -> SequentialResult:
    """Test paired differences that arrive in rounds.

    If both models are equally good, the size of a difference does not predict its sign: given the
    rounds before and the sizes in this round, each sign is a fair coin. Then
    ``1 + tanh(b d)`` is an e-value of the difference ``d`` for each bet ``b`` that depends on
    sizes alone, since the mean of its two values is 1 (it is ``exp(b d) / cosh(b d)``, the
    e-test of symmetry that goes back to Fisher; V. Vovk and R. Wang, "Nonparametric e-tests of
    symmetry", New England Journal of Statistics in Data Science 2, 2024). Products of these over
    the differences are martingales, and so is their mean over `BETS`, each divided by the root
    mean square of the sizes so far (the method of mixtures; H. Robbins, Annals of Mathematical
    Statistics 41, 1970). By Ville's inequality such a mean ever reaches ``2 / (1 - confidence)``
    with a chance of at most ``(1 - confidence) / 2``; there is one for better and one for worse.
    So a decision between equally good models has a probability of at most ``1 - confidence``,
    however often the test is evaluated, and a decision for the worse of two models half of that.

    A decision also needs the mean of all differences on its side, which can only make wrong
    decisions rarer. The first decision is final. The result does not depend on the unit of the
    differences, nor on their order within a round.

    Great differences may be lowered, so that none decides alone. Since the limit depends on sizes
    alone, all of this still holds.

    Parameters
    ----------
    rounds : Sequence[Sequence[float]]
        The new differences of each round: above zero if the second model is better. An infinite
        difference means that the other model has no score.
    confidence : float
        One minus the probability that equally good models are ever distinguished.
    span : float
        The greatest possible difference; greater ones are lowered to it.
    largest : Callable[[Sequence[float]], float]
        Returns the greatest size that counts, from all sizes so far that are not zero.

    Raises
    ------
    ValueError
        A difference is not a number, or `confidence` does not lie between 0 and 1.
    """
    if not 0 < confidence < 1:
        raise ValueError(f"The confidence must lie between 0 and 1, not be {confidence}.")
    looks = [np.clip(np.asarray(new, float).ravel(), -span, span) for new in rounds]
    values = np.concatenate([*looks, np.empty(0)])
    if np.isnan(values).any():
        raise ValueError("A difference is not a number; leave out pairs without a difference.")
    # Signs with sizes, and not the mean: a test of the mean for any distribution needs a bound on
    # the differences, and with a bound of 1 hundreds of nodes. A t-test after each of ten rounds
    # distinguishes equal models in 18 of 100 evaluations, this one in 2. The price: of 2 points of
    # accuracy on 40 nodes with 60 examples it is sure in 34 of 100 (benchmarks/gates.py).
    needed = 2 / (1 - confidence)
    outcome: Outcome = "undecided"
    sums, most, counted = np.zeros((2, len(BETS))), np.zeros(2), values
    for index, new in enumerate(looks):
        # The limit and the scale use this round's sizes too: they do not predict the signs.
        so_far = np.concatenate(looks[: index + 1])
        sizes = np.abs(so_far[so_far != 0])
        limit = _limit(sizes, largest)
        counted = np.clip(so_far, -limit, limit)
        sizes = np.minimum(sizes, limit)
        sizes = sizes[np.isfinite(sizes)]
        scale = math.hypot(*sizes) / math.sqrt(max(1, len(sizes)))
        sums += _log_evidence(np.clip(new, -limit, limit), scale)
        most = np.maximum(most, np.logaddexp.reduce(sums, axis=1) - math.log(len(BETS)))
        if outcome == "undecided":
            outcome = _decide(most, math.log(needed), _mean(counted))
    return SequentialResult(
        outcome=outcome,
        evidence_better=math.exp(min(most[0], _LARGEST)),
        evidence_worse=math.exp(min(most[1], _LARGEST)),
        needed=needed,
        mean_difference=_mean(counted),
        better=int((values > 0).sum()),
        worse=int((values < 0).sum()),
        equal=int((values == 0).sum()),
        rounds=len(looks),
    )


@functools.cache
def fewest_differences(confidence: float) -> int:
    """Return the fewest differences, all of one sign and size, at which the test decides."""
    counts = itertools.count(1)
    return next(
        n for n in counts if sequential_test([[1.0] * n], confidence=confidence).outcome == "better"
    )


def _limit(sizes: np.ndarray, largest: Callable[[Sequence[float]], float]) -> float:
    """Return the greatest size that counts; infinite sizes count as far beyond the others."""
    finite = sizes[np.isfinite(sizes)]
    if not len(finite):
        return math.inf
    return largest(np.minimum(sizes, 1e3 * len(sizes) * finite.max()).tolist())


def _log_evidence(differences: np.ndarray, scale: float) -> np.ndarray:
    """Return the logarithms of a round's factors of evidence, shape (2 sides, bets)."""
    moved = differences[differences != 0] / (scale or 1.0)
    bets = np.multiply.outer(np.outer([1, -1], BETS), moved)
    # log(1 + tanh(x)) without loss of precision
    logs: np.ndarray = (math.log(2) - np.logaddexp(0, -2 * bets)).sum(axis=-1)
    return logs


def _decide(most: np.ndarray, needed: float, mean: float) -> Outcome:
    if most[0] >= needed and mean > 0:
        return "better"
    return "worse" if most[1] >= needed and mean < 0 else "undecided"


def _mean(values: np.ndarray) -> float:
    """Return the mean: infinite if one side lacks scores, NaN if both do."""
    with np.errstate(invalid="ignore"):
        return float(values.mean()) if len(values) else math.nan
