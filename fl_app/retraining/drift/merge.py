# SPDX-License-Identifier: Apache-2.0
"""The summaries of all nodes in one check become counts and scores, none of them one node's. Pure.

No node has more than its share: of the rows by a limit on their number, of a score by a limit on
how far a node moves it.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fl_app.retraining.drift.quiet import SCORES, CheckScores
from fl_app.retraining.drift.state import Window, difference
from fl_app.shares import largest_weight
from fl_app.wire.data_summary import PARTS, DataSummary, Feature, FeatureKind

logger = logging.getLogger("flwr.fl_app")

SQUARE_MEAN = math.pi**2 / 12
SQUARE_VARIANCE = 7 * math.pi**4 / 720 - SQUARE_MEAN**2
"""Mean and variance of the square of a variable with Kolmogorov's distribution."""
LEAST_P = 1e-300
MOVED_P = 0.01
MOST_MOVED = 1.25
"""Standard errors of a score that one node moves it by, at most."""
MEDIAN_SQUARE = 0.4549
"""Median of the square of a standard normal variable."""
MOST_AT_ONCE = 20_000
"""Features of all nodes whose counts are copied at the same time: 30 MB."""
LEAST_VARIANCE = 0.05
"""Variance of a row's score, at least; a column that was constant has none."""


@dataclass(frozen=True, eq=False)
class Merged:
    """One check, all nodes together; each array has shape (features,).

    Attributes
    ----------
    window : Window
        The counts, and their expectation by the frozen baselines.
    p : np.ndarray
        p-value of the difference from the grown references, all rows together, as if rows were
        independent; 1 without rows.
    scores : CheckScores
        The same differences as numbers that do not assume so.
    moved : np.ndarray
        Number of nodes whose rows differ from their own reference (p < 0.01).
    nodes, rows : int
        Number of nodes with a summary, and of new rows.
    """

    window: Window
    p: np.ndarray
    scores: CheckScores
    moved: np.ndarray
    nodes: int
    rows: int


def kolmogorov_p(shift: np.ndarray, variance: np.ndarray) -> np.ndarray:
    """Return the p-value of a difference ``shift`` of distribution functions, by Stephens (1970).

    ``variance`` is 1 over the effective number of rows, 1/n + 1/m for two samples, plus the
    variance of noise in the counts.
    """
    from scipy.special import kolmogorov

    root = 1 / np.sqrt(variance)
    return np.asarray(kolmogorov((root + 0.12 + 0.11 / root) * shift))


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


