# SPDX-License-Identifier: Apache-2.0
"""How uncertain the difference of two models is if examples vary together.

Frames of a clip are nearly one example: models that are equally good differ on all of them or on
none. Statistics of independent examples are then far too sure.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from fl_registry.gates.results import BLOCK, Results

SUSPECT = 0.3
"""P-value up to which neighbouring examples are taken to vary together."""
# Three times in ten independent examples are suspected too, which costs power and no error. With
# 0.2, 10.4 of 100 sessions with 127 examples of 12 clips of any size promote an equal model, with
# 0.3 it is 9 (benchmarks/gates.py).
FEWEST_IN_ORDER = 16
"""Examples whose order is tested, at least."""
MOST_UNITS = 2000
"""Groups or examples that are left out one by one; with more, some at a time."""
_WAVES = 4  # slow waves whose power is the variance of the mean; more would miss long clips
_SHUFFLES = 199
_SEED = 0


@dataclass(frozen=True)
class Dependence:
    """How uncertain a difference is, with examples that vary together.

    Attributes
    ----------
    difference : float
        The difference of the metric, of the second model from the first.
    error : float
        Its standard error; NaN if it cannot be computed.
    freedom : float
        Degrees of freedom of that error; below 1 nothing can be concluded.
    groups : int | None
        The number of groups; None if the order of the examples shows that they vary together.
    examples : float
        How many independent examples there seem to be.
    """

    difference: float
    error: float
    freedom: float
    groups: int | None
    examples: float

    def interval(self, confidence: float) -> tuple[float, float]:
        """Return the confidence interval of the difference by Student's t distribution."""
        from scipy.special import stdtrit

        reach = self.error * float(stdtrit(self.freedom, (1 + confidence) / 2))
        return self.difference - reach, self.difference + reach


def dependence(one: Results, two: Results, metric: str) -> Dependence | None:
    """Return how uncertain the difference `two` - `one` is by its groups, or by its order.

    None if a side has no such metric, or if there are no groups and the order of the examples does
    not show that they vary together.
    """
    labels = labels_of(one)
    if labels is None:
        return _in_order(one, two, metric)
    return _in_groups(one, two, metric, labels)


def labels_of(results: Results) -> np.ndarray | None:
    """Return the number of each example's group, by first appearance; None without groups."""
    # A class of the user's own may lack what the protocol has come to name.
    groups: Sequence[Hashable] | None = getattr(results, "groups", None)
    if groups is None:
        return None
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(group, len(numbers)) for group in groups], int)


def _in_groups(one: Results, two: Results, metric: str, labels: np.ndarray) -> Dependence | None:
    """Leave out one group at a time: the jackknife for clusters.

    The difference of the other groups from that of all gives the standard error, as CV3 of A. C.
    Cameron and D. L. Miller, "A Practitioner's Guide to Cluster-Robust Inference", Journal of Human
    Resources 50, 2015. Its degrees of freedom are one less than the groups; those of unequal size
    count as ``(sum n)^2 / sum n^2`` (A. V. Carter, K. T. Schnepel and D. G. Steigerwald, Review of
    Economics and Statistics 99, 2017).
    """
    sizes = np.bincount(labels)
    number, shares = len(sizes), sizes / len(labels)
    found = _without_each(one, two, metric, _merged(labels, number))
    if found is None:
        return None
    difference, without = found
    units = len(without)
    error = math.sqrt((units - 1) / units * float(((without - difference) ** 2).sum()))
    equal = 1 / float((shares**2).sum())
    return Dependence(difference, error, equal - 1, number, equal)


def _in_order(one: Results, two: Results, metric: str) -> Dependence | None:
    """Look for waves along the order of the examples, which independent ones do not have.

    The standard error is from the power of the slowest waves, which has as many degrees of freedom
    (E. Lazarus, D. J. Lewis, J. H. Stock and M. W. Watson, "HAR Inference", Journal of Business and
    Economic Statistics 36, 2018).
    """
    if len(one) < FEWEST_IN_ORDER:
        return None
    labels = _merged(np.arange(len(one)), len(one))
    found = _without_each(one, two, metric, labels)
    if found is None or not np.isfinite(found[1]).all():
        return None
    difference, without = found
    sizes = np.bincount(labels)
    part = (difference - without) * (len(labels) / sizes - 1)  # what each differs from the mean by
    part -= part.mean()
    variance = float(part @ part) / (len(part) - 1)
    if math.sqrt(variance) <= 1e-9 * max(1.0, abs(difference)):
        return None  # rounding is all that varies
    power = _power(part[None])
    chance = _smallest_chance(_power(part[_shuffles(len(part))]), variance)
    as_slow = int((chance <= _smallest_chance(power, variance)[0]).sum())
    slow = float(power[0, :_WAVES].mean())
    if (1 + as_slow) / (1 + _SHUFFLES) > SUSPECT or slow <= variance:
        return None
    error = math.sqrt(slow / len(part))
    return Dependence(difference, error, _WAVES, None, len(one) * variance / slow)


def _merged(labels: np.ndarray, number: int) -> np.ndarray:
    return labels if number <= MOST_UNITS else labels * MOST_UNITS // number


def _without_each(
    one: Results, two: Results, metric: str, labels: np.ndarray
) -> tuple[float, np.ndarray] | None:
    """Return the difference on all examples, and those without each unit."""
    units = int(labels.max(initial=-1)) + 1
    rows = max(1, BLOCK // max(1, len(labels)))
    drawn = []
    for start in range(-1, units, rows):  # the first row leaves out nothing
        left_out = np.arange(start, min(start + rows, units))
        counts = (labels != left_out[:, None]).astype(np.float32)
        with np.errstate(invalid="ignore"):  # nothing is left without the only group
            scores = one.resampled(metric, counts), two.resampled(metric, counts)
            if scores[0] is None or scores[1] is None:
                return None
            drawn.append(scores[1] - scores[0])
    differences = np.concatenate(drawn)
    return float(differences[0]), differences[1:]


@functools.lru_cache(maxsize=4)
def _shuffles(number: int) -> np.ndarray:
    """Return orders of so many parts at random, shape (shuffles, parts); always the same ones."""
    order = np.tile(np.arange(number), (_SHUFFLES, 1))
    return np.random.default_rng(_SEED).permuted(order, axis=1)


def _power(parts: np.ndarray) -> np.ndarray:
    """Return the power of the waves along each row, the slowest first, without the mean."""
    from scipy.fft import dct

    waves: np.ndarray = dct(parts, axis=1, norm="ortho")[:, 1:]
    return waves**2


def _smallest_chance(power: np.ndarray, variance: float) -> np.ndarray:
    """Return how improbable each row's slow waves are, at the number of waves where it is least."""
    from scipy.special import gammaincc

    total = np.cumsum(power, axis=1) / variance
    numbers = 2 ** np.arange(int(math.log2(max(1, power.shape[1] // 2))) + 1)
    chances: np.ndarray = gammaincc(numbers / 2, total[:, numbers - 1] / 2).min(axis=1)
    return chances
