# SPDX-License-Identifier: Apache-2.0
"""Statistics of two models' scores on the same examples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Protocol

import numpy as np

DRAWS, SEED = 2000, 0
FEWEST = 20
"""Fewest examples for a bootstrap; with fewer its interval is far too narrow."""

_FEWEST_IN_TAIL = 5  # draws beyond a percentile; with fewer it is nearly the extreme draw
_BLOCK = 2_000_000  # counts in memory at a time


class Results(Protocol):
    """A model's results on each example of a data set, from which metrics can be had anew.

    `ExampleScores` keeps it for means; a metric that is no mean needs a class of its own.
    """

    def __len__(self) -> int:
        """Return the number of examples."""

    def resampled(self, metric: str, counts: np.ndarray) -> np.ndarray | None:
        """Return `metric` for each row of `counts`: how often each example is drawn.

        `counts` has the shape (samples, examples); None where there is no such metric.
        """


@dataclass(frozen=True)
class ExampleScores:
    """Numbers per example, for metrics that are the mean of these numbers.

    Parameters
    ----------
    scores : Mapping[str, Sequence[float]]
        For each metric one number per example, in the same order for every model. If all numbers
        are 0 or 1, they mean wrong and right.
    """

    scores: Mapping[str, Sequence[float]]

    def __len__(self) -> int:
        """Return the number of examples."""
        return max((len(values) for values in self.scores.values()), default=0)

    def resampled(self, metric: str, counts: np.ndarray) -> np.ndarray | None:
        """Return the mean of `metric` for each row of `counts`; None if it was not scored.

        Parameters
        ----------
        counts : np.ndarray
            How often each example is in each sample, shape (samples, examples).
        """
        if len(self.scores.get(metric, ())) != len(self):
            return None
        means: np.ndarray = counts @ np.asarray(self.scores[metric], float) / counts.sum(axis=1)
        return means

    def correct(self, metric: str) -> np.ndarray | None:
        """Return which examples are right, shape (examples,); None unless all are 0 or 1."""
        values = np.asarray(self.scores.get(metric, ()), float)
        return values == 1 if len(values) and np.isin(values, (0, 1)).all() else None


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
    rows = max(1, _BLOCK // count)  # samples at a time, which bounds the memory
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
