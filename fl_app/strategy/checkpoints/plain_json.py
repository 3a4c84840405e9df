# SPDX-License-Identifier: Apache-2.0
"""Values as JSON, with arrays beside it; reading runs no code of a file.

Numbers, texts, bytes, times, stages, arrays, Flower's records, the records of a session, and dicts,
lists, tuples and sets of them.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from dataclasses import fields
from datetime import datetime
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord

from fl_app.events import RejectedReply, RoundReport
from fl_app.strategy.checkpoints.record import Baseline, Checkpoint, InnerState, SessionRecord
from fl_app.strategy.records import DataUsed, Origin
from fl_app.strategy.round.state import ClosedRound, Contribution, NodeScore
from fl_app.wire.arrays import ArrayError, view
from fl_registry import Stage

Arrays = dict[str, np.ndarray]

MAX_DEPTH = 30
_KNOWN = frozenset(
    ["bool", *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64))]
) | {"float16", "float32", "float64", "complex64"}
_RECORDS: tuple[type[Any], ...] = (
    *(Baseline, Checkpoint, ClosedRound, Contribution, DataUsed, InnerState, NodeScore, Origin),
    *(RejectedReply, RoundReport, SessionRecord),
)
"""The records that are read back; each is written as its class's name and its fields."""


class NotPlainError(ValueError):
    """A value is of a kind that cannot be written; the text says which."""


def encode(value: object, arrays: Arrays | None = None, *, name: str = "") -> Any:
    """Return a value as JSON.

    Parameters
    ----------
    value : object
        The value.
    arrays : dict[str, np.ndarray] | None
        Where arrays, numpy's numbers and bytes are put, under names that begin with ``name``. None
        takes no arrays, and writes bytes as text and all numbers as Python's.
    name : str
        What the names begin with.

    Raises
    ------
    NotPlainError
        If anything in it is of another kind, or it is nested too deeply.
    """
    return _Writer(arrays, name).write(value, 0)


def encode_each(values: Mapping[str, object]) -> dict[str, tuple[Any, Arrays] | None]:
    """Return values as JSON with copies of their arrays, by name; None if one cannot be written."""
    encoded: dict[str, tuple[Any, Arrays] | None] = {}
    for name, value in values.items():
        arrays: Arrays = {}
        try:
            text = encode(value, arrays, name=name)
        except NotPlainError:
            encoded[name] = None
        else:
            encoded[name] = text, {key: array.copy() for key, array in arrays.items()}
    return encoded


def decode(text: Any, arrays: Mapping[str, np.ndarray] | None = None) -> Any:
    """Return what `encode` was given; the arrays are those that it put there.

    Raises
    ------
    NotPlainError
        If it is not what `encode` returns.
    """
    try:
        return _read(text, arrays or {})
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise NotPlainError(f"it cannot be read back: {type(error).__name__}") from error


