# SPDX-License-Identifier: Apache-2.0
"""A node's reference: the bins of its columns and their counts, in one file on its disk.

The edges of the bins are private values, so the file is never sent.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import isnan
from pathlib import Path
from typing import Literal
from zipfile import ZipFile

import numpy as np
from pydantic import TypeAdapter

from fl_app.wire.data_summary import BINS, NOISY_BINS, DataSummary, Feature, FeatureKind
from fl_registry.files.atomic import replacing
from fl_registry.redaction import printable

logger = logging.getLogger("flwr.fl_app")

Columns = Mapping[str, np.ndarray]
"""Rows by column: each an array of shape (rows,), of numbers or of other values (levels)."""


@dataclass(frozen=True)
class Column:
    """The bins of one column.

    Attributes
    ----------
    name : str
        Name of the column.
    edges : tuple[float, ...] | None
        Upper edges of all bins but the last; None for levels.
    levels : tuple[str, ...]
        Levels with a bin each; all others share the next bin.
    """

    name: str
    edges: tuple[float, ...] | None = None
    levels: tuple[str, ...] = ()

    @property
    def features(self) -> tuple[Feature, Feature]:
        """The two counts of the column: its rows in bins, and its missing rows."""
        kind = FeatureKind.LEVELS if self.edges is None else FeatureKind.VALUE
        return Feature(self.name, kind), Feature(self.name, FeatureKind.MISSING)

    def count(self, rows: np.ndarray, bins: int) -> np.ndarray:
        """Return counts of shape (2, bins): rows in bins; present rows and missing rows."""
        counts = np.zeros((2, bins))
        if self.edges is None:
            present = _levels(rows)
            place = {level: number for number, level in enumerate(self.levels)}
            levels, number = np.unique(present, return_counts=True)
            np.add.at(counts[0], [place.get(v, len(self.levels)) for v in levels], number)
        else:
            # Sorting once and searching each edge is many times faster than the reverse.
            present = _sorted_numbers(self.name, rows)
            cuts = np.searchsorted(present, self.edges, side="right")
            counts[0, : len(cuts) + 1] = np.diff(cuts, prepend=0, append=len(present))
        counts[1, :2] = len(present), len(rows) - len(present)
        return counts


def learn_column(name: str, rows: np.ndarray, bins: int) -> Column:
    """Return bins of equal counts for numbers, or the most frequent levels for other values.

    An edge belongs to the bin below it. Edges repeat where values do, so that a bin's number is the
    same quantile on every node. No edge is at the greatest value, as its upper bin would be empty.
    """
    if not _is_numeric(rows):
        levels, number = np.unique(_levels(rows), return_counts=True)
        frequent = levels[np.argsort(-number, kind="stable")][: bins - 1]
        return Column(name, levels=tuple(map(str, frequent)))
    values = _sorted_numbers(name, rows)
    if not len(values):
        return Column(name, (0.0,) * (bins - 1))
    edges = values[np.arange(1, bins) * len(values) // bins]
    greatest = values[-1]
    below = values[np.searchsorted(values, greatest) - 1] if values[0] < greatest else greatest
    edges = np.where(edges == greatest, below, edges)
    if values[0] == greatest:  # a constant: detect values on either side of it
        edges[: bins // 2] = np.nextafter(greatest, -np.inf)
    return Column(name, tuple(map(float, edges)))


@dataclass(frozen=True, eq=False)
class Reference:
    """The rows that a node compares its new rows with, as counts.

    Attributes
    ----------
    name : str
        The server's name for it; if the server sends another name, a new reference is made.
    columns : tuple[Column, ...]
        The bins.
    baseline, grown : np.ndarray
        float64, shape (2 * columns, bins): counts of the first rows, and of all that were accepted.
    sent : np.ndarray
        Counts of the last summary, which join ``grown`` unless the server sets ``data-hold``.
    waiting : np.ndarray
        Counts of new rows that are too few for a summary.
    seen, accepted : np.ndarray
        uint64, sorted: digests of the rows of the last message, and of those when rows last joined
        ``grown``.
    noise : tuple[float, float, float]
        Variance of the noise in each count of ``sent``, ``grown`` and ``baseline``.
    """

    name: str
    columns: tuple[Column, ...]
    baseline: np.ndarray
    grown: np.ndarray
    sent: np.ndarray
    waiting: np.ndarray
    seen: np.ndarray
    accepted: np.ndarray
    noise: tuple[float, float, float] = (0.0, 0.0, 0.0)

    @property
    def rows_waiting(self) -> int:
        """Number of rows in the next summary."""
        return int(self.waiting[1, :2].sum())

    def settled(self, *, hold: bool) -> Reference:
        """Let the last summary join the reference, or drop it if the server requests ``hold``."""
        now, grown, baseline = self.noise
        empty = np.zeros_like(self.sent)
        if hold:
            return replace(self, sent=empty)
        grown += now if self.sent.any() else 0.0
        return replace(
            self,
            grown=self.grown + self.sent,
            sent=empty,
            accepted=self.seen,
            noise=(now, grown, baseline),
        )

    def fits(self, columns: Columns) -> bool:
        """Return whether names and types of the columns are those of this reference."""
        mine = {column.name: column.edges is not None for column in self.columns}
        return mine == {name: _is_numeric(rows) for name, rows in columns.items()}

    def with_rows(self, columns: Columns, digests: np.ndarray) -> Reference:
        """Count new rows; ``digests`` are those of all current rows."""
        counts = count_rows(self.columns, columns, self.baseline.shape[1])
        return replace(self, waiting=self.waiting + counts, seen=np.sort(digests))

    def summarised(self, node_id: str, noise: np.random.Generator) -> tuple[Reference, DataSummary]:
        """Return the reference after sending a summary, and that summary."""
        # The noisy counts that are sent are those that join the reference later, so that no row is
        # released twice.
        now = self.waiting + np.sqrt(self.noise[0]) * noise.standard_normal(self.waiting.shape)
        after = replace(self, sent=now, waiting=np.zeros_like(now))
        counts = np.stack([now, self.grown, self.baseline], axis=1)
        features = tuple(f for column in self.columns for f in column.features)
        # Missing rows are a feature only if there are any; with noise that cannot be seen.
        chosen = [
            i
            for i, f in enumerate(features)
            if f.kind is not FeatureKind.MISSING or (counts[i, :, 1].any() and not any(self.noise))
        ]
        sent = tuple(features[i] for i in chosen)
        return after, DataSummary(node_id, self.name, sent, counts[chosen], self.noise)


def new_reference(
    name: str,
    columns: Columns,
    digests: np.ndarray,
    *,
    variance: float = 0.0,
    noise: np.random.Generator | None = None,
) -> Reference:
    """Return a reference with these rows as baseline and noise of ``variance`` in its counts.

    ``digests`` are those of the rows, see ``row_digests``; empty if rows are never repeated.
    """
    bins = NOISY_BINS if variance else BINS
    learnt = tuple(learn_column(column, rows, bins) for column, rows in columns.items())
    counts = count_rows(learnt, columns, bins)
    if noise is not None:
        counts = counts + np.sqrt(variance) * noise.standard_normal(counts.shape)
    empty = np.zeros_like(counts)
    seen = np.sort(digests)
    return Reference(name, learnt, counts, counts, empty, empty, seen, seen, (variance,) * 3)


def count_rows(columns: Sequence[Column], rows: Columns, bins: int) -> np.ndarray:
    """Return counts of shape (2 * columns, bins)."""
    return np.concatenate([column.count(rows[column.name], bins) for column in columns])


def save_reference(reference: Reference, path: Path) -> None:
    """Write the reference, whole or not at all."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    about = _About(reference.name, reference.columns, reference.noise)
    arrays = {name: getattr(reference, name) for name in _ARRAYS}
    with replacing(path, mode=0o600) as file:  # the edges are private values of this node
        np.savez(file, about=np.array(json.dumps(asdict(about))), **arrays)


