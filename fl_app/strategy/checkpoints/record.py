# SPDX-License-Identifier: Apache-2.0
"""The records of a session and of its rounds that are on disk, and values as JSON files.

Values are numbers, texts, bytes, times, stages, arrays (beside the JSON), Flower's records, these
records, and dicts, lists, tuples and sets of them. Reading them runs no code of a file.
"""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord

from fl_app.events import RejectedReply, RoundReport
from fl_app.strategy.errors import CheckpointError
from fl_app.strategy.records import DataUsed, Origin, Scored
from fl_app.strategy.round.state import ClosedRound, Contribution, NodeScore
from fl_app.wire.arrays import ArrayError, view
from fl_registry import Stage
from fl_registry.files.atomic import write_whole
from fl_registry.files.weights import WeightsError

State = Literal["training", "left", "ending"]
Phase = Literal["aggregated", "closed", "done"]
PHASES: tuple[Phase, ...] = ("aggregated", "closed", "done")


@dataclass(frozen=True)
class InnerState:
    """The state of the inner strategy and of those that it wraps.

    Attributes
    ----------
    values : Mapping[str, Any]
        Encoded values by the place of an attribute (``strategy/m_t``).
    arrays : Mapping[str, np.ndarray]
        The arrays that the values refer to.
    missing : tuple[str, ...]
        Places whose values changed and cannot be written to disk.
    """

    values: Mapping[str, Any] = field(default_factory=dict)
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)
    missing: tuple[str, ...] = ()


@dataclass(frozen=True)
class Checkpoint:
    """A round of a session, as far as it is.

    Attributes
    ----------
    closed : ClosedRound
        The round.
    phase : "aggregated" | "closed" | "done"
        How far it is.
    inner : InnerState
        State of the inner strategy after it.
    configs : Mapping[str, ConfigRecord]
        The configs for ``train`` and ``evaluate`` messages, which strategies may change.
    report : RoundReport | None
        The report of the round, once it is done.
    files : Mapping[str, tuple[str, str]]
        Name and SHA-256 of the files with its ``arrays`` and, if there are any, the ``inner`` ones.
    """

    closed: ClosedRound
    phase: Phase
    inner: InnerState = field(default_factory=InnerState)
    configs: Mapping[str, ConfigRecord] = field(default_factory=dict)
    report: RoundReport | None = None
    files: Mapping[str, tuple[str, str]] = field(default_factory=dict)

    def without_arrays(self) -> Checkpoint:
        """Return the same without arrays, as it is written to disk beside their files."""
        closed, inner = replace(self.closed, arrays=None), replace(self.inner, arrays={})
        return replace(self, closed=closed, inner=inner)


@dataclass(frozen=True)
class SessionRecord:
    """A session.

    Attributes
    ----------
    model : str
        Name of the registered model.
    origin : Origin
        Why it runs.
    num_rounds : int
        Rounds that it has.
    chain : tuple[str, ...]
        Classes of the inner strategy and of those that it wraps.
    arrays : tuple[tuple[str, str, tuple[int, ...] | None], ...]
        Name, dtype and shape of the model's arrays; no shape if it may change.
    settings : Mapping[str, Any]
        Params, the inner strategy's numbers and texts, and the messages' configs at the start.
    tags, params : Mapping[str, str]
        Tags and params of its MLflow run.
    holdout : DataUsed | None
        The data that it is scored on, for that run.
    run_name, run_id : str
        That run; the id is empty before the run is started.
    started : datetime
        When it started, in UTC.
    first_metrics : Mapping[str, float] | None
        Metrics of the weights that it starts with; None until they are evaluated.
    baselines : Mapping[str, Scored]
        Scores before round 1 of the versions that must be beaten, by version.
    staging : str | None
        The version in Staging then.
    source : str
        Source of the metrics with plain names: ``clients``, or that of ``evaluate_fn``.
    described : bool
        Whether its MLflow run has its params, its data and the first metrics.
    state : "training" | "left" | "ending"
        ``left``: its process has ended with rounds in the queue. ``ending``: only the end of its
        MLflow run is missing.
    status : str
        Status with which that run ends.
    """

    model: str
    origin: Origin
    num_rounds: int
    chain: tuple[str, ...] = ()
    arrays: tuple[tuple[str, str, tuple[int, ...] | None], ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    params: Mapping[str, str] = field(default_factory=dict)
    holdout: DataUsed | None = None
    run_name: str = ""
    run_id: str = ""
    started: datetime = field(default_factory=lambda: datetime.now(UTC))
    first_metrics: Mapping[str, float] | None = None
    baselines: Mapping[str, Scored] = field(default_factory=dict)
    staging: str | None = None
    source: str = "clients"
    described: bool = False
    state: State = "training"
    status: str = ""

    def differences(self, now: SessionRecord) -> list[str]:
        """Return what prevents this session from being resumed as ``now``."""
        rows = [
            (self.num_rounds, now.num_rounds, "it has {} rounds, and {} are requested"),
            ("(".join(self.chain), "(".join(now.chain), "its strategy is {}, not {}"),
            (self.arrays, now.arrays, "its model has other arrays"),
            (self.source, now.source, "its scores are of {}, not of {}"),
        ]
        why = [text.format(was, new) for was, new, text in rows if was != new]
        for name in sorted({*self.settings, *now.settings}):
            was, new = self.settings.get(name), now.settings.get(name)
            if was != new:
                why.append(f"{name} was {was!r:.60} and is {new!r:.60}")
        return why


Arrays = dict[str, np.ndarray]
Encoded = tuple[Any, Mapping[str, np.ndarray]]
"""A value as JSON, with its arrays."""
T = TypeVar("T")

MAX_DEPTH = 100
_DTYPES = frozenset(
    ["bool", *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64))]
) | {"float16", "float32", "float64", "complex64"}


