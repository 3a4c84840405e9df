# SPDX-License-Identifier: Apache-2.0
"""The summaries of all nodes merged into one comparison per feature, and its statistics. Pure."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fl_app.retraining.drift.state import Window
from fl_app.wire.data_summary import DataSummary, Feature, FeatureKind

logger = logging.getLogger("flwr.fl_app")

SQUARE_MEAN = math.pi**2 / 12
SQUARE_VARIANCE = 7 * math.pi**4 / 720 - SQUARE_MEAN**2
"""Mean and variance of the square of a variable with Kolmogorov's distribution."""
CRITICAL, NORMAL = 1.6276, 2.3263
"""The 99 % quantiles of that distribution and of the normal one."""
LEAST_P, MOST_P = 1e-300, 0.999
E_CAP = 1e15
MOVED_P = 0.01


@dataclass(frozen=True, eq=False)
class Merged:
    """One check, all nodes together; each array has shape (features,).

    Attributes
    ----------
    window : Window
        The counts, and their expectation by the frozen baselines.
    p : np.ndarray
        p-value of the difference from the grown references, all rows together; 1 without rows.
    nodes_p : np.ndarray
        Fisher's combination of the p-values of the nodes' own differences. It shows a shift on some
        nodes, which hardly shows in the sum of all.
    moved : np.ndarray
        Number of nodes whose rows differ from their own reference (p < 0.01).
    nodes : int
        Number of nodes with a summary.
    """

    window: Window
    p: np.ndarray
    nodes_p: np.ndarray
    moved: np.ndarray
    nodes: int

    @property
    def e(self) -> np.ndarray:
        """Evidence of this check: the mean of two e-values, which is an e-value."""
        e: np.ndarray = (e_value(self.p) + e_value(self.nodes_p)) / 2
        return e


def kolmogorov_p(shift: np.ndarray, variance: np.ndarray) -> np.ndarray:
    """Return the p-value of a difference ``shift`` of distribution functions, by Stephens (1970).

    ``variance`` is 1 over the effective number of rows, 1/n + 1/m for two samples, plus the
    variance of noise in the counts.
    """
    from scipy.special import kolmogorov

    root = 1 / np.sqrt(variance)
    p: np.ndarray = kolmogorov((root + 0.12 + 0.11 / root) * shift)
    return p


def e_value(p: np.ndarray) -> np.ndarray:
    """Return the mixture of all power calibrators of a p-value (Vovk and Wang 2021).

    It is (1 - p + p ln p) / (p ln(p)^2). Its mean is at most 1 without drift, also with the cap.
    """
    p = np.clip(p, LEAST_P, MOST_P)
    log = np.log(p)
    e: np.ndarray = np.minimum((1 - p + p * log) / (p * log**2), E_CAP)
    return e


def shared(summaries: Sequence[DataSummary]) -> tuple[list[Feature], list[DataSummary]]:
    """Return the features of most nodes, and the summaries with the usual number of bins."""
    if not summaries:
        return [], []
    # A majority decides, so that no node adds columns or changes the bins of all.
    usual = Counter(s.counts.shape[2] for s in summaries).most_common(1)[0][0]
    usable = []
    for summary in summaries:
        if summary.counts.shape[2] == usual:
            usable.append(summary)
        else:
            bins = summary.counts.shape[2]
            logger.warning("node %s counts in %d bins, not in %d", summary.node_id, bins, usual)
    nodes_with = Counter(f for summary in usable for f in summary.features)
    common = [f for f, n in nodes_with.items() if f.kind != "missing" and 2 * n > len(usable)]
    columns = {feature.name for feature in common}
    missing = [f for f in nodes_with if f.kind == "missing" and f.name in columns]
    return [*common, *missing], usable


