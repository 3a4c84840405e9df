# SPDX-License-Identifier: Apache-2.0
"""The data summary that a node sends: counts in a versioned record, which the server validates.

It holds no values, edges or ranges of the node's data.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Literal

import numpy as np
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

SUMMARY_RECORD = "data-summary"
"""Key of the ConfigRecord in a train reply."""
REFERENCE_KEY = "data-reference"
"""Key in a train message's config: the name of the reference for comparison."""
HOLD_KEY = "data-hold"
"""Key in a train message's config: True if the last summaries must not join the reference."""

VERSION = 1
# With noise fewer bins: at an epsilon of 1 and 64 bins, noise alone is significant in 97 of 100
# checks. Its variance is part of the test as well.
BINS, NOISY_BINS = 64, 16
MAX_BINS, MAX_FEATURES, MAX_NAME = 256, 2_000, 200
MAX_ROWS = 1e9
PARTS = 3
"""Rows of ``counts``: now, reference, baseline. The baseline takes 256 bytes more per feature; with
it the effect of a slow drift is measured from its beginning."""


class SummaryError(ValueError):
    """A summary is malformed; the text says what is wrong with it."""


class FeatureKind(StrEnum):
    """Meaning of a feature's bins."""

    VALUE = "value"
    LEVELS = "levels"
    MISSING = "missing"


@dataclass(frozen=True, order=True)
class Feature:
    """A column's values or levels, or the number of its missing rows.

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
    """Counts of a node's new rows, in bins whose edges stay on the node.

    Attributes
    ----------
    node_id : str
        Flower's id of the node.
    reference : str
        Name of the reference that the server requested.
    features : tuple[Feature, ...]
        Names and kinds of the counts.
    counts : np.ndarray
        float64, shape (features, 3, bins): the new rows, the reference so far, and the baseline
        that the reference began with. Shape (features, 1, bins), the new rows alone, from a node
        without a disk: all such nodes have the same bins, and the server stores their reference.
    noise : tuple[float, ...]
        Variance of the Gaussian noise in each count of each part.
    """

    node_id: str
    reference: str
    features: tuple[Feature, ...]
    counts: np.ndarray
    noise: tuple[float, ...]

    def to_record(self) -> dict[str, int | str | bytes | list[str] | list[float]]:
        """Return the values of a ConfigRecord."""
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


def _printable(name: str) -> str:
    if not name.isprintable():
        raise ValueError("not plain text")
    return name


_Name = Annotated[str, Field(min_length=1, max_length=MAX_NAME), AfterValidator(_printable)]
_Variance = Annotated[float, Field(ge=0, le=MAX_ROWS, allow_inf_nan=False)]


class _Record(BaseModel):
    """The ConfigRecord of a summary; it comes from a node, so nothing is converted."""

    model_config = ConfigDict(strict=True)

    version: Literal[1]
    node_id: str = Field(alias="node-id")
    reference: str = Field(max_length=MAX_NAME)
    names: list[_Name] = Field(min_length=1, max_length=MAX_FEATURES)
    kinds: list[Annotated[FeatureKind, Field(strict=False)]]  # a record holds it as text
    bins: int = Field(ge=2, le=MAX_BINS)
    noise: list[_Variance] = Field(min_length=1, max_length=PARTS)
    counts: bytes


_LONGEST = {
    "names": MAX_FEATURES,
    "kinds": MAX_FEATURES,
    "noise": PARTS,
    "counts": 4 * MAX_FEATURES * PARTS * MAX_BINS,
}
"""Largest lengths of a record's values; ``MAX_NAME`` of all others."""


def oversized(record: Mapping[str, object]) -> str:
    """Return which value of a record is larger than any summary's; empty if none is.

    It looks at lengths alone, so that a summary can be checked by it on arrival.
    """
    if len(record) > len(_Record.model_fields):
        return f"{len(record)} values, expected {len(_Record.model_fields)}"
    for name, value in record.items():
        most = _LONGEST.get(name, MAX_NAME)
        if isinstance(value, list | str | bytes) and len(value) > most:
            return f"{name:.40} of length {len(value)}, expected at most {most}"
        if isinstance(value, list) and any(
            isinstance(each, str | bytes) and len(each) > MAX_NAME for each in value
        ):
            return f"{name:.40} with a text of more than {MAX_NAME} characters"
    return ""


def read_summary(record: Mapping[str, object], node_id: str) -> DataSummary:
    """Read the summary that the node ``node_id`` sent.

    Raises
    ------
    SummaryError
        The summary is of another version or node, or a value cannot be a count of rows.
    """
    fault = oversized(record)
    _require(not fault, fault)
    try:
        sent = _Record.model_validate(dict(record))
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        raise SummaryError(f"{' '.join(map(str, first['loc']))}: {first['msg']}") from None
    _require(sent.node_id == node_id, f"its node id is {sent.node_id:.40}")
    _require(len(sent.noise) != 2, f"noise of 2 parts, expected 1 or {PARTS}")
    numbers = len(sent.names), len(sent.kinds)
    _require(numbers[0] == numbers[1], f"{numbers[0]} names and {numbers[1]} kinds")
    features = tuple(map(Feature, sent.names, sent.kinds))
    _require(len(set(features)) == len(features), "a feature that is listed twice")
    shape = (len(features), len(sent.noise), sent.bins)
    counts = _counts(sent.counts, shape, sent.noise)
    if not any(sent.noise):
        _require_whole(features, counts)
    return DataSummary(node_id, sent.reference, features, counts, tuple(sent.noise))


def _counts(data: bytes, shape: tuple[int, int, int], noise: Sequence[float]) -> np.ndarray:
    size = 4 * math.prod(shape)
    _require(len(data) == size, f"counts of {len(data)} bytes, expected {size} for shape {shape}")
    counts = np.frombuffer(data, "<f4").astype(np.float64).reshape(shape)
    _require(np.isfinite(counts).all(), "a count that is not finite")
    # Noise may push a count below zero, but never by ten of its standard deviations.
    lowest = -10 * np.sqrt(np.asarray(noise))[None, :, None]
    _require((counts >= lowest).all(), "a negative count")
    rows = counts.sum(axis=2)
    _require((rows > 0).all(), "a feature without rows")
    _require((rows <= MAX_ROWS).all(), f"a feature with more than {MAX_ROWS:g} rows")
    return counts


def _require_whole(features: Sequence[Feature], counts: np.ndarray) -> None:
    """Require counts without noise to be whole, never to shrink, and to agree within a column."""
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


def _require(valid: object, problem: str) -> None:
    if not valid:
        raise SummaryError(problem)
