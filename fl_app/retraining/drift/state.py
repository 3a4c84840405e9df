# SPDX-License-Identifier: Apache-2.0
"""The records of the drift test: what one check shows, and what is stored between checks."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace

import numpy as np

from fl_app.retraining.drift.arrays import Array
from fl_app.retraining.drift.quiet import SCORES, QuietChecks
from fl_app.wire.data_summary import PARTS, DataSummary, Feature, FeatureKind

RECENT = 12
"""Checks that are stored one by one."""
SLOTS = 24
"""Parts of a season that are stored as sums."""
HISTORY = 200
"""Checks whose evidence is stored for the plot."""
MAX_NODES = 1_000
"""Nodes whose references are stored; the oldest references are dropped first."""
CRITICAL, NORMAL = 1.6276, 2.3263
"""The 99 % quantiles of Kolmogorov's distribution and of the normal one."""


@dataclass(frozen=True)
class FeatureDrift:
    """The result of one check for one feature.

    Attributes
    ----------
    feature : Feature
        The feature.
    p : float
        Kolmogorov-Smirnov p-value of this check alone, as if its rows were independent.
    evidence : float
        Shiryaev-Roberts sum of the e-values so far, the mean of those of the scores.
    effect : float
        Greatest difference of the distribution functions, over the rows that decided.
    direction : str
        How the feature changed, in a word or two.
    nodes_moved : int
        Nodes whose own data differ in this check (p < 0.01).
    """

    feature: Feature
    p: float
    evidence: float
    effect: float
    direction: str
    nodes_moved: int


@dataclass(frozen=True)
class DriftCheck:
    """The result of one check of the data.

    Attributes
    ----------
    drifted : tuple[FeatureDrift, ...]
        The features that the alarm is about, the greatest effect first; empty without an alarm.
    features : tuple[FeatureDrift, ...]
        All features.
    nodes, rows : int
        Nodes with new rows, and number of these rows.
    height : float
        Mean evidence from which on there is an alarm.
    """

    drifted: tuple[FeatureDrift, ...]
    features: tuple[FeatureDrift, ...]
    nodes: int
    rows: int
    height: float

    @property
    def is_alarm(self) -> bool:
        """Whether to retrain."""
        return bool(self.drifted)

    @property
    def reason(self) -> str:
        """One sentence for people: which features changed, how, and on how many nodes."""
        names = ", ".join(
            f"{each.feature} {each.direction} (effect {each.effect:.2f})"
            for each in self.drifted[:3]
        )
        more = f" and {len(self.drifted) - 3} more" if len(self.drifted) > 3 else ""
        moved = max((each.nodes_moved for each in self.drifted), default=0)
        return f"the data moved: {names}{more}; {moved} of {self.nodes} nodes show it by themselves"


