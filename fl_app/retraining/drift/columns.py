# SPDX-License-Identifier: Apache-2.0
"""Tables of any library as columns of numbers or of levels, for ``check_data_drift``."""

from __future__ import annotations

import datetime
import numbers
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import numpy as np

DAY, EPOCH = 86_400.0, datetime.date(1970, 1, 1).toordinal()
BITS = 40
"""Leading bits of a number that are compared: 0.1 + 0.2 is 0.3."""


@dataclass(frozen=True, eq=False)
class Table:
    """The columns of a sample.

    Attributes
    ----------
    names : tuple[str, ...] | None
        Names of the columns; None for an array.
    values : tuple[np.ndarray, ...]
        The columns, each of shape (rows,).
    """

    names: tuple[str, ...] | None
    values: tuple[np.ndarray, ...]


@dataclass(frozen=True, eq=False)
class Column:
    """The values of a column that are there.

    Attributes
    ----------
    kind : "number" | "time" | "bool" | "text" | ""
        What they are; empty if there is none.
    values : np.ndarray
        float64, times in seconds; text for ``text``.
    missing : int
        Number of rows without a value.
    """

    kind: str
    values: np.ndarray
    missing: int

    def __len__(self) -> int:
        return len(self.values)

    def as_text(self) -> np.ndarray:
        """Return the values as levels."""
        if self.kind in ("text", "bool"):
            return self.values.astype(str)
        return np.array([f"{value:.12g}" for value in self.values.tolist()], dtype=str)


def columns_of(data: Any) -> Table:
    """Return the columns of a data frame, of a mapping, or of an array.

    Raises
    ------
    ValueError
        If an array has not one or two dimensions, a column has not one, or a frame is lazy.
    """
    if hasattr(data, "collect") and not hasattr(data, "__len__"):
        raise ValueError("The data are a lazy frame, expected one with rows: give data.collect().")
    if isinstance(data, Mapping):
        names, values = [*data], [*data.values()]
    elif hasattr(data, "column_names"):  # pyarrow
        names = [*data.column_names]
        values = [data.column(number) for number in range(len(names))]
    elif hasattr(data, "iloc") and hasattr(data, "columns"):  # pandas, where names may repeat
        names = [*data.columns]
        values = [data.iloc[:, number] for number in range(len(names))]
    elif hasattr(data, "columns") and hasattr(data, "__getitem__"):
        names = [*data.columns]
        values = [data[name] for name in names]
    else:
        array = _array(data)
        if array.ndim not in (1, 2):
            raise ValueError(
                f"The data have shape {array.shape}, expected (rows,) or (rows, features), or a "
                "data frame."
            )
        return Table(None, tuple(array.T) if array.ndim == 2 else (array,))
    arrays = [*map(_array, values)]
    for name, array in zip(names, arrays, strict=True):
        if array.ndim != 1:
            raise ValueError(f"The column {name!s:.40} has shape {array.shape}, expected (rows,).")
    return Table(_unique([*map(str, names)]), tuple(arrays))


def column_of(rows: np.ndarray) -> Column:
    """Return the values of a column, shape (rows,)."""
    if rows.dtype.kind in "iuf":
        values = rows.astype(np.float64)
        return _column("number", values[~np.isnan(values)], len(rows))
    if rows.dtype.kind in "mM":
        times = rows[~np.isnat(rows)].astype(f"{rows.dtype.kind}8[us]")
        return _column("time", times.astype(np.int64) / 1e6, len(rows))
    present = [value for value in rows.tolist() if not _is_missing(value)]
    kinds = {_kind(value) for value in present}
    if kinds == {"bool"}:
        return _column("bool", np.array(present, np.float64), len(rows))
    if kinds and kinds <= {"number", "bool"}:
        return _column("number", np.array([*map(_number, present)]), len(rows))
    if kinds == {"time"}:
        return _column("time", np.array([*map(_seconds, present)]), len(rows))
    return _column("text", np.array([str(value) for value in present], dtype=str), len(rows))


def _column(kind: str, values: np.ndarray, rows: int) -> Column:
    if kind == "number":
        fraction, exponent = np.frexp(values)
        values = np.ldexp(np.rint(np.ldexp(fraction, BITS)), exponent - BITS)
    return Column(kind if len(values) else "", values, rows - len(values))


def _array(data: Any) -> np.ndarray:
    if isinstance(data, np.ma.MaskedArray):
        return np.asarray(np.ma.filled(data.astype(object), None))
    if hasattr(getattr(data, "type", None), "index_type"):
        data = data.cast(data.type.value_type)  # pyarrow gives a missing level as the last one
    try:
        return np.asarray(data)
    except ValueError:
        raise ValueError(
            "The rows of the data differ in length, expected shape (rows,) or (rows, features)."
        ) from None


def _unique(names: list[str]) -> tuple[str, ...]:
    """Number the names that occur again."""
    seen, unique = set[str](), list[str]()
    for name in names:
        number, fresh = 1, name
        while fresh in seen:
            number += 1
            fresh = f"{name} ({number})"
        seen.add(fresh)
        unique.append(fresh)
    return tuple(unique)


def _is_missing(value: object) -> bool:
    if value is None or type(value).__name__ in ("NAType", "NaTType"):  # those of pandas
        return True
    if isinstance(value, np.datetime64 | np.timedelta64):
        return bool(np.isnat(value))
    if isinstance(value, Decimal):
        return value.is_nan()
    return isinstance(value, float) and value != value  # noqa: PLR0124 - NaN


def _kind(value: object) -> str:
    if isinstance(value, bool | np.bool_):
        return "bool"
    if isinstance(value, numbers.Real | Decimal):
        return "number"
    # A time of day has no date; a difference of times is a number of seconds.
    known = datetime.date | datetime.timedelta | np.datetime64 | np.timedelta64
    return "time" if isinstance(value, known) else "text"


def _number(value: Any) -> float:
    try:
        return float(value)
    except OverflowError:
        return float("inf") if value > 0 else float("-inf")


def _seconds(value: Any) -> float:
    if isinstance(value, np.datetime64 | np.timedelta64):
        value = value.astype(f"{value.dtype.kind}8[us]")
        return float(value.astype(np.int64)) / 1e6
    if isinstance(value, datetime.timedelta):
        return value.total_seconds()
    seconds = (value.toordinal() - EPOCH) * DAY
    if isinstance(value, datetime.datetime):
        offset = value.utcoffset() or datetime.timedelta()
        clock = datetime.timedelta(
            hours=value.hour, minutes=value.minute, seconds=value.second,
            microseconds=value.microsecond,
        )  # fmt: skip
        seconds += (clock - offset).total_seconds()
    return float(seconds)
