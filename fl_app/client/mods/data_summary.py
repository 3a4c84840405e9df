# SPDX-License-Identifier: Apache-2.0
"""data_summary_mod: a Flower mod that adds counts of a node's new rows to its train replies.

Rows are read as columns by name, and new ones are detected by their digests. The node's reference
is in `fl_app/client/summary/reference.py`; the server tests for drift.
"""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import ConfigRecord, Context, Message

from fl_app.client.summary.reference import (
    Column,
    Columns,
    Reference,
    count_rows,
    load_reference,
    new_reference,
    save_reference,
)
from fl_app.flower_internals import ClientAppCallable, Mod
from fl_app.wire.data_summary import HOLD_KEY, REFERENCE_KEY, SUMMARY_RECORD, DataSummary
from fl_registry import app_home
from fl_registry.redaction import trace

logger = logging.getLogger("flwr.fl_app")

MIN_ROWS = 50
"""Fewest new rows for a summary."""
NODE_KEY = "data-summaries"
"""Key of the node config with the folder for a node's reference."""

Features = Callable[[Message, Context], Any]
"""Returns a node's rows: columns by name, an array of shape (rows, columns), or KeyedRows."""


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


def data_summary_mod(
    features: Features,
    *,
    fresh: bool = False,
    folder: Callable[[Context], Path] | None = None,
    edges: Mapping[str, Sequence[float] | Sequence[str]] | None = None,
    epsilon: float | None = None,
    delta: float = 1e-5,
) -> Mod:
    """Make a mod: ``ClientApp(mods=[data_summary_mod(features)])``.

    The first rows of a node become its reference. Rows that are new in a later message are counted
    in the reference's quantile bins, and the counts are added to the reply to a train message. With
    the next message they join the reference, unless that message has ``data-hold`` set or another
    ``data-reference``. With another name a new reference is made: of the rows that have not joined
    the old one, if they are enough, otherwise of all rows. If anything fails the error is logged
    and the reply has no summary.

    Parameters
    ----------
    features : Callable[[Message, Context], Any]
        Returns the node's current rows. Numbers are binned by quantiles, other values by their
        most frequent levels; NaN and None are missing.
    fresh : bool
        True if ``features`` returns new rows only; otherwise the mod detects which are new.
    folder : Callable[[Context], Path] | None
        Folder of the node's reference. By default ``data-summaries`` of the node config, or a
        folder for each node in ``FL_APP_HOME``.
    edges : Mapping[str, Sequence] | None
        For nodes without a disk: bin edges (or levels) of each column, the same on all nodes. The
        server stores each node's reference then, and rows must be ``fresh``.
    epsilon, delta : float | None, float
        With ``epsilon`` the rows of each batch are protected by differential privacy: Gaussian
        noise on the counts, in 16 bins, without missing rows (Dwork and Roth 2014, theorem A.1;
        one row is one count in each column). The privacy loss adds up over batches. Bin edges are
        the baseline's own quantiles and are not protected.

    Raises
    ------
    ValueError
        A parameter is out of range, or two exclude each other.
    """
    # The calibration of the Gaussian mechanism holds up to an epsilon of 1.
    if epsilon is not None and not 0 < epsilon <= 1:
        raise ValueError(f"epsilon is {epsilon}, expected more than 0 and at most 1.")
    if not 0 < delta < 1:
        raise ValueError(f"delta is {delta}, expected a probability, such as 1e-5.")
    if edges is not None and not fresh:
        raise ValueError("A node without a disk cannot detect new rows: set fresh=True.")
    if edges is not None and epsilon is not None:
        raise ValueError("Noise needs a reference on disk: set either edges or epsilon.")
    noise = 0.0 if epsilon is None else 2 * math.log(1.25 / delta) / epsilon**2
    summariser = _Summariser(fresh, noise)

    def mod(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        reply = call_next(message, context)
        if not message.metadata.message_type.startswith("train") or reply.has_error():
            return reply
        try:
            rows, node_id = features(message, context), str(context.node_id)
            name, hold = _order(message)
            if edges is None:
                path = (folder or node_folder)(context) / "reference.npz"
                summary = summariser.summary(rows, path, node_id, name=name, hold=hold)
            else:
                summary = _on_global_edges(rows, edges, node_id, name)
        except Exception as error:  # noqa: BLE001 - the user's code; training must go on
            logger.warning("this node sends no data summary: %s", trace(error))
            return reply
        if summary is not None:
            reply.content[SUMMARY_RECORD] = ConfigRecord(summary.to_record())  # type: ignore[arg-type]
        return reply

    return mod


def node_folder(context: Context) -> Path:
    """Return the folder in the node config, by default one in FL_APP_HOME for each node."""
    named = context.node_config.get(NODE_KEY)
    if named is not None:
        return Path(str(named)).expanduser().absolute()
    node = context.node_config.get("partition-id", context.node_id)
    return app_home() / "summaries" / str(node)


@dataclass(frozen=True)
class _Summariser:
    """Makes the summaries of a node with a disk; ``noise`` is the variance for each column."""

    fresh: bool
    noise: float

    def summary(
        self, rows: Any, path: Path, node_id: str, *, name: str, hold: bool
    ) -> DataSummary | None:
        """Count the node's current rows and update its reference; return the summary, if any."""
        digests = np.array([], np.uint64) if self.fresh else _row_digests(rows)
        reference = load_reference(path)
        if (
            reference is None
            or reference.name != name
            or reference.noise[0] != self.noise * len(reference.columns)
        ):
            self._begin(rows, digests, path, name, reference)
            return None
        reference = reference.settled(hold=hold)
        new = None if self.fresh else _new_rows(digests, reference.seen)
        if new is None or len(new):
            columns = _read_rows(rows, new)
            if not reference.fits(columns):
                self._begin(rows, digests, path, name, None)
                return None
            reference = reference.with_rows(columns, digests)
        summary = None
        if reference.rows_waiting >= _least(reference.noise[0]):
            reference, summary = reference.summarised(node_id, np.random.default_rng())
        save_reference(reference, path)
        return summary

    def _begin(
        self, rows: Any, digests: np.ndarray, path: Path, name: str, old: Reference | None
    ) -> None:
        """Make a new reference of the rows that the old one did not accept, or of all rows."""
        which = None
        if old is not None and not self.fresh:
            late = _new_rows(digests, old.accepted)
            which = late if len(late) >= _least(old.noise[0]) else None
        columns = _read_rows(rows, which)
        count, variance = _count_of(columns), self.noise * len(columns)
        if count < _least(variance):
            logger.info("%d rows are too few for a data reference of %d", count, _least(variance))
            return
        noise = np.random.default_rng()
        reference = new_reference(name, columns, digests, variance=variance, noise=noise)
        save_reference(reference, path)


def _least(variance: float) -> int:
    """Return the fewest rows for a summary; with noise, so many that they exceed the noise."""
    return max(MIN_ROWS, math.ceil(20 * math.sqrt(variance)))


def _on_global_edges(
    rows: Any, edges: Mapping[str, Sequence[float] | Sequence[str]], node_id: str, name: str
) -> DataSummary | None:
    columns = _read_rows(rows)
    if _count_of(columns) < MIN_ROWS:
        return None
    given = [_column(column, edges[column]) for column in columns]
    bins = 1 + max(len(marks) for marks in edges.values())
    counts = count_rows(given, columns, bins)[:, None, :]
    features = tuple(feature for column in given for feature in column.features)
    return DataSummary(node_id, name, features, counts, (0.0,))


def _column(name: str, marks: Sequence[float] | Sequence[str]) -> Column:
    if all(isinstance(mark, str) for mark in marks):
        return Column(name, levels=tuple(map(str, marks)))
    return Column(name, tuple(sorted(map(float, marks))))


def _order(message: Message) -> tuple[str, bool]:
    """Return the requested reference, and whether the last summary must not join it."""
    for config in message.content.config_records.values():
        if REFERENCE_KEY in config:
            return str(config[REFERENCE_KEY]), bool(config.get(HOLD_KEY))
    return "", False


def _read_rows(rows: Any, which: np.ndarray | None = None) -> Columns:
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
        return _read_rows(rows.read(indices))
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


def _count_of(columns: Columns) -> int:
    """Return the number of rows."""
    return len(next(iter(columns.values())))


def _row_digests(rows: Any) -> np.ndarray:
    """Return a uint64 digest for each row; equal rows have equal digests, in every process."""
    if isinstance(rows, KeyedRows):
        return np.array([_digest(key) for key in rows.keys], np.uint64)
    columns = _read_rows(rows)
    digests = np.zeros(_count_of(columns), np.uint64)
    for column in columns.values():  # FxHash, a column at a time
        turned = (digests << np.uint64(5)) | (digests >> np.uint64(59))
        digests = (turned ^ _bits(column)) * np.uint64(0x9E3779B97F4A7C15)
    return digests ^ (digests >> np.uint64(32))


def _new_rows(digests: np.ndarray, seen: np.ndarray) -> np.ndarray:
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
    # Names of files need not be UTF-8: Python reads them with surrogates for the other bytes.
    data = text.encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")