class _Writer:
    def __init__(self, arrays: Arrays | None, name: str) -> None:
        self._arrays = arrays
        self._name = name
        self._count = 0

    def write(self, value: object, depth: int) -> Any:
        if depth > MAX_DEPTH:
            raise NotPlainError("it is nested too deeply")
        if self._arrays is None and isinstance(value, np.generic):
            value = value.item()
        if value is None or type(value) in (bool, int, float, str):
            return value
        if type(value) is list:
            return [self.write(each, depth + 1) for each in value]
        write = _WRITERS.get(type(value))
        if write is None and isinstance(value, np.generic):
            return {"number": self._put(np.asarray(value))}
        if write is None:
            raise NotPlainError(f"it is a {type(value).__name__}")
        return write(self, value, depth + 1)

    def bytes(self, value: bytes, _: int) -> Any:
        if self._arrays is None:
            return {"base64": base64.b64encode(value).decode()}
        return {"bytes": self._put(np.frombuffer(value, np.uint8))}

    def array(self, value: np.ndarray, _: int) -> Any:
        return {"array": self._put(value)}

    def flower_array(self, value: Array, _: int) -> Any:
        try:
            return {"flower": self._put(view(value))}
        except ArrayError as error:
            raise NotPlainError(f"it holds an array that {error}") from error

    def records(self, value: ArrayRecord, depth: int) -> Any:
        return {"arrays": [[key, self.write(array, depth)] for key, array in value.items()]}

    def pairs(self, value: Mapping[Any, Any], depth: int) -> Any:
        return {"dict": [[self.write(k, depth), self.write(v, depth)] for k, v in value.items()]}

    def several(self, value: tuple[Any, ...] | set[Any], depth: int) -> Any:
        return {type(value).__name__: [self.write(each, depth) for each in value]}

    def metrics(self, value: MetricRecord, depth: int) -> Any:
        return {"metrics": self.pairs(dict(value), depth)}

    def config(self, value: ConfigRecord, depth: int) -> Any:
        return {"config": self.pairs(dict(value), depth)}

    def time(self, value: datetime, _: int) -> Any:
        return {"time": value.isoformat()}

    def stage(self, value: Stage, _: int) -> Any:
        return {"stage": str(value)}

    def record(self, value: Any, depth: int) -> Any:
        names = [field.name for field in fields(value)]
        inside = {name: self.write(getattr(value, name), depth) for name in names}
        return {type(value).__name__: inside}

    def _put(self, array: np.ndarray) -> str:
        if array.dtype.name not in _KNOWN:
            raise NotPlainError(f"it holds an array of {array.dtype}")
        if self._arrays is None:
            raise NotPlainError("it holds an array")
        name = f"{self._name}#{self._count}"
        self._count += 1
        self._arrays[name] = array
        return name


_WRITERS: dict[type, Callable[[_Writer, Any, int], Any]] = {
    bytes: _Writer.bytes,
    np.ndarray: _Writer.array,
    Array: _Writer.flower_array,
    ArrayRecord: _Writer.records,
    MetricRecord: _Writer.metrics,
    ConfigRecord: _Writer.config,
    dict: _Writer.pairs,
    tuple: _Writer.several,
    set: _Writer.several,
    frozenset: _Writer.several,
    datetime: _Writer.time,
    Stage: _Writer.stage,
    **dict.fromkeys(_RECORDS, _Writer.record),
}


def _read(text: Any, arrays: Mapping[str, np.ndarray]) -> Any:
    if isinstance(text, list):
        return [_read(each, arrays) for each in text]
    if not isinstance(text, dict):
        return text
    ((kind, inside),) = text.items()
    return _READERS[kind](inside, arrays)


def _read_pairs(inside: Any, arrays: Mapping[str, np.ndarray]) -> dict[Any, Any]:
    return {_read(key, arrays): _read(value, arrays) for key, value in inside}


def _read_record(kind: type[Any]) -> Callable[[Any, Mapping[str, np.ndarray]], Any]:
    return lambda inside, arrays: kind(**{k: _read(v, arrays) for k, v in inside.items()})


_READERS: dict[str, Callable[[Any, Mapping[str, np.ndarray]], Any]] = {
    "base64": lambda text, _: base64.b64decode(text, validate=True),
    "bytes": lambda name, arrays: arrays[name].tobytes(),
    "array": lambda name, arrays: arrays[name].copy(),
    "number": lambda name, arrays: arrays[name][()],
    "flower": lambda name, arrays: Array(arrays[name]),
    "arrays": lambda rows, arrays: ArrayRecord({key: _read(row, arrays) for key, row in rows}),
    "metrics": lambda inside, arrays: MetricRecord(_read(inside, arrays)),
    "config": lambda inside, arrays: ConfigRecord(_read(inside, arrays)),
    "dict": _read_pairs,
    "tuple": lambda rows, arrays: tuple(_read(row, arrays) for row in rows),
    "set": lambda rows, arrays: {_read(row, arrays) for row in rows},
    "frozenset": lambda rows, arrays: frozenset(_read(row, arrays) for row in rows),
    "time": lambda text, _: datetime.fromisoformat(text),
    "stage": lambda text, _: Stage(text),
    **{kind.__name__: _read_record(kind) for kind in _RECORDS},
}
