# SPDX-License-Identifier: Apache-2.0
"""The records of the drift test: what one check shows, and what is stored between checks."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Annotated, Any

import numpy as np
from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

from fl_app.wire.data_summary import HOLD_KEY, REFERENCE_KEY, Feature

RECENT = 12
"""Checks that are stored one by one."""
SLOTS = 24
"""Parts of a season that are stored as sums."""
HISTORY = 200
"""Checks whose evidence is stored for the plot."""


def _pack(values: np.ndarray) -> tuple[tuple[int, ...], str]:
    return values.shape, base64.b64encode(values.astype("<f4").tobytes()).decode()


def _unpack(packed: tuple[tuple[int, ...], str]) -> np.ndarray:
    shape, text = packed
    values = np.frombuffer(base64.b64decode(text, validate=True), "<f4")
    return values.astype(np.float64).reshape(shape)


@dataclass(frozen=True)
class _AsJson:
    """How pydantic writes and reads an array of float64, through another type."""

    kind: Any
    read: Callable[[Any], np.ndarray]
    write: Callable[[np.ndarray], Any]

    def __get_pydantic_core_schema__(self, _: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(
            self.read,
            handler.generate_schema(self.kind),
            serialization=core_schema.plain_serializer_function_ser_schema(self.write),
        )


# float32 in base64 takes a tenth of the characters, and is precise enough for counts of rows.
Counts = Annotated[np.ndarray, _AsJson(tuple[tuple[int, ...], str], _unpack, _pack)]
Exact = Annotated[np.ndarray, _AsJson(list[float], np.array, np.ndarray.tolist)]


@dataclass(frozen=True)
class FeatureDrift:
    """The result of one check for one feature.

    Attributes
    ----------
    feature : Feature
        The feature.
    p : float
        p-value of this check alone.
    evidence : float
        Shiryaev-Roberts sum of the e-values so far.
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
        Shape (features,): number of rows, the variance of noise in them, and the standard error of
        ``expected``, in rows.
    spread, spread_variance : np.ndarray
        Shape (features,): sum over the nodes of rows times squared shift, less its expectation
        without drift, and its variance.
    """

    time: float
    now: Counts
    expected: Counts
    rows: Counts
    noise: Counts
    base_error: Counts
    spread: Counts
    spread_variance: Counts

    def __add__(self, other: Window) -> Window:
        """Return the sum of both. The baselines' errors are the same ones, so they add up."""
        mine, theirs = self.arrays, other.arrays
        sums = {name: values + theirs[name] for name, values in mine.items()}
        return Window(max(self.time, other.time), **sums)

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """All arrays by name."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "time"}


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
    counts: Counts

    def rows_of(self, features: Sequence[Feature]) -> list[int]:
        """Return the place of each of these features in ``counts``."""
        return [self.features.index(feature) for feature in features]


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
        Shape (features,): Shiryaev-Roberts sums of e-values.
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
    evidence: Exact = field(default_factory=lambda: np.zeros(0))
    recent: tuple[Window, ...] = ()
    season: tuple[Window, ...] = ()
    first: float | None = None
    checks: int = 0
    hold: bool = False
    requested: float | None = None
    history: tuple[tuple[float, dict[str, float]], ...] = ()
    nodes: Mapping[str, NodeReference] = field(default_factory=dict)
    last: DriftCheck | None = None

    @property
    def orders(self) -> dict[str, str | bool]:
        """The config of the next train message: which reference to use, and whether to hold it."""
        return {REFERENCE_KEY: self.reference, HOLD_KEY: self.hold}

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

        def window(old: Window) -> Window:
            return Window(old.time, **{name: moved(v) for name, v in old.arrays.items()})

        return replace(
            self,
            features=after,
            evidence=moved(self.evidence),
            recent=tuple(map(window, self.recent)),
            season=tuple(map(window, self.season)),
        )
