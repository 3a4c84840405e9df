# SPDX-License-Identifier: Apache-2.0
"""What a node tells of its data: counts in a versioned record, which the server reads with care.

Neither how nodes count nor what the server concludes is decided here. No values, edges or ranges
are in it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar

import numpy as np

SUMMARY_RECORD = "data-summary"
"""Key of the ConfigRecord in a train reply."""
REFERENCE_KEY = "data-reference"
"""Key in a train message's config: the name of the reference that nodes compare with."""
HOLD_KEY = "data-hold"
"""Key in a train message's config: True while what nodes sent last must not join the reference."""

VERSION = 1
BINS, NOISY_BINS = 64, 16
MAX_BINS, MAX_FEATURES, MAX_NAME = 256, 2_000, 200
MAX_ROWS = 1e9
PARTS = 3
"""Rows of ``counts``: now, reference, baseline."""

T = TypeVar("T")


class SummaryError(ValueError):
    """A summary is malformed; the text says what is wrong with it."""


class FeatureKind(StrEnum):
    """What the bins of a feature are."""

    VALUE = "value"
    LEVELS = "levels"
    MISSING = "missing"


@dataclass(frozen=True, order=True)
class Feature:
    """A column's values or levels, or how many of its rows are missing.

    Attributes
    ----------
    name : str
        The column.
    kind : FeatureKind
        Quantile bins from low to high, levels from frequent to rare, or present and missing.
    """

    name: str
    kind: FeatureKind = FeatureKind.VALUE

    def __str__(self) -> str:
        return f"{self.name} (missing)" if self.kind is FeatureKind.MISSING else self.name


@dataclass(frozen=True, eq=False)
class DataSummary:
    """Counts of a node's new rows, in bins that only the node knows.

    Attributes
    ----------
    node_id : str
        Flower's id of the node.
    reference : str
        Name of the reference that the server asked for.
    features : tuple[Feature, ...]
        What is counted.
    counts : np.ndarray
        float64, shape (features, 3, bins): the new rows, the reference that has grown, and the
        baseline that it grew from. Shape (features, 1, bins), the new rows alone, from a node
        without memory: its bins are the same as every node's, and the server keeps its reference.
    noise : tuple[float, ...]
        Variance of the Gaussian noise in each count of each part.
    """

    node_id: str
    reference: str
    features: tuple[Feature, ...]
    counts: np.ndarray
    noise: tuple[float, ...]

    def to_record(self) -> dict[str, int | str | bytes | list[str] | list[float]]:
        """The summary as the values of a ConfigRecord."""
        return {
            "version": VERSION,
            "node-id": self.node_id,
            "reference": self.reference,
            "names": [feature.name for feature in self.features],
            "kinds": [str(feature.kind) for feature in self.features],
            "bins": self.counts.shape[2],
            "noise": list(self.noise),
            "counts": self.counts.astype("<f4").tobytes(),
        }


def read_summary(record: Mapping[str, object], node_id: str) -> DataSummary:
    """Read what the node ``node_id`` sent.

    Raises
    ------
    SummaryError
        If it is of another version or node, or anything in it can't be a count of rows.
    """
    version, name = _get(record, "version", int), _get(record, "node-id", str)
    _require(version == VERSION, f"version {version}, expected {VERSION}")
    _require(name == node_id, f"it names itself {name:.40}")
    reference = _get(record, "reference", str)
    _require(len(reference) <= MAX_NAME, "a reference with an endless name")
    bins = _get(record, "bins", int)
    _require(2 <= bins <= MAX_BINS, f"{bins} bins, expected 2 to {MAX_BINS}")
    features = _features(_get(record, "names", list), _get(record, "kinds", list))
    noise = _get(record, "noise", list)
    _require(len(noise) in (1, PARTS), f"noise of {len(noise)} parts, expected 1 or {PARTS}")
    _require(
        all(isinstance(v, float) and math.isfinite(v) and 0 <= v <= MAX_ROWS for v in noise),
        "noise that is no variance",
    )
    counts = _counts(_get(record, "counts", bytes), (len(features), len(noise), bins), noise)
    if not any(noise):
        _require_whole(features, counts)
    return DataSummary(node_id, reference, features, counts, tuple(noise))


def _features(names: list[object], kinds: list[object]) -> tuple[Feature, ...]:
    _require(0 < len(names) <= MAX_FEATURES, f"{len(names)} features, at most {MAX_FEATURES}")
    _require(len(names) == len(kinds), f"{len(names)} names and {len(kinds)} kinds")
    known = set(map(str, FeatureKind))
    features = []
    for name, kind in zip(names, kinds, strict=True):
        good = isinstance(name, str) and 0 < len(name) <= MAX_NAME and name.isprintable()
        _require(good, f"a feature whose name is no plain text of 1 to {MAX_NAME} characters")
        _require(kind in known, f"a feature of kind {kind!r:.40}")
        features.append(Feature(str(name), FeatureKind(str(kind))))
    _require(len(set(features)) == len(features), "a feature that is there twice")
    return tuple(features)


def _counts(data: bytes, shape: tuple[int, int, int], noise: Sequence[float]) -> np.ndarray:
    size = 4 * math.prod(shape)
    _require(len(data) == size, f"counts of {len(data)} bytes, expected {size} for shape {shape}")
    counts = np.frombuffer(data, "<f4").astype(np.float64).reshape(shape)
    _require(np.isfinite(counts).all(), "a count that is not finite")
    # Noise may push a count below nought, but never by ten of its standard deviations.
    lowest = -10 * np.sqrt(np.asarray(noise))[None, :, None]
    _require((counts >= lowest).all(), "a negative count")
    rows = counts.sum(axis=2)
    _require((rows > 0).all(), "a feature without rows")
    _require((rows <= MAX_ROWS).all(), f"a feature with more than {MAX_ROWS:g} rows")
    return counts


def _require_whole(features: Sequence[Feature], counts: np.ndarray) -> None:
    """Counts without noise are whole, grow only, and are told alike by a column's two features."""
    _require((counts == np.rint(counts)).all(), "a count that is no whole number")
    if counts.shape[1] == PARTS:
        grown = counts[:, 1] - counts[:, 2]
        _require((grown >= 0).all(), "a reference that is smaller than its baseline")
    columns = {f.name: i for i, f in enumerate(features) if f.kind is not FeatureKind.MISSING}
    for number, feature in enumerate(features):
        if feature.kind is FeatureKind.MISSING:
            _require(feature.name in columns, f"missing rows of {feature.name:.40}, but no others")
            there = counts[columns[feature.name]].sum(axis=1)
            agree = np.isclose(there, counts[number, :, 0], rtol=1e-6)  # float32 rounds millions
            _require(agree.all(), f"two numbers of rows of {feature.name:.40}")


def _get(record: Mapping[str, object], key: str, kind: type[T]) -> T:
    value = record.get(key)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise SummaryError(f"{key} is {value!r:.40}, expected {kind.__name__}")
    return value


def _require(right: object, problem: str) -> None:
    if not right:
        raise SummaryError(problem)
