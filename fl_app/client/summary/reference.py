# SPDX-License-Identifier: Apache-2.0
"""A node's reference: the bins of its columns and the counts in them, as one file on its disk.

The edges of the bins are values of the node, so this file never leaves it.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import isnan
from pathlib import Path
from typing import Literal
from zipfile import BadZipFile, ZipFile

import numpy as np
from pydantic import TypeAdapter

from fl_app.client.summary.rows import Columns
from fl_app.wire.data_summary import BINS, DataSummary, Feature, FeatureKind
from fl_registry.files.atomic import replacing
from fl_registry.redaction import printable

logger = logging.getLogger("flwr.fl_app")

UNREADABLE = (
    OSError,
    ValueError,
    LookupError,
    TypeError,
    EOFError,
    RuntimeError,
    MemoryError,
    BadZipFile,
)
"""Raised by numpy, pydantic and zipfile on a file that is damaged or foreign."""


@dataclass(frozen=True)
class Column:
    """How the rows of one column fall into bins.

    Attributes
    ----------
    name : str
        Its name.
    edges : tuple[float, ...] | None
        Upper edges of all bins but the last; None for levels.
    levels : tuple[str, ...]
        Levels with a bin each; all others share the bin after them.
    """

    name: str
    edges: tuple[float, ...] | None = None
    levels: tuple[str, ...] = ()

    @property
    def features(self) -> tuple[Feature, Feature]:
        """What is counted of it: its rows in bins, and its missing rows."""
        kind = FeatureKind.LEVELS if self.edges is None else FeatureKind.VALUE
        return Feature(self.name, kind), Feature(self.name, FeatureKind.MISSING)

    def count(self, rows: np.ndarray, bins: int) -> np.ndarray:
        """Counts of shape (2, bins): rows in bins; rows that are there and rows that are missing.

        Sorting once and looking each edge up is many times faster than the reverse.
        """
        counts = np.zeros((2, bins))
        if self.edges is None:
            there = _levels(rows)
            place = {level: number for number, level in enumerate(self.levels)}
            levels, number = np.unique(there, return_counts=True)
            np.add.at(counts[0], [place.get(v, len(self.levels)) for v in levels], number)
        else:
            there = _sorted_numbers(self.name, rows)
            cuts = np.searchsorted(there, self.edges, side="right")
            counts[0, : len(cuts) + 1] = np.diff(cuts, prepend=0, append=len(there))
        counts[1, :2] = len(there), len(rows) - len(there)
        return counts


def learn_column(name: str, rows: np.ndarray, bins: int) -> Column:
    """Bins of equal counts for numbers, the most frequent levels for anything else.

    An edge belongs to the bin below it. Edges repeat where values do, so that bin numbers mean the
    same quantiles on every node; none is at the greatest value, beyond which nothing could fall.
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
    if values[0] == greatest:  # a constant: see values on either side of it
        edges[: bins // 2] = np.nextafter(greatest, -np.inf)
    return Column(name, tuple(map(float, edges)))


@dataclass(frozen=True, eq=False)
class Reference:
    """What a node compares its new rows with.

    Attributes
    ----------
    name : str
        The server's name for it; another name from the server means to begin anew.
    columns : tuple[Column, ...]
        The bins.
    baseline, grown : np.ndarray
        float64, shape (2 * columns, bins): counts of the first rows, and of all that were accepted.
    sent : np.ndarray
        Counts of the last summary, which join ``grown`` unless the server holds them back.
    waiting : np.ndarray
        Counts of new rows that are too few to be sent.
    seen, accepted : np.ndarray
        uint64, sorted: digests of the rows that were there last time, and when rows were last let
        in.
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
        """Rows that the next summary would hold."""
        return int(self.waiting[1, :2].sum())

    def settled(self, *, hold: bool) -> Reference:
        """Let what was sent last join the reference, or drop it on the server's word."""
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
        """Whether these are the columns that it is about."""
        mine = {column.name: column.edges is not None for column in self.columns}
        return mine == {name: _is_numeric(rows) for name, rows in columns.items()}

    def with_rows(self, columns: Columns, digests: np.ndarray) -> Reference:
        """Count rows that are new; ``digests`` are those of all rows that are there now."""
        counts = count_rows(self.columns, columns, self.baseline.shape[1])
        return replace(self, waiting=self.waiting + counts, seen=np.sort(digests))

    def summarised(self, node_id: str, noise: np.random.Generator) -> tuple[Reference, DataSummary]:
        """What to send, and the reference that remembers having sent it."""
        now = self.waiting + np.sqrt(self.noise[0]) * noise.standard_normal(self.waiting.shape)
        after = replace(self, sent=now, waiting=np.zeros_like(now))
        counts = np.stack([now, self.grown, self.baseline], axis=1)
        features = tuple(f for column in self.columns for f in column.features)
        # Missing rows are worth a feature only where there are any; among noise they drown.
        worth = [
            i
            for i, f in enumerate(features)
            if f.kind is not FeatureKind.MISSING or (counts[i, :, 1].any() and not any(self.noise))
        ]
        kept = tuple(features[i] for i in worth)
        return after, DataSummary(node_id, self.name, kept, counts[worth], self.noise)


def new_reference(
    name: str,
    columns: Columns,
    digests: np.ndarray,
    *,
    bins: int = BINS,
    variance: float = 0.0,
    noise: np.random.Generator | None = None,
) -> Reference:
    """A reference with these rows as its baseline, noise of ``variance`` in each of its counts.

    ``digests`` are the rows' own, see ``row_digests``; empty if rows never come twice.
    """
    learnt = tuple(learn_column(column, rows, bins) for column, rows in columns.items())
    counts = count_rows(learnt, columns, bins)
    if noise is not None:
        counts = counts + np.sqrt(variance) * noise.standard_normal(counts.shape)
    empty = np.zeros_like(counts)
    seen = np.sort(digests)
    return Reference(name, learnt, counts, counts, empty, empty, seen, seen, (variance,) * 3)


def count_rows(columns: Sequence[Column], rows: Columns, bins: int) -> np.ndarray:
    """Counts of shape (2 * columns, bins)."""
    return np.concatenate([column.count(rows[column.name], bins) for column in columns])


def save_reference(reference: Reference, path: Path) -> None:
    """Write the reference, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
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
    except UNREADABLE as error:
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
    """Refuse a file that would be larger in memory than on disk, as numpy never writes one."""
    with ZipFile(path) as file:
        parts = file.infolist()
    if any(part.compress_type for part in parts) or (
        sum(part.file_size for part in parts) > path.stat().st_size
    ):
        raise ValueError("its parts are packed or overlap")


def _checked(about: _About, arrays: Mapping[str, np.ndarray]) -> Reference:
    bins = arrays["baseline"].shape[-1]
    for name, array in arrays.items():
        rows = name in ("seen", "accepted")
        expected = np.dtype("u8") if rows else np.dtype("f8")
        if array.dtype != expected or (rows and array.ndim != 1):
            raise ValueError(f"{name} is of {array.dtype} with {array.ndim} dimensions")
        if not rows and (array.shape != (2 * len(about.columns), bins) or bins < 2):
            raise ValueError(f"{name} has shape {array.shape} for {len(about.columns)} columns")
    return Reference(about.name, about.columns, **arrays, noise=about.noise)


def _is_numeric(rows: np.ndarray) -> bool:
    return rows.dtype.kind in "biuf"


def _sorted_numbers(name: str, rows: np.ndarray) -> np.ndarray:
    """The numbers among ``rows``, sorted; infinite ones are the least and the greatest."""
    if not _is_numeric(rows):
        raise ValueError(f"column {name!r} was of numbers and is of {rows.dtype} now")
    values = np.sort(rows if rows.dtype.kind == "f" else rows.astype(np.float64))
    there = len(values)
    if there and np.isnan(values[-1]):  # they go last
        there -= int(np.isnan(values).sum())
    return values[:there]


def _levels(rows: np.ndarray) -> np.ndarray:
    """The levels that are there, as text; None and NaN are not."""
    there = (v for v in rows.tolist() if v is not None and not (isinstance(v, float) and isnan(v)))
    return np.array([str(v) for v in there], dtype=str)