def difference(now: np.ndarray, expected: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return the greatest difference of the distribution functions, shape (features,)."""
    return np.asarray(np.abs(np.cumsum(now - expected, axis=-1)).max(axis=-1) / rows)


@dataclass(frozen=True, eq=False)
class Window:
    """Counts of all nodes in one check, or their sum over several checks.

    Attributes
    ----------
    time : float
        Seconds since 1970 of the last check; of the begin for a part of a season.
    now, expected : np.ndarray
        Shape (features, bins): new rows, and their expectation by the frozen baselines.
    rows, noise, base_error : np.ndarray
        Shape (features,): number of rows that count, the variance of their counts beyond that
        number (noise), and the standard error of ``expected``, in rows.
    spread, spread_variance : np.ndarray
        Shape (features,): sum over the nodes of rows times squared shift, less its expectation
        without drift, and its variance; the most unusual node counts as the second one.
    """

    time: float
    now: Array
    expected: Array
    rows: Array
    noise: Array
    base_error: Array
    spread: Array
    spread_variance: Array

    def __add__(self, other: Window) -> Window:
        """Return the sum of both. The baselines' errors are the same ones, so they add up."""
        sums = map(operator.add, self.arrays, other.arrays)
        return Window(max(self.time, other.time), *sums)

    @property
    def arrays(self) -> tuple[np.ndarray, ...]:
        """All arrays, in their order."""
        return tuple(getattr(self, each.name) for each in fields(self)[1:])

    @property
    def effect(self) -> np.ndarray:
        """The size of the shift, shape (features,): all nodes together, or each by itself.

        Shifts of some nodes, or in opposite directions, hardly show in the sum. They do in the root
        mean square of the nodes' own shifts, less its expectation without drift.
        """
        rows = np.maximum(self.rows, 1)
        spread = np.sqrt(np.maximum(self.spread / rows, 0))
        return np.asarray(np.maximum(difference(self.now, self.expected, rows), spread))

    def least_effect(self, *, nodes: bool = True) -> np.ndarray:
        """Return the lower 99 % limit of ``effect``, or of the nodes together if not ``nodes``.

        The first by the inequality of Dvoretzky, Kiefer, Wolfowitz and Massart, the second by the
        normal approximation.
        """
        rows = np.maximum(self.rows, 1)
        error = np.sqrt(self.rows + self.noise + self.base_error**2) / rows
        limit = difference(self.now, self.expected, rows) - CRITICAL * error
        square = (self.spread - NORMAL * np.sqrt(self.spread_variance)) / rows
        own = np.sqrt(np.maximum(square, 0)) if nodes else limit
        return np.asarray(np.maximum(limit, own))


@dataclass(frozen=True, eq=False)
class NodeReference:
    """The reference of a node without a disk, which the server stores.

    Attributes
    ----------
    features : tuple[Feature, ...]
        The features of the node's first summary.
    counts : np.ndarray
        Shape (features, 2, bins): the reference that grows, and the frozen baseline.
    """

    features: tuple[Feature, ...]
    counts: Array

    def fits(self, summary: DataSummary) -> bool:
        """Return whether it has the features and bins of a summary."""
        known = set(summary.features) <= set(self.features)
        return known and self.counts.shape[2] == summary.counts.shape[2]

    def rows_of(self, summary: DataSummary) -> list[int]:
        """Return the place of each of its features in ``counts``."""
        return [self.features.index(feature) for feature in summary.features]


@dataclass(frozen=True, eq=False)
class DriftState:
    """The state of the drift test between rounds.

    Attributes
    ----------
    reference : str
        Name of the reference that the nodes compare with.
    features : tuple[Feature, ...]
        What the rows of the arrays are about.
    evidence : np.ndarray
        Shape (features, scores): Shiryaev-Roberts sums of e-values.
    quiet : QuietChecks
        How checks without drift differ.
    recent : tuple[Window, ...]
        The last checks, oldest first.
    season : tuple[Window, ...]
        The parts of the last season, oldest first.
    first : float | None
        Time of the first check, in seconds since 1970.
    checks : int
        Number of checks.
    hold : bool
        Whether the evidence suffices, so that nodes must not add their last rows to the reference.
    requested : float | None
        When the current alarm last requested retraining; None without an alarm.
    history : tuple[tuple[float, dict[str, float]], ...]
        Time and evidence of the last checks, by feature.
    nodes : Mapping[str, NodeReference]
        References of nodes without a disk, by node id.
    last : DriftCheck | None
        The result of the last check.
    """

    reference: str = ""
    features: tuple[Feature, ...] = ()
    evidence: Array = field(default_factory=lambda: np.zeros((0, SCORES)))
    quiet: QuietChecks = field(default_factory=QuietChecks)
    recent: tuple[Window, ...] = ()
    season: tuple[Window, ...] = ()
    first: float | None = None
    checks: int = 0
    hold: bool = False
    requested: float | None = None
    history: tuple[tuple[float, dict[str, float]], ...] = ()
    nodes: Mapping[str, NodeReference] = field(default_factory=dict)
    last: DriftCheck | None = None

    def with_features(self, features: Sequence[Feature], bins: int) -> DriftState:
        """Return this state with rows for ``features`` too, and without those in no window."""
        windows = (*self.recent, *self.season)
        if windows and windows[0].now.shape[1] != bins:
            return DriftState(self.reference, nodes=self.nodes).with_features(features, bins)
        rows = sum((window.rows for window in windows), np.zeros(len(self.features)))
        in_use = [f for f, count in zip(self.features, rows, strict=True) if count > 0]
        after = tuple(dict.fromkeys((*in_use, *features)))
        if after == self.features:
            return self
        place = {feature: number for number, feature in enumerate(self.features)}
        source = [place.get(feature, len(place)) for feature in after]

        def moved(values: np.ndarray) -> np.ndarray:
            return np.concatenate([values, np.zeros((1, *values.shape[1:]))])[source]

        recent, season = (
            tuple(Window(each.time, *map(moved, each.arrays)) for each in some)
            for some in (self.recent, self.season)
        )
        return replace(
            self,
            features=after,
            evidence=moved(self.evidence),
            quiet=self.quiet.moved(moved),
            recent=recent,
            season=season,
        )

    def with_references(
        self, summaries: Sequence[DataSummary]
    ) -> tuple[DriftState, list[DataSummary]]:
        """Add the stored references to summaries of bare counts; a node's first one becomes one.

        Returns
        -------
        tuple[DriftState, list[DataSummary]]
            The next state, and the summaries that have a reference to be compared with.
        """
        references, complete = dict(self.nodes), list[DataSummary]()
        for summary in summaries:
            known = references.get(summary.node_id)
            if summary.counts.shape[1] == PARTS:
                complete.append(summary)
            elif known is not None and known.fits(summary):
                past = known.counts[known.rows_of(summary)]
                complete.append(_complete(summary, np.concatenate([summary.counts, past], axis=1)))
            else:
                references.pop(summary.node_id, None)  # so that it becomes the newest one
                twice = np.repeat(summary.counts, 2, axis=1)
                references[summary.node_id] = NodeReference(summary.features, twice)
        newest = dict(list(references.items())[-MAX_NODES:])
        return replace(self, nodes=newest), complete

    def with_grown_references(self, summaries: Sequence[DataSummary]) -> DriftState:
        """Add bare counts to the stored references, unless the evidence says to hold them."""
        references = dict(self.nodes)
        for summary in summaries:
            known = references.get(summary.node_id)
            if known is not None and summary.counts.shape[1] != PARTS and not self.hold:
                counts = known.counts.copy()
                counts[known.rows_of(summary), 0] += summary.counts[:, 0]
                references[summary.node_id] = replace(known, counts=counts)
        return replace(self, nodes=references)


def _complete(summary: DataSummary, counts: np.ndarray) -> DataSummary:
    """Return the summary with these counts, and without the missing rows of complete columns."""
    always = np.array([feature.kind is not FeatureKind.MISSING for feature in summary.features])
    kept = always | counts[:, :, 1].any(axis=1)
    features = tuple(itertools.compress(summary.features, kept))
    return replace(summary, features=features, counts=counts[kept], noise=summary.noise * PARTS)