def merge(
    summaries: Sequence[DataSummary],
    features: Sequence[Feature],
    time: float,
    *,
    shares: float | None = None,
    node_variance: np.ndarray | None = None,
) -> Merged:
    """Add up the counts of all nodes, and their expectations by the nodes' own references.

    The nodes' rows are independent, so the variance of the difference is the sum of their variances
    times their squared shares, ``sum w^2 (1/n + 1/r)``, plus that of noise, ``B sigma^2 / n^2``.

    Parameters
    ----------
    shares : float | None
        Largest share of a node in multiples of an equal one; None: no limit.
    node_variance : np.ndarray | None
        Shape (features, 3): variance between batches of different nodes, NaN where it is unknown.
    """
    bins = summaries[0].counts.shape[2]
    sent, baselines = (
        np.stack([_rows(summary, features, part) for summary in summaries]) for part in (0, 2)
    )
    # Rows count as many as they and the baseline together are worth: a node with a baseline of one
    # row would make the sum as uncertain as itself.
    worth = sent / (1 + sent / np.maximum(baselines, 1))
    counted = _limited(worth, shares)
    for summary, told, before, after in zip(summaries, sent, worth, counted, strict=True):
        if (after < before).any():
            logger.info(
                "the %d new rows of node %s count as %d: no node has more than %g equal shares",
                told.max(), summary.node_id, after.max(), shares,
            )  # fmt: skip
    now, grown, frozen = np.zeros((3, len(features), bins))
    noise, variance, base = np.zeros((3, len(features)))
    square, uncertain = np.zeros((2, *sent.shape))
    values, errors = np.zeros((2, *sent.shape, SCORES - 1))
    step = max(1, MOST_AT_ONCE // len(features))
    for begin in range(0, len(summaries), step):
        some = summaries[begin : begin + step]
        node, to = np.nonzero(sent[begin : begin + step])
        counts = np.concatenate([_aligned(summary, features) for summary in some])
        v = bins * np.array([np.broadcast_to(summary.noise, PARTS) for summary in some])[node]
        place, w = (node + begin, to), counted[node + begin, to]
        n, r, _ = parts = counts.sum(axis=2).T
        fresh, grown_error, own_base = (1 / parts.T + v / parts.T**2).T
        values[place], weight = _scores(counts)
        row_noise = (v[:, 0] / n**2 + v[:, 1] / r**2)[:, None]
        errors[place] = (1 / n + 1 / r)[:, None] + weight * row_noise
        # A reference has more rows than this check: scaled, it is the expectation of the new rows.
        scaled = counts * (w[:, None] / parts.T)[:, :, None]
        for part, sums in enumerate((now, grown, frozen)):
            np.add.at(sums, to, scaled[:, part])
        # Rows that count less vary less.
        np.add.at(noise, to, (w / n) ** 2 * v[:, 0] - w * (1 - w / n))
        np.add.at(variance, to, w**2 * (fresh + grown_error))
        np.add.at(base, to, w**2 * own_base)
        shift, error = difference(scaled[:, 0], scaled[:, 2], w), fresh + own_base
        square[place] = w * (shift**2 - SQUARE_MEAN * error)
        uncertain[place] = w**2 * (SQUARE_VARIANCE * error**2 + shift**2 * error)
    rows = counted.sum(axis=0)
    # The most unusual node counts as the second most unusual one, or one alone would decide.
    first, second = np.argsort(-square, axis=0, kind="stable")[[0, min(1, len(summaries) - 1)]]
    column = np.arange(len(features))
    for each in (square, uncertain):
        each[first, column] = each[second, column] if len(summaries) > 1 else 0.0
    spread, spread_variance = square.sum(axis=0), uncertain.sum(axis=0)
    window = Window(time, now, frozen, rows, noise, np.sqrt(base), spread, spread_variance)
    some_rows = np.maximum(rows, 1)
    p = kolmogorov_p(difference(now, grown, some_rows), np.maximum(variance, 1) / some_rows**2)
    scores, moved, limited = _combined(values, errors, counted, node_variance)
    for summary, which in zip(summaries, limited, strict=True):
        _report_unlike(
            summary.node_id, [f for f, is_so in zip(features, which, strict=True) if is_so]
        )
    all_rows = int(sent.sum(axis=0).max())
    return Merged(window, np.where(rows > 0, p, 1.0), scores, moved, len(summaries), all_rows)


def _rows(summary: DataSummary, features: Sequence[Feature], part: int) -> np.ndarray:
    """Return the rows of each feature in a part of its counts, 0 for features that it lacks."""
    rows = dict(zip(summary.features, summary.counts[:, part].sum(axis=1).tolist(), strict=True))
    columns = {f.name: n for f, n in rows.items() if f.kind is not FeatureKind.MISSING}
    # A node whose column is complete tells of no missing rows.
    whole = (columns.get(f.name, 0.0) if f.kind is FeatureKind.MISSING else 0.0 for f in features)
    return np.array([rows.get(f, n) for f, n in zip(features, whole, strict=True)])


def _aligned(summary: DataSummary, features: Sequence[Feature]) -> np.ndarray:
    """Return its counts of those features that it has rows of, shape (features, 3, bins)."""
    place = {feature: number for number, feature in enumerate(summary.features)}
    if all(feature in place for feature in features):
        return summary.counts[[place[feature] for feature in features]]
    columns = {f.name: i for f, i in place.items() if f.kind is not FeatureKind.MISSING}
    aligned = list[np.ndarray]()
    for feature in features:
        if feature in place:
            aligned.append(summary.counts[place[feature]])
        elif feature.kind is FeatureKind.MISSING and feature.name in columns:
            complete = np.zeros((PARTS, summary.counts.shape[2]))
            complete[:, 0] = summary.counts[columns[feature.name]].sum(axis=1)
            aligned.append(complete)
    return np.array(aligned).reshape(-1, PARTS, summary.counts.shape[2])


def _limited(rows: np.ndarray, shares: float | None) -> np.ndarray:
    """Return the rows that count, shape (nodes, features): no node has more than its share."""
    if shares is None or len(rows) < 2:
        return rows
    counted = rows.copy()
    for column in np.flatnonzero(rows.max(axis=0) * len(rows) > shares * rows.sum(axis=0)):
        there = rows[:, column] > 0
        # A share of all nodes, also if not all of them have the column.
        most = largest_weight(rows[there, column].tolist(), shares * there.mean())
        counted[:, column] = np.minimum(rows[:, column], most)
    return counted


def _scores(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return a node's three scores of each feature, and the mean square of the bins' scores.

    Parameters
    ----------
    counts : np.ndarray
        Shape (features, 3, bins).

    Returns
    -------
    tuple[np.ndarray, np.ndarray]
        Each of shape (features, 3). The scores have variance 1 for a row of the reference. The
        first is the normal score of van der Waerden, the others Legendre polynomials of the rank.
    """
    from scipy.special import ndtri

    reference = np.maximum(counts[:, 1], 0)  # noise may make a count negative
    total = reference.sum(axis=1, keepdims=True)
    share = reference / total
    edge = 1 / (2 * total + 2)
    rank = np.clip(np.cumsum(share, axis=1) - share / 2, edge, 1 - edge)
    v = 2 * rank - 1
    each = np.stack([ndtri(rank), 3 * v**2 - 1, 5 * v**3 - 3 * v], axis=1)
    each -= (each * share[:, None]).sum(axis=2, keepdims=True)
    square = (each**2 * share[:, None]).sum(axis=2)
    each /= np.sqrt(np.maximum(square, LEAST_VARIANCE))[:, :, None]
    change = counts[:, 0] / counts[:, 0].sum(axis=1, keepdims=True)
    change = change - counts[:, 1] / counts[:, 1].sum(axis=1, keepdims=True)
    return (each * change[:, None]).sum(axis=2), (each**2).mean(axis=2)


def _combined(
    values: np.ndarray, errors: np.ndarray, rows: np.ndarray, node_variance: np.ndarray | None
) -> tuple[CheckScores, np.ndarray, np.ndarray]:
    """Return the scores of all nodes together, how many nodes moved, and whose scores were limited.

    Parameters
    ----------
    values, errors : np.ndarray
        Shape (nodes, features, 3): scores, and their variances by the number of rows.
    rows : np.ndarray
        Shape (nodes, features): the rows that count.
    """
    from scipy.special import betainc, chdtrc, ndtri

    there = rows > 0
    nodes = there.sum(axis=0)
    several = np.maximum(nodes, 1)
    weight = (rows / np.maximum(rows.sum(axis=0), 1e-9))[:, :, None]
    mine = np.where(there[:, :, None], values, np.nan)
    middle = _median(mine)
    own = _median(np.where(there[:, :, None], errors, np.nan))
    # Medians, so that one node does not widen it; of n nodes the n-th follows from the middle.
    bessel = (several / np.maximum(nodes - 1, 1))[:, None]
    spread = _median((mine - middle) ** 2) / MEDIAN_SQUARE * bessel - own
    between = np.maximum(spread, 0)
    if node_variance is not None:
        between = np.where(np.isnan(node_variance), between, node_variance)
    whole = np.maximum(errors + between, 1e-12)
    variance = (weight**2 * whole).sum(axis=0)
    limit = MOST_MOVED * np.sqrt(variance)
    apart = weight * (values - middle)
    together = middle + np.clip(apart, -limit, limit).sum(axis=0)
    # A location that moves takes the other scores with it, by about half of its square: slow
    # weather alone causes alarms of the spread without this.
    bent = np.zeros((len(nodes), SCORES))
    bent[:, 1:-1] = together[:, :1] ** 4 / 4
    # How unlike the middle each node is, and how unlike its own reference: what moves all nodes is
    # in the scores above. The second smallest of k p-values has a beta distribution, whatever one
    # node sends.
    unlike, p = (
        np.where(there, chdtrc(SCORES - 1, (each**2 / whole).sum(axis=2)), 1.0)
        for each in (values - middle, values)
    )
    second = np.sort(unlike, axis=0)[min(1, len(unlike) - 1)]
    unusual = betainc(2, np.maximum(nodes - 1, 1), np.maximum(second, LEAST_P))
    score = np.where(nodes > 1, -ndtri(np.clip(unusual, LEAST_P, 1 - 1e-12)), 0.0)
    scores = CheckScores(
        np.concatenate([together, score[:, None]], axis=1),
        np.concatenate([np.maximum(variance, 1e-12), np.ones((len(nodes), 1))], axis=1),
        nodes,
        np.where((nodes > 1)[:, None], spread, 0),
        own,
        bent,
    )
    limited = (np.abs(apart) > limit).any(axis=2) & (nodes > 2)
    return scores, (p < MOVED_P).sum(axis=0).astype(np.float64), limited


def _report_unlike(node_id: str, features: Sequence[Feature]) -> None:
    if features:
        others = len(features) - 1
        more = f" and {others} more feature{'s' * (others > 1)}" if others else ""
        logger.info(
            "the new rows of node %s are unlike the others' in %s%s; a node alone is no drift",
            node_id, features[0], more,
        )  # fmt: skip


def _median(values: np.ndarray) -> np.ndarray:
    """Return the median over the nodes, without NaN; 0 where there is none."""
    ordered = np.sort(values, axis=0)  # NaN sorts last
    count = len(values) - np.isnan(values).sum(axis=0)
    low, high = (np.maximum(count, 1) - 1) // 2, count // 2
    both = [
        np.take_along_axis(ordered, np.minimum(i, len(values) - 1)[None], 0)[0] for i in (low, high)
    ]
    return np.where(count > 0, (both[0] + both[1]) / 2, 0.0)


def direction(feature: Feature, running: np.ndarray) -> str:
    """Describe how a feature changed; ``running`` sums now less expected, shape (bins,)."""
    if feature.kind is FeatureKind.LEVELS:
        return "in another mix"
    if feature.kind is FeatureKind.MISSING:
        return "more often" if running[0] < 0 else "less often"
    mean = running.sum() / len(running)
    if abs(mean) < max(running.max(), -running.min()) / 4:
        return "with another spread"
    return "higher" if mean < 0 else "lower"
