# SPDX-License-Identifier: Apache-2.0
"""What the checks without drift looked like, and how surprising another check is. Pure.

Batches differ without any drift: by who was there, by the weather, by slow changes. How much is not
known beforehand, so it is estimated per feature from the checks themselves (random effects).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields

import numpy as np

from fl_app.retraining.drift.arrays import Array

SCORES = 4
"""Numbers that describe a feature's shift in one check, see ``CheckScores``."""
LEARNING = 10
"""Checks after which the variance between checks is taken from the checks themselves."""
NODE_SD, COMMON_SD = 0.4, 0.2
"""Until then assumed: standard deviations of a node's batches, and of what all nodes share."""
MOST_FREEDOM = 10
"""Degrees of freedom of the t distribution, at most: its tails are those of batch effects, which
are seldom normal. With more, batch effects of Laplace's distribution cause false alarms."""
CLIP, CLIPPED_SQUARE = 1.96, 0.7567
"""A check counts as at most so many standard deviations in the variance, so that a shift does not
hide itself; and the mean square of a standard normal variable that is clipped there."""
RIDGE = np.array([5.0, 5.0, 5.0, 20.0])
"""Checks without correlation that the estimate of the correlation begins with."""
MOST_SPREAD = 3.0
"""Times the variance of a node's score that the nodes' spread in a check counts as, at most."""
MOST_CORRELATION = 0.98


@dataclass(frozen=True, eq=False)
class CheckScores:
    """The shift of each feature in one check.

    Attributes
    ----------
    values : np.ndarray
        Shape (features, 4): shift of the location, of the spread and of the tails against the
        nodes' own references, all nodes together, in standard deviations of a row's score; and the
        normal score of the node that is second most unlike the others.
    variance : np.ndarray
        Shape (features, 4): their variance if all checks were alike.
    nodes : np.ndarray
        Shape (features,): number of nodes with new rows of the feature.
    spread : np.ndarray
        Shape (features, 3): variance between nodes in this check, less that of their rows.
    own : np.ndarray
        Shape (features, 3): variance of a node's score by its rows, the median of the nodes.
    bent : np.ndarray
        Shape (features, 4): squared change of a score that the shift of the location explains.
    """

    values: np.ndarray
    variance: np.ndarray
    nodes: np.ndarray
    spread: np.ndarray
    own: np.ndarray
    bent: np.ndarray


