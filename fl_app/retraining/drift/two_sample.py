# SPDX-License-Identifier: Apache-2.0
"""Test whether two samples in one place come from the same distribution.

For data that stay on their nodes, and for repeated tests, see ``check.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike

MIN_ROWS = 8
"""Rows of either sample, at least, for an answer."""


@dataclass(frozen=True)
class FeatureComparison:
    """The test of one feature.

    Attributes
    ----------
    name : str
        The feature.
    statistic : float | None
        Kolmogorov-Smirnov D, the greatest difference of the two distribution functions, from 0 to
        1; None without an answer.
    pvalue : float | None
        p-value of D, corrected for the number of features.
    effect : float | None
        Difference of the means, in standard deviations of the reference. With many rows the p-value
        is small for any difference; the effect shows whether it matters.
    problem : str
        Why there is no answer; empty if there is one.
    """

    name: str
    statistic: float | None = None
    pvalue: float | None = None
    effect: float | None = None
    problem: str = ""


@dataclass(frozen=True)
class DataComparison:
    """The tests of all features.

    Attributes
    ----------
    features : tuple[FeatureComparison, ...]
        One for each column.
    alpha : float
        Level of ``drifted``.
    """

    features: tuple[FeatureComparison, ...]
    alpha: float

    @property
    def pvalue(self) -> float | None:
        """Smallest corrected p-value; None without any answer."""
        return min((f.pvalue for f in self.features if f.pvalue is not None), default=None)

    @property
    def statistic(self) -> float | None:
        """Greatest D; None without any answer."""
        return max((f.statistic for f in self.features if f.statistic is not None), default=None)

    @property
    def drifted(self) -> tuple[str, ...]:
        """Names of the features whose corrected p-value is below ``alpha``."""
        return tuple(
            f.name for f in self.features if f.pvalue is not None and f.pvalue < self.alpha
        )

    @property
    def problems(self) -> dict[str, str]:
        """Why some features have no answer, by name."""
        return {f.name: f.problem for f in self.features if f.problem}


def check_data_drift(
    current_data: ArrayLike,
    reference_data: ArrayLike,
    *,
    names: Sequence[str] | None = None,
    alpha: float = 0.05,
) -> DataComparison:
    """Compare two samples, feature by feature, by scipy's ``ks_2samp``.

    The p-values are corrected by Holm's method, so that ``alpha`` is the probability of a false
    alarm in one call. With repeated calls these add up: 13 false alarms a day at one call in five
    minutes.

    Parameters
    ----------
    current_data, reference_data : ArrayLike
        Shape (rows,) or (rows, features); as many features in both.
    names : Sequence[str] | None
        Names of the features; their numbers by default.
    alpha : float
        Level of ``drifted``.

    Returns
    -------
    DataComparison
        The test of each feature.

    Raises
    ------
    ValueError
        If the arrays are not numbers of one or two dimensions with as many features.
    """
    current, reference = _columns(current_data), _columns(reference_data)
    if len(current) != len(reference):
        raise ValueError(
            f"The current data have {len(current)} features and the reference {len(reference)}, "
            "expected as many."
        )
    labels = list(names) if names is not None else [str(i) for i in range(len(current))]
    if len(labels) != len(current):
        raise ValueError(f"There are {len(labels)} names for {len(current)} features.")
    if not 0 < alpha < 1:
        raise ValueError(f"alpha is {alpha}, expected a level between 0 and 1, such as 0.05.")
    tests = [_compare(*each) for each in zip(labels, current, reference, strict=True)]
    return DataComparison(_holm(tests), alpha)


def _columns(data: ArrayLike) -> np.ndarray:
    """Shape (features, rows)."""
    values = np.asarray(data)
    if values.ndim not in (1, 2) or values.dtype.kind not in "biuf":
        raise ValueError(
            f"The data are an array of {values.dtype} with shape {values.shape}, expected numbers "
            "of shape (rows,) or (rows, features)."
        )
    return np.atleast_2d(values.T.astype(np.float64))


def _compare(name: str, current: np.ndarray, reference: np.ndarray) -> FeatureComparison:
    from scipy.stats import ks_2samp

    problem = " and ".join(
        f"the {which} data {wrong}"
        for which, rows in (("current", current), ("reference", reference))
        if (wrong := _problem(rows))
    )
    if problem:
        return FeatureComparison(name, problem=problem)
    test = ks_2samp(current, reference)
    effect = (current.mean() - reference.mean()) / reference.std(ddof=1)
    return FeatureComparison(name, float(test.statistic), float(test.pvalue), float(effect))


def _problem(rows: np.ndarray) -> str:
    if len(rows) < MIN_ROWS:
        return f"have {len(rows)} rows, at least {MIN_ROWS} are needed"
    if np.isnan(rows).any():
        return f"hold {int(np.isnan(rows).sum())} NaN"
    if np.isinf(rows).any():
        return f"hold {int(np.isinf(rows).sum())} infinite values"
    return "are constant" if (rows == rows[0]).all() else ""


def _holm(tests: Sequence[FeatureComparison]) -> tuple[FeatureComparison, ...]:
    """Correct the p-values by Holm (1979): the smallest by their number n, the next by n - 1, …."""
    p = np.array([np.nan if f.pvalue is None else f.pvalue for f in tests])
    order = np.argsort(p)  # NaN, no answer, comes last
    factors = np.isfinite(p).sum() - np.arange(len(p))
    p[order] = np.minimum(1, np.maximum.accumulate(p[order] * factors))
    each = zip(tests, p.tolist(), strict=True)
    return tuple(f if f.pvalue is None else replace(f, pvalue=after) for f, after in each)