def merge(summaries: Sequence[DataSummary], features: Sequence[Feature], time: float) -> Merged:
    """Add up the counts of all nodes, and their expectations by the nodes' own references.

    The nodes' rows are independent, so the variance of the difference is the sum of their variances
    times their squared shares, ``sum w^2 (1/n + 1/r)``, plus that of noise, ``B sigma^2 / n^2``.
    """
    from scipy.special import gammaincc

    place = {feature: number for number, feature in enumerate(features)}
    bins = summaries[0].counts.shape[2]
    flat, square = (len(features),), (len(features), bins)
    now, grown, frozen = np.zeros(square), np.zeros(square), np.zeros(square)
    rows, noise, variance, base = (np.zeros(flat) for _ in range(4))
    spread, spread_variance = np.zeros(flat), np.zeros(flat)
    surprise, nodes, moved = np.zeros(flat), np.zeros(flat, int), np.zeros(flat, int)
    for summary in summaries:
        mine = [i for i, feature in enumerate(summary.features) if feature in place]
        to = [place[summary.features[i]] for i in mine]
        counts, (v_now, v_grown, v_base) = summary.counts[mine], np.multiply(bins, summary.noise)
        n, r, b = counts.sum(axis=2).T
        # A reference has more rows than this check: scaled, it is the expectation of the new rows.
        expected = counts * (n[:, None] / counts.sum(axis=2))[:, :, None]
        now[to] += counts[:, 0]
        grown[to] += expected[:, 1]
        frozen[to] += expected[:, 2]
        rows[to] += n
        noise[to] += v_now
        fresh = (n + v_now) / n**2
        own = fresh + 1 / r + v_grown / r**2
        variance[to] += n**2 * own
        p = kolmogorov_p(difference(counts[:, 0], expected[:, 1], n), own)
        # Fisher's combination: a shift of half a standard deviation on a fifth of the nodes hardly
        # shows in the sum of all. With this p-value the alarm comes after 2 checks instead of 5.
        surprise[to] -= np.log(np.maximum(p, LEAST_P))
        moved[to] += p < MOVED_P
        nodes[to] += 1
        own_base = 1 / b + v_base / b**2
        base[to] += n**2 * own_base
        shift, error = difference(counts[:, 0], expected[:, 2], n), fresh + own_base
        spread[to] += n * (shift**2 - SQUARE_MEAN * error)
        spread_variance[to] += n**2 * (SQUARE_VARIANCE * error**2 + shift**2 * error)
    window = Window(time, now, frozen, rows, noise, np.sqrt(base), spread, spread_variance)
    some = np.maximum(rows, 1)
    p = kolmogorov_p(difference(now, grown, some), np.maximum(variance, 1) / some**2)
    nodes_p = gammaincc(np.maximum(nodes, 1), surprise)
    return Merged(window, np.where(rows > 0, p, 1.0), nodes_p, moved, len(summaries))


def difference(now: np.ndarray, expected: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return the greatest difference of the distribution functions, shape (features,)."""
    gap: np.ndarray = np.abs(np.cumsum(now - expected, axis=-1)).max(axis=-1) / rows
    return gap


def effect(window: Window) -> np.ndarray:
    """Return the size of the shift, shape (features,): all nodes together, or each by itself.

    Shifts of some nodes, or in opposite directions, hardly show in the sum. They do in the root
    mean square of the nodes' own shifts, less its expectation without drift.
    """
    rows = np.maximum(window.rows, 1)
    spread = np.sqrt(np.maximum(window.spread / rows, 0))
    either: np.ndarray = np.maximum(difference(window.now, window.expected, rows), spread)
    return either


def least_effect(window: Window, *, nodes: bool = True) -> np.ndarray:
    """Return the lower 99 % limit of ``effect``, or of the nodes together if not ``nodes``.

    The first by the inequality of Dvoretzky, Kiefer, Wolfowitz and Massart, the second by the
    normal approximation.
    """
    rows = np.maximum(window.rows, 1)
    error = np.sqrt(window.rows + window.noise + window.base_error**2) / rows
    limit: np.ndarray = difference(window.now, window.expected, rows) - CRITICAL * error
    if nodes:
        square = (window.spread - NORMAL * np.sqrt(window.spread_variance)) / rows
        limit = np.maximum(limit, np.sqrt(np.maximum(square, 0)))
    return limit


def directions(features: Sequence[Feature], gaps: np.ndarray) -> list[str]:
    """Describe how features changed; ``gaps`` is now less expected, shape (features, bins)."""
    running = np.cumsum(gaps, axis=1)
    means, greatest = running.mean(axis=1), np.abs(running).max(axis=1)
    first = running[:, 0]
    return [_direction(*one) for one in zip(features, first, means, greatest, strict=True)]


def _direction(feature: Feature, first: float, mean: float, greatest: float) -> str:
    if feature.kind is FeatureKind.LEVELS:
        return "in another mix"
    if feature.kind is FeatureKind.MISSING:
        return "more often" if first < 0 else "less often"
    if abs(mean) < greatest / 4:
        return "with another spread"
    return "higher" if mean < 0 else "lower"
