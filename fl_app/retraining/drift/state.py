# SPDX-License-Identifier: Apache-2.0
"""What the drift test remembers between checks: frozen records of plain arrays, kept as JSON."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np

from fl_app.wire.data_summary import Feature, FeatureKind

RECENT = 12
"""Checks that are remembered one by one."""
SLOTS = 24
"""Parts of a season that are remembered as sums."""
HISTORY = 200
"""Checks whose evidence is remembered for the picture."""


@dataclass(frozen=True, eq=False)
class Window:
    """Counts of all nodes in one check, or their sum over several.

    Attributes
    ----------
    time : float
        Seconds since 1970 of its last check; of its begin for a part of a season.
    now, expected : np.ndarray
        Shape (features, bins): new rows, and where the frozen baselines expected them.
    rows, noise, base_error : np.ndarray
        Shape (features,): how many rows, the variance of noise in them, and the standard error of
        ``expected``, in rows.
    spread, spread_variance : np.ndarray
        Shape (features,): squared shifts of the nodes by their rows, less what chance makes of
        them, and its variance.
    """

    time: float
    now: np.ndarray
    expected: np.ndarray
    rows: np.ndarray
    noise: np.ndarray
    base_error: np.ndarray
    spread: np.ndarray
    spread_variance: np.ndarray

    def __add__(self, other: Window) -> Window:
        """Both together; the baselines' errors are the same ones, so they add up as they are."""
        mine, theirs = self.arrays, other.arrays
        sums = {name: values + theirs[name] for name, values in mine.items()}
        return Window(max(self.time, other.time), **sums)

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """All its arrays by name."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "time"}


@dataclass(frozen=True, eq=False)
class DriftState:
    """All that the drift test knows.

    Attributes
    ----------
    reference : str
        Name of the reference that the nodes compare with.
    features : tuple[Feature, ...]
        What the arrays are about.
    evidence : np.ndarray
        Shape (features,): Shiryaev-Roberts sums of e-values.
    recent : tuple[Window, ...]
        The last checks, oldest first.
    season : tuple[Window, ...]
        The parts of the last season, oldest first.
    first : float | None
        When the first check was, in seconds since 1970.
    checks : int
        How many there were.
    hold : bool
        Whether the evidence suffices, so that nodes must not let their last rows in.
    asked : float | None
        When the alarm that lasts last asked for retraining.
    history : tuple[tuple[float, dict[str, float]], ...]
        Time and evidence of the last checks, by feature.
    nodes : Mapping[str, Mapping[Feature, np.ndarray]]
        References of nodes without memory, shape (2, bins): grown, baseline.
    """

    reference: str = ""
    features: tuple[Feature, ...] = ()
    evidence: np.ndarray = field(default_factory=lambda: np.zeros(0))
    recent: tuple[Window, ...] = ()
    season: tuple[Window, ...] = ()
    first: float | None = None
    checks: int = 0
    hold: bool = False
    asked: float | None = None
    history: tuple[tuple[float, dict[str, float]], ...] = ()
    nodes: Mapping[str, Mapping[Feature, np.ndarray]] = field(default_factory=dict)

    def about(self, features: Sequence[Feature], bins: int) -> DriftState:
        """This state with arrays for these features too, and for no others but those in windows."""
        windows = (*self.recent, *self.season)
        if windows and windows[0].now.shape[1] != bins:
            return DriftState(self.reference, nodes=self.nodes).about(features, bins)
        rows = sum((window.rows for window in windows), np.zeros(len(self.features)))
        kept = [f for f, count in zip(self.features, rows, strict=True) if count > 0]
        after = tuple(dict.fromkeys((*kept, *features)))
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

    def to_json(self) -> dict[str, Any]:
        """The whole state, as JSON can hold it."""
        return {
            "reference": self.reference,
            "features": [[f.name, str(f.kind)] for f in self.features],
            "evidence": self.evidence.tolist(),
            "recent": [_window_to_json(window) for window in self.recent],
            "season": [_window_to_json(window) for window in self.season],
            "first": self.first,
            "checks": self.checks,
            "hold": self.hold,
            "asked": self.asked,
            "history": [[time, evidence] for time, evidence in self.history],
            "nodes": {
                node: [[f.name, str(f.kind), _pack(counts)] for f, counts in mine.items()]
                for node, mine in self.nodes.items()
            },
        }

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> DriftState:
        """The state that ``to_json`` gave."""
        nodes = {
            node: {Feature(name, FeatureKind(kind)): _unpack(data) for name, kind, data in mine}
            for node, mine in value["nodes"].items()
        }
        return DriftState(
            reference=value["reference"],
            features=tuple(Feature(name, FeatureKind(kind)) for name, kind in value["features"]),
            evidence=np.array(value["evidence"], np.float64),
            recent=tuple(map(_window_from_json, value["recent"])),
            season=tuple(map(_window_from_json, value["season"])),
            first=value["first"],
            checks=value["checks"],
            hold=value["hold"],
            asked=value["asked"],
            history=tuple((time, evidence) for time, evidence in value["history"]),
            nodes=nodes,
        )


def _window_to_json(window: Window) -> dict[str, Any]:
    return {"time": window.time, **{k: _pack(values) for k, values in window.arrays.items()}}


def _window_from_json(value: Mapping[str, Any]) -> Window:
    arrays = {name: _unpack(data) for name, data in value.items() if name != "time"}
    return Window(value["time"], **arrays)


def _pack(values: np.ndarray) -> list[Any]:
    """Shape and float32 values in base64: a tenth of the digits, and enough of them."""
    return [list(values.shape), base64.b64encode(values.astype("<f4").tobytes()).decode()]


def _unpack(data: Sequence[Any]) -> np.ndarray:
    shape, text = data
    return np.frombuffer(base64.b64decode(text), "<f4").astype(np.float64).reshape(shape)
