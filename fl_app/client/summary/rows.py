# SPDX-License-Identifier: Apache-2.0
"""Rows of a node as columns by name, and the detection of new rows."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Columns = Mapping[str, np.ndarray]
"""Rows by column: each an array of shape (rows,), of numbers or of other values (levels)."""


@dataclass(frozen=True)
class KeyedRows:
    """Rows that are slow to read, of which only the new ones are read.

    Attributes
    ----------
    keys : Sequence[str]
        A text for each row that changes with the row, such as path, size and time of a file.
    read : Callable[[Sequence[int]], Any]
        Returns the columns of the rows with these indices, by name or as an array of shape
        (rows, columns).
    """

    keys: Sequence[str]
    read: Callable[[Sequence[int]], Any]


def read_rows(rows: Any, which: np.ndarray | None = None) -> Columns:
    """Return the columns of the rows with the indices ``which``, or of all rows.

    Parameters
    ----------
    rows : Any
        KeyedRows, arrays by column name (a mapping or a data frame), or an array of shape
        (rows, columns).

    Raises
    ------
    ValueError
        The columns are not one-dimensional or differ in length.
    """
    if isinstance(rows, KeyedRows):
        indices = range(len(rows.keys)) if which is None else which.tolist()
        return read_rows(rows.read(indices))
    if hasattr(rows, "keys"):
        columns = {str(name): np.asarray(rows[name]) for name in rows.keys()}  # noqa: SIM118
    else:
        table = np.asarray(rows)
        if table.ndim != 2:
            raise ValueError(f"rows have shape {table.shape}, expected (rows, columns)")
        turned = np.ascontiguousarray(table.T)
        columns = {f"column {number}": column for number, column in enumerate(turned)}
    shapes = {column.shape for column in columns.values()}
    if len(shapes) != 1 or len(next(iter(shapes))) != 1:
        raise ValueError(f"columns have shapes {shapes}, expected (rows,) with equally many rows")
    if which is None:
        return columns
    return {name: column[which] for name, column in columns.items()}


def count_of(columns: Columns) -> int:
    """Return the number of rows."""
    return len(next(iter(columns.values())))


def row_digests(rows: Any) -> np.ndarray:
    """Return a uint64 digest for each row; equal rows have equal digests, in every process."""
    if isinstance(rows, KeyedRows):
        return np.array([_digest(key) for key in rows.keys], np.uint64)
    columns = read_rows(rows)
    digests = np.zeros(count_of(columns), np.uint64)
    for column in columns.values():  # FxHash, a column at a time
        turned = (digests << np.uint64(5)) | (digests >> np.uint64(59))
        digests = (turned ^ _bits(column)) * np.uint64(0x9E3779B97F4A7C15)
    return digests ^ (digests >> np.uint64(32))


def new_rows(digests: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """Return the indices of the rows that occur more often than in ``seen`` (uint64, sorted)."""
    order = np.argsort(digests, kind="stable")
    ordered = digests[order]
    # The n-th of equal rows is new if fewer than n were seen before.
    repetition = np.arange(len(ordered)) - np.searchsorted(ordered, ordered, "left")
    before = np.searchsorted(seen, ordered, "right") - np.searchsorted(seen, ordered, "left")
    return np.sort(order[repetition >= before])


def _bits(column: np.ndarray) -> np.ndarray:
    if column.dtype.kind in "biuf":
        return column.astype(np.float64).view(np.uint64)
    levels, place = np.unique(np.array([str(v) for v in column.tolist()]), return_inverse=True)
    return np.array([_digest(level) for level in levels.tolist()], np.uint64)[place]


def _digest(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")