class NotPlainError(ValueError):
    """A value is of a kind that cannot be written; the text says which."""


class _Kind(NamedTuple):
    """A type that is written as a value of a simpler one, under the name of the kind."""

    type: type[Any]
    simpler: Callable[[Any], Any]
    back: Callable[[Any], Any]


_RECORDS: dict[str, type[Any]] = {
    kind.__name__: kind
    for kind in (
        *(Checkpoint, ClosedRound, Contribution, DataUsed, InnerState, NodeScore, Origin),
        *(RejectedReply, RoundReport, Scored, SessionRecord),
    )
}
"""The records that are read back; each is written as its class's name and its fields."""
_KINDS = {
    "dict": _Kind(dict, lambda value: [list(pair) for pair in value.items()], dict),
    "tuple": _Kind(tuple, list, tuple),
    "set": _Kind(set, list, set),
    "frozenset": _Kind(frozenset, list, frozenset),
    "bytes": _Kind(bytes, lambda value: np.frombuffer(value, np.uint8), np.ndarray.tobytes),
    "time": _Kind(datetime, datetime.isoformat, datetime.fromisoformat),
    "stage": _Kind(Stage, str, Stage),
    "flower": _Kind(Array, view, Array),
    "arrays": _Kind(ArrayRecord, dict, ArrayRecord),
    "metrics": _Kind(MetricRecord, dict, MetricRecord),
    "config": _Kind(ConfigRecord, dict, ConfigRecord),
}
_NAMES = {kind.type: name for name, kind in _KINDS.items()}


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

    def put(array: np.ndarray) -> str:
        if array.dtype.name not in _DTYPES:
            raise NotPlainError(f"it holds an array of {array.dtype}")
        if arrays is None:
            raise NotPlainError("it holds an array")
        key = f"{name}#{len(arrays)}"
        arrays[key] = array
        return key

    def write(value: object, depth: int = 0) -> Any:
        if depth > MAX_DEPTH:
            raise NotPlainError("it is nested too deeply")
        if arrays is None and isinstance(value, np.generic):
            value = value.item()
        if value is None or type(value) in (bool, int, float, str):
            return value
        if type(value) is list:
            return [write(each, depth + 1) for each in value]
        if type(value) is np.ndarray or isinstance(value, np.generic):
            return {"array" if type(value) is np.ndarray else "number": put(np.asarray(value))}
        if arrays is None and type(value) is bytes:
            return {"base64": b64encode(value).decode()}
        kind = type(value).__name__
        if type(value) is _RECORDS.get(kind):
            return {kind: {key: write(field, depth + 1) for key, field in vars(value).items()}}
        kind = _NAMES.get(type(value), "")
        if not kind:
            raise NotPlainError(f"it is a {type(value).__name__}")
        try:
            return {kind: write(_KINDS[kind].simpler(value), depth + 1)}
        except ArrayError as error:
            raise NotPlainError(f"it holds an array that {error}") from error

    return write(value)


def encode_each(values: Mapping[str, object]) -> dict[str, Encoded | None]:
    """Return values as JSON with copies of their arrays, by name; None if one cannot be written."""
    encoded: dict[str, Encoded | None] = {}
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

    def read(text: Any) -> Any:
        if isinstance(text, list):
            return [read(each) for each in text]
        if not isinstance(text, dict):
            return text
        ((kind, inside),) = text.items()
        if kind == "base64":
            return b64decode(inside, validate=True)
        if kind in ("array", "number"):
            array = (arrays or {})[inside]
            return array.copy() if kind == "array" else array[()]
        if kind in _RECORDS:
            return _RECORDS[kind](**{name: read(value) for name, value in inside.items()})
        return _KINDS[kind].back(read(inside))

    try:
        return read(text)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise NotPlainError(f"it cannot be read back: {type(error).__name__}") from error


def write_file(path: Path, value: object) -> None:
    """Write a value as a JSON file, whole or not at all; raises CheckpointError."""
    content = json.dumps(encode(value)).encode()
    with disk_errors(f"{path} could not be written"):
        write_whole(path, content)


def read_file(path: Path, kind: type[T]) -> T:
    """Return the value that `write_file` has written, of this type; raises CheckpointError."""
    with disk_errors(f"{path} is damaged or cannot be read"):
        value = decode(json.loads(path.read_bytes()))
        if not isinstance(value, kind):
            raise NotPlainError(f"it has no {kind.__name__}")
        return value


@contextmanager
def disk_errors(doing: str) -> Iterator[None]:
    """Turn the errors of a disk, or of a damaged file, in the block into a CheckpointError."""
    try:
        yield
    except (OSError, MemoryError, WeightsError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise CheckpointError(f"{doing} ({reason})") from error
