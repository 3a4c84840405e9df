# SPDX-License-Identifier: Apache-2.0
"""Test whether two samples in one place come from the same distribution.

How samples are read is in ``columns.py``. For data that stay on their nodes, and for repeated
tests, see ``check.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fl_app.retraining.drift.columns import Column, Table, column_of, columns_of

MIN_ROWS = 8
"""Rows of either sample, at least, for an answer."""
MIN_EXPECTED = 4.0
"""Rows of a level that the smaller sample is expected to have, at least; rarer levels are one."""


@dataclass(frozen=True)
class FeatureComparison:
    """The test of one feature.

    Attributes
    ----------
    name : str
        The feature.
    statistic : float | None
        Kolmogorov-Smirnov D, the greatest difference of the two distribution functions, from 0 to
        1; of levels the total variation distance. If more rows are missing than that, the
        difference of their shares. None without an answer.
    pvalue : float | None
        p-value, corrected for the number of features.
    effect : float | None
        Difference of the means, in standard deviations of the reference; None for levels. With many
        rows the p-value is small for any difference; the effect shows whether it matters.
    problem : str
        Why there is no answer, or what the answer leaves out; empty if all was compared.
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
    current_data: Any,
    reference_data: Any,
    *,
    names: Sequence[str] | None = None,
    alpha: float = 0.05,
) -> DataComparison:
    """Compare two samples, feature by feature.

    Numbers and times are compared by scipy's ``ks_2samp``, text and booleans by a chi-squared test
    of their levels (Fisher's exact test for two). If rows are missing (None, NaN, NaT), their share
    is compared as well. The p-values are corrected by Holm's method, so that ``alpha`` is the
    probability of a false alarm in one call, for rows that are independent. With repeated calls
    these add up: 13 false alarms a day at one call in five minutes.

    Parameters
    ----------
    current_data, reference_data : Any
        Arrays or lists of shape (rows,) or (rows, features), or data frames and mappings of columns
        by name. Columns with names are paired by name, others by position.
    names : Sequence[str] | None
        Names of the features of arrays; their numbers by default.
    alpha : float
        Level of ``drifted``.

    Returns
    -------
    DataComparison
        The test of each feature. Columns of one sample only are in its ``problems``.

    Raises
    ------
    ValueError
        If an array has another shape, the arrays have not as many features, or a parameter is out
        of range.
    """
    if not 0 < alpha < 1:
        raise ValueError(f"alpha is {alpha}, expected a level between 0 and 1, such as 0.05.")
    current, reference = columns_of(current_data), columns_of(reference_data)
    if current.names is None or reference.names is None:
        pairs = _by_position(current, reference, names)
    elif names is not None:
        raise ValueError("The columns of both samples have names: leave names out.")
    else:
        past = dict(zip(reference.names, reference.values, strict=True))
        now = dict(zip(current.names, current.values, strict=True))
        pairs = {name: (now[name], past[name]) for name in now if name in past}
    tests = [_compare(name, *each) for name, each in pairs.items()]
    for one, other, which in (
        (current.names, reference.names, "reference"),
        (reference.names, current.names, "current"),
    ):
        for name in one or ():
            if other is not None and name not in other:
                tests.append(FeatureComparison(name, problem=f"the {which} data lack this column"))
    return DataComparison(_holm(tests), alpha)