def load_reference(path: Path) -> Reference | None:
    """Return the reference; None if there is none, or if it cannot be read."""
    if not path.is_file():
        return None
    try:
        _require_plain_zip(path)
        with np.load(path, allow_pickle=False) as file:
            about = _ABOUT.validate_json(str(file["about"]))
            arrays = {name: file[name] for name in _ARRAYS}
        return _checked(about, arrays)
    except Exception as error:  # noqa: BLE001 - a damaged file raises eight types at least
        reason = printable(str(error))[:200]
        logger.warning("the data reference %s is unreadable (%s); it is made anew", path, reason)
        return None


@dataclass(frozen=True)
class _About:
    """The part of a reference's file that is no array."""

    name: str
    columns: tuple[Column, ...]
    noise: tuple[float, float, float]
    version: Literal[2] = 2


_ABOUT = TypeAdapter(_About)
_ARRAYS = ("baseline", "grown", "sent", "waiting", "seen", "accepted")


def _require_plain_zip(path: Path) -> None:
    """Refuse a file that would be larger in memory than on disk; numpy.savez writes none."""
    with ZipFile(path) as file:
        parts = file.infolist()
    if any(part.compress_type for part in parts) or (
        sum(part.file_size for part in parts) > path.stat().st_size
    ):
        raise ValueError("its parts are compressed or overlap")


def _checked(about: _About, arrays: Mapping[str, np.ndarray]) -> Reference:
    table = (2 * len(about.columns), max(2, arrays["baseline"].shape[-1]))
    for name, array in arrays.items():
        rows = name in ("seen", "accepted")
        expected, shape = ("u8", (array.size,)) if rows else ("f8", table)
        if array.dtype != np.dtype(expected) or array.shape != shape:
            raise ValueError(f"{name} is of {array.dtype} in the shape {array.shape}")
    return Reference(about.name, about.columns, **arrays, noise=about.noise)


def _is_numeric(rows: np.ndarray) -> bool:
    return rows.dtype.kind in "biuf"


def _sorted_numbers(name: str, rows: np.ndarray) -> np.ndarray:
    """Return the numbers among ``rows``, sorted, with infinities."""
    if not _is_numeric(rows):
        raise ValueError(f"column {name!r} held numbers and holds {rows.dtype} now")
    values = np.sort(rows if rows.dtype.kind == "f" else rows.astype(np.float64))
    present = len(values)
    if present and np.isnan(values[-1]):  # NaN sorts last
        present -= int(np.isnan(values).sum())
    return values[:present]


def _levels(rows: np.ndarray) -> np.ndarray:
    """Return the levels of ``rows`` as text, without None and NaN."""
    present = (
        v for v in rows.tolist() if v is not None and not (isinstance(v, float) and isnan(v))
    )
    return np.array([str(v) for v in present], dtype=str)
