# SPDX-License-Identifier: Apache-2.0
"""Which of two models is better, with a look after every round of results. Pure."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

Outcome = Literal["better", "worse", "undecided"]

BETS = (0.5, 1.0, 2.0, 4.0, 16.0)
"""Bets on the sign of a difference, for one whose size is the root mean square of all."""

_LARGEST = 700.0  # logarithm of the most evidence that is told; its exponential still is a float


@dataclass(frozen=True)
class SequentialResult:
    """What a sequential test of paired differences says after its last look.

    Attributes
    ----------
    outcome : {"better", "worse", "undecided"}
        What the differences say of the second model, once and for all.
    evidence_better, evidence_worse : float
        The greatest evidence so far for either: an e-value, 1 for none.
    needed : float
        Evidence that decides.
    mean_difference : float
        Mean of all differences, in units of the metric; NaN without any.
    better, worse, equal : int
        Differences above, below and at zero.
    rounds : int
        Looks so far.
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
    rounds: Sequence[Sequence[float]], *, confidence: float = 0.95
) -> SequentialResult:
    """Return what paired differences say, of which each round brought some.

    Where both models are equally good, how much one of them is better says nothing of which one
    it is: given the rounds before and the sizes in this one, each sign is a fair coin. Then
    ``1 + tanh(b d)`` is an e-value of the difference ``d`` for each bet ``b`` that depends on
    sizes alone, since the mean of its two values is 1 (it is ``exp(b d) / cosh(b d)``, the
    e-test of symmetry that goes back to Fisher; V. Vovk and R. Wang, "Nonparametric e-tests of
    symmetry", New England Journal of Statistics in Data Science 2, 2024). Products of these over
    the differences are martingales, and so is their mean over `BETS`, each divided by the root
    mean square of the sizes so far (the method of mixtures; H. Robbins, Annals of Mathematical
    Statistics 41, 1970). By Ville's inequality such a mean ever reaches ``2 / (1 - confidence)``
    with a chance of at most ``(1 - confidence) / 2``; there is one for better and one for worse.
    So a decision between equally good models has a chance of at most ``1 - confidence``, however
    often one looks, and one for the worse of two models, of half of that.

    A decision also needs the mean of all differences on its side, which can only make wrong ones
    rarer. The first decision stands. Factors that all differences share change nothing, nor does
    the order within a round.

    Parameters
    ----------
    rounds : Sequence[Sequence[float]]
        For each look the differences that are new: above zero where the second model is better.
        An infinite one says that the other model has no score at all.
    confidence : float
        One minus the chance of a decision, ever, between equally good models.

    Raises
    ------
    ValueError
        A difference is not a number, or `confidence` does not lie between 0 and 1.
    """
    if not 0 < confidence < 1:
        raise ValueError(f"The confidence must lie between 0 and 1, not be {confidence}.")
    looks = [np.asarray(differences, float).ravel() for differences in rounds]
    values = np.concatenate([*looks, np.empty(0)])
    if np.isnan(values).any():
        raise ValueError("A difference is not a number; leave out pairs without a difference.")
    needed = 2 / (1 - confidence)
    outcome: Outcome = "undecided"
    sums, sizes, most = np.zeros((2, len(BETS))), np.empty(0), np.zeros(2)
    for index, new in enumerate(looks):
        sizes = np.append(sizes, np.abs(new[np.isfinite(new) & (new != 0)]))
        sums += _log_evidence(new, math.hypot(*sizes) / math.sqrt(max(1, len(sizes))))
        most = np.maximum(most, np.logaddexp.reduce(sums, axis=1) - math.log(len(BETS)))
        if outcome == "undecided":
            outcome = _decide(most, math.log(needed), _mean(np.concatenate(looks[: index + 1])))
    return SequentialResult(
        outcome=outcome,
        evidence_better=math.exp(min(most[0], _LARGEST)),
        evidence_worse=math.exp(min(most[1], _LARGEST)),
        needed=needed,
        mean_difference=_mean(values),
        better=int((values > 0).sum()),
        worse=int((values < 0).sum()),
        equal=int((values == 0).sum()),
        rounds=len(looks),
    )


@functools.cache
def fewest_differences(confidence: float) -> int:
    """Return with how many differences a decision is possible, if all are of one sign and size."""
    counts = itertools.count(1)
    return next(
        n for n in counts if sequential_test([[1.0] * n], confidence=confidence).outcome == "better"
    )


def _log_evidence(differences: np.ndarray, scale: float) -> np.ndarray:
    """Logarithms of what a round multiplies the evidence with, shape (2 sides, bets)."""
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
    """Mean that is infinite where one side lacks scores, and NaN where both do."""
    with np.errstate(invalid="ignore"):
        return float(values.mean()) if len(values) else math.nan