def _by_position(
    current: Table, reference: Table, names: Sequence[str] | None
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    count = len(current.values)
    if count != len(reference.values):
        raise ValueError(
            f"The current data have {count} features and the reference {len(reference.values)}, "
            "expected as many."
        )
    labels = names or current.names or reference.names or range(count)
    labels = [*map(str, labels)]
    if len({*labels}) != count or len(labels) != count:
        raise ValueError(
            f"There are {len(labels)} names for {count} features, expected one for each, and none "
            "that occurs twice."
        )
    return dict(zip(labels, zip(current.values, reference.values, strict=True), strict=True))


def _compare(name: str, current: np.ndarray, reference: np.ndarray) -> FeatureComparison:
    problem = " and ".join(
        f"the {which} data have {len(rows)} rows, at least {MIN_ROWS} are needed"
        for which, rows in (("current", current), ("reference", reference))
        if len(rows) < MIN_ROWS
    )
    if problem:
        return FeatureComparison(name, problem=problem)
    now, past = column_of(current), column_of(reference)
    kinds = {now.kind, past.kind}
    answers, effect = list[tuple[float, float]](), None
    if min(len(now), len(past)) >= MIN_ROWS:
        if (kinds <= {"number", "bool"} and kinds != {"bool"}) or kinds == {"time"}:
            answers.append(_numbers(now.values, past.values))
            effect = _effect(now.values, past.values)
        # Numbers in one sample and text in the other are compared as text.
        elif (levels := _levels(now.as_text(), past.as_text())) is not None:
            answers.append(levels)
        else:
            problem = "its levels are too rare to be compared"
    elif len(now) + len(past):
        which, few = ("current", now) if len(now) <= len(past) else ("reference", past)
        problem = f"the {which} data have {len(few)} values, at least {MIN_ROWS} are needed"
    if now.missing or past.missing:
        answers.append(_missing(now, past))
    if not answers:
        return FeatureComparison(name, problem=problem)
    statistic = max(statistic for statistic, _ in answers)
    pvalue = min(1.0, len(answers) * min(pvalue for _, pvalue in answers))
    return FeatureComparison(name, statistic, pvalue, effect, problem)


def _numbers(now: np.ndarray, past: np.ndarray) -> tuple[float, float]:
    """Return D and its p-value."""
    from scipy.stats import ks_2samp

    method = "auto" if len(now) * len(past) <= 10**8 else "asymp"
    test = ks_2samp(now, past, method=method)
    return float(test.statistic), float(np.clip(test.pvalue, 0, 1))


def _effect(now: np.ndarray, past: np.ndarray) -> float | None:
    with np.errstate(all="ignore"):  # infinities, and numbers near the greatest one
        effect = float((now.mean() - past.mean()) / past.std(ddof=1))
    return effect if np.isfinite(effect) else None


def _levels(now: np.ndarray, past: np.ndarray) -> tuple[float, float] | None:
    """Return the total variation distance and the p-value; None if all levels are rare."""
    from scipy.stats import chi2_contingency

    levels, place = np.unique(np.concatenate([now, past]), return_inverse=True)
    table = np.stack(
        [np.bincount(part, minlength=len(levels)) for part in np.split(place, [len(now)])]
    )
    distance = float(np.abs(table[0] / len(now) - table[1] / len(past)).sum() / 2)
    if len(levels) == 1:
        return 0.0, 1.0
    least = min(len(now), len(past)) / (len(now) + len(past))
    frequent = table.sum(axis=0) * least >= MIN_EXPECTED
    rare = table[:, ~frequent].sum(axis=1, keepdims=True)
    groups = np.concatenate([table[:, frequent], rare], axis=1) if rare.any() else table
    if groups.shape[1] == 1:
        return None
    if groups.shape[1] == 2:
        return distance, _exact(groups)
    few = 0 < rare.sum() * least < MIN_EXPECTED
    kept = groups[:, :-1] if few and groups[:, :-1].any(axis=1).all() else groups
    if kept.shape[1] == 2:
        return distance, _exact(kept)
    return distance, float(chi2_contingency(kept).pvalue)


def _missing(now: Column, past: Column) -> tuple[float, float]:
    """Return the difference of the shares of missing rows, and its p-value."""
    table = np.array([[each.missing, len(each)] for each in (now, past)])
    shares = table[:, 0] / table.sum(axis=1)
    return float(abs(shares[0] - shares[1])), _exact(table)


def _exact(table: np.ndarray) -> float:
    from scipy.stats import fisher_exact

    return float(np.clip(fisher_exact(table).pvalue, 0, 1))


def _holm(tests: Sequence[FeatureComparison]) -> tuple[FeatureComparison, ...]:
    """Correct the p-values by Holm (1979): the smallest by their number n, the next by n - 1, …."""
    p = np.array([np.nan if f.pvalue is None else f.pvalue for f in tests])
    order = np.argsort(p)  # NaN, no answer, comes last
    factors = np.isfinite(p).sum() - np.arange(len(p))
    p[order] = np.minimum(1, np.maximum.accumulate(p[order] * factors))
    each = zip(tests, p.tolist(), strict=True)
    return tuple(f if f.pvalue is None else replace(f, pvalue=after) for f, after in each)