@dataclass(frozen=True, eq=False)
class QuietChecks:
    """Sums over the checks so far, each of shape (features,) or (features, scores).

    Attributes
    ----------
    checks, between_checks : np.ndarray
        Number of checks, and of those with several nodes.
    between : np.ndarray
        Mean variance between nodes, shape (features, 3).
    mean, last : np.ndarray
        Mean score, and the last one.
    excess : np.ndarray
        Sum of the squared differences from the prediction, less their variance if all checks were
        alike.
    products, squares : np.ndarray
        Sums for the correlation of one check with the next.
    """

    checks: Array = field(default_factory=lambda: np.zeros(0))
    between_checks: Array = field(default_factory=lambda: np.zeros(0))
    between: Array = field(default_factory=lambda: np.zeros((0, SCORES - 1)))
    mean: Array = field(default_factory=lambda: np.zeros((0, SCORES)))
    last: Array = field(default_factory=lambda: np.zeros((0, SCORES)))
    excess: Array = field(default_factory=lambda: np.zeros((0, SCORES)))
    products: Array = field(default_factory=lambda: np.zeros((0, SCORES)))
    squares: Array = field(default_factory=lambda: np.zeros((0, SCORES)))

    def moved(self, place: Callable[[np.ndarray], np.ndarray]) -> QuietChecks:
        """Return these sums for other features; ``place`` rearranges the rows of an array."""
        return QuietChecks(**{each.name: place(getattr(self, each.name)) for each in fields(self)})

    @property
    def node_variance(self) -> np.ndarray | None:
        """Variance between the batches of different nodes; NaN where it is not known yet."""
        known = self.between_checks[:, None] > 0
        return np.where(known, np.maximum(self.between, 0), np.nan)

    def p_values(self, scores: CheckScores, *, hold: bool) -> np.ndarray:
        """Return the p-values of a check, shape (features, scores).

        They are two-sided but for the last one: nodes that are less unusual are no drift.

        Parameters
        ----------
        scores : CheckScores
            The check.
        hold : bool
            Whether this check and the ones before it are no quiet checks: it is compared with all
            quiet ones and not with the last of them.
        """
        from scipy.special import ndtr, stdtr

        predicted, variance, correlation = self._prediction(scores)
        if hold:
            predicted, variance = self.mean, variance / (1 - correlation**2)
        known = self._learnt
        size = np.abs(scores.values - np.where(known, predicted, 0)) / np.sqrt(variance)
        freedom = np.clip(self.checks - 2, 1, MOST_FREEDOM)[:, None]
        tail = np.where(known, stdtr(freedom, -size), ndtr(-size))
        p = 2 * tail
        less = scores.values[:, -1] <= predicted[:, -1]
        p[:, -1] = np.where(less | ~known[:, 0], 1.0, tail[:, -1])
        return np.asarray(np.minimum(p, 1.0))

    def after(self, scores: CheckScores, seen: np.ndarray) -> QuietChecks:
        """Return the sums with a quiet check, for the features that it has ``seen``."""
        seen, several = seen[:, None], (seen & (scores.nodes > 1))[:, None]
        some = np.maximum(self.checks, 1)[:, None]
        predicted, variance, _ = self._prediction(scores)
        first = self.checks[:, None] == 0
        limit = CLIP * np.sqrt(variance)
        surprise = np.clip(scores.values - predicted, -limit, limit)
        clean = np.where(first, scores.values, predicted + surprise)
        square = surprise**2 / (1 + 1 / some) / np.where(self._learnt, CLIPPED_SQUARE, 1)
        before, now = self.last - self.mean, clean - self.mean
        share = 1 / (self.between_checks[:, None] + 1)
        widest = MOST_SPREAD * (scores.own + np.maximum(self.between, 0))
        spread = np.where(self._learnt, np.minimum(scores.spread, widest), scores.spread)
        none = ~seen | first
        return QuietChecks(
            self.checks + seen[:, 0],
            self.between_checks + several[:, 0],
            self.between + np.where(several, (spread - self.between) * share, 0),
            self.mean + np.where(seen, now / (self.checks[:, None] + 1), 0),
            np.where(seen, clean, self.last),
            self.excess + np.where(none, 0, square - scores.variance),
            self.products + np.where(none, 0, now * before),
            self.squares + np.where(none, 0, before**2),
        )

    @property
    def _learnt(self) -> np.ndarray:
        return np.asarray(self.checks[:, None] >= LEARNING)

    def _prediction(self, scores: CheckScores) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the prediction of the next scores, its variance, and the correlation in use."""
        correlation = self.products / (self.squares + RIDGE * scores.variance)
        correlation = np.clip(correlation, 0, MOST_CORRELATION)
        predicted = self.mean + correlation * (self.last - self.mean)
        some = np.maximum(self.checks, 1)[:, None]
        between = np.maximum(self.excess / np.maximum(some - 2, 1), 0)
        # A reference is a batch as well, so that the variances count twice.
        nodes = np.maximum(scores.nodes, 1)[:, None]
        assumed = np.full_like(between, 2 * COMMON_SD**2) + 2 * NODE_SD**2 / nodes
        assumed[:, -1] = np.inf  # nobody knows how unusual nodes are by themselves
        variance = np.where(
            self._learnt,
            (scores.variance + between) * (1 + 1 / some),
            scores.variance + assumed,
        )
        return predicted, variance + scores.bent, correlation
