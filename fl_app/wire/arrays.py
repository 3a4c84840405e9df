# SPDX-License-Identifier: Apache-2.0
"""Models as Flower sends them: views of their arrays, checks of the values, layout and schema.

Nothing is copied or executed.
"""

from __future__ import annotations

import math
import re
import weakref
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import lru_cache
from io import BytesIO
from typing import Literal, NamedTuple

import numpy as np
from flwr.app import Array, ArrayRecord

from fl_registry.redaction import one_line

STYPE = "numpy.ndarray"
"""Flower's name for the serialization by `numpy.save`."""
_Row = tuple[str, str, tuple[int, ...], int]
"""How an array is serialized, the dtype and the shape that it says it has, and its bytes."""
_HEADER_LENGTH = {b"\x01\x00": 2, b"\x02\x00": 4, b"\x03\x00": 4}  # bytes of the field, by version
_MAX_HEADER = 10_000  # as in numpy
_NUMBER = rb"(?:0|[1-9][0-9]{0,17})"
# No two parts that can match the same blanks are neighbours, so that the time is linear.
_HEADER = re.compile(
    rb"\{ *'descr': *'([<>|=]?[biufc][0-9]{1,2})', *'fortran_order': *(True|False),"
    rb" *'shape': *\( *+((?:N *+, *+)*+(?:N *+)?+)\),? *\} *\n?".replace(b"N", _NUMBER)
)
_MAX_AXES = 64  # as in numpy
_KINDS = {kind: "i" if kind == "u" else kind for kind in "biufc"}
_WIDEST = 8
_EXACT = 2**53
"""The largest integer up to which float64, in which integers are averaged, is exact."""
_LARGEST = {size: np.finfo(f"f{size}").max for size in (4, 8, np.longdouble(0).itemsize)}
"""Largest float by size in bytes, of the floats that are precise enough to be squared."""
MAX_NAME = 200  # characters of a name that a node chose
MAX_FIRST = 4_000
"""Arrays of a first model, which nodes make: there is no other to compare theirs with."""
SMALL = 16_384
"""Bytes of an array up to which it is read together with others."""


class ArrayError(ValueError):
    """An array is invalid; the text says why, without the array's name."""


class OtherArrayError(ArrayError):
    """An array has another shape or another kind of numbers than expected."""


def quoted(name: str) -> str:
    """Return a name that a node chose in quotation marks, safe for a log."""
    return f"'{one_line(name[:MAX_NAME], 60)}'"


def view(array: Array) -> np.ndarray:
    """Return the values of ``array``, read-only, without a copy, in their memory order.

    The payload must be exactly what ``numpy.save`` writes for numbers. Its header is matched by a
    pattern and never evaluated.

    Raises
    ------
    ArrayError
        The payload is anything else, or differs from the array's dtype or shape.
    """
    header = _header_of(array.data)
    dtype, order, shape = _checked(header, *_row(array))
    return np.frombuffer(array.data, dtype, -1, len(header)).reshape(shape, order=order)


def _row(array: Array) -> _Row:
    return array.stype, array.dtype, array.shape, len(array.data)


def _checked(
    header: bytes, stype: str, said: str, shape: tuple[int, ...], size: int
) -> tuple[np.dtype, Literal["C", "F"], tuple[int, ...]]:
    """Return dtype, order and shape of an array by its header; raise ArrayError if it differs."""
    if stype != STYPE:
        raise ArrayError(f"is serialized as {stype!r}, expected {STYPE!r}")
    dtype, name, order, held = _read_header(header)
    if tuple(shape) != held or said != name:
        raise ArrayError(f"says it is {said!r} of shape {shape}, but holds {dtype} of shape {held}")
    count, expected = size - len(header), math.prod(held) * dtype.itemsize
    if count != expected:
        raise ArrayError(f"has {count} bytes of values, expected {expected}")
    return dtype, order, held


def _header_of(data: bytes) -> bytes:
    """Return NumPy's header before the values; raise ArrayError if there is none."""
    field = _HEADER_LENGTH.get(data[6:8])
    if data[:6] != b"\x93NUMPY" or field is None or len(data) < 8 + field:
        raise ArrayError("does not begin as numpy's format does")
    start = 8 + field + int.from_bytes(data[8 : 8 + field], "little")
    if start > _MAX_HEADER or start > len(data):
        raise ArrayError(f"has a header of {start} bytes")
    return data[:start]


@lru_cache(maxsize=1024)
def _read_header(header: bytes) -> tuple[np.dtype, str, Literal["C", "F"], tuple[int, ...]]:
    """Return dtype, its name, order, and shape."""
    match = _HEADER.fullmatch(header, 8 + _HEADER_LENGTH[header[6:8]])
    if match is None:
        raise ArrayError("does not hold plain numbers, or has a header that numpy does not write")
    try:
        dtype = np.dtype(match[1].decode())
    except TypeError:
        raise ArrayError(f"holds numbers of an unknown kind {match[1].decode()!r}") from None
    if (axes := match[3].count(b",")) > _MAX_AXES:
        raise ArrayError(f"has {axes} axes, numpy has at most {_MAX_AXES}")
    shape = tuple(int(size) for size in match[3].split(b",") if size.strip())
    return dtype, str(dtype), "F" if match[2] == b"True" else "C", shape


@lru_cache(maxsize=1024)
def header_for(dtype: np.dtype, shape: tuple[int, ...], order: Literal["C", "F"]) -> bytes:
    """Return the header that ``numpy.save`` writes before such values."""
    written, descr = BytesIO(), np.lib.format.dtype_to_descr(dtype)
    header = {"descr": descr, "fortran_order": order == "F", "shape": shape}
    np.lib.format.write_array_header_1_0(written, header)
    return written.getvalue()


class ViewedArray(Array):
    """An array whose values are read by `view`, on any thread.

    Flower's own reader parses NumPy's header as Python, which Python before 3.11.8 and 3.12.2
    cannot do on two threads at once (its issue 106905): one of them may get a ``SystemError``.
    """

    def numpy(self) -> np.ndarray:
        """Return a writable copy of the values."""
        return view(self).copy(order="K")


def viewed(arrays: ArrayRecord) -> ArrayRecord:
    """Return the same arrays, for reading on another thread than Flower's."""
    record = arrays.copy()
    for name, array in arrays.items():
        if array.stype == STYPE:
            record[name] = ViewedArray(array.dtype, array.shape, array.stype, array.data)
    return record


# Whether values may be averaged.


def require_like(values: np.ndarray, dtype: np.dtype) -> float:
    """Require values that may be averaged with a model's array of this dtype.

    They must be of the same kind (floats, integers, booleans), finite, and so small that neither
    an average nor the sum of their squares overflows the dtype.

    Returns
    -------
    float
        The sum of the squares of floats of at least 32 bits; of others 0.

    Raises
    ------
    ArrayError
        They are not.
    """
    kind, expected = _KINDS[values.dtype.kind], _KINDS[dtype.kind]
    if kind != expected or values.itemsize > max(_WIDEST, dtype.itemsize):
        raise OtherArrayError(f"holds {values.dtype}, expected {dtype}")
    if kind == "b":
        if values.size and values.view(np.uint8).max() > 1:
            raise ArrayError("holds bytes that are neither true nor false")
    elif kind == "i":
        if values.size and (values.dtype != dtype or dtype.itemsize == _WIDEST):
            limits, least, greatest = np.iinfo(dtype), int(values.min()), int(values.max())
            low, high = max(int(limits.min), -_EXACT), min(int(limits.max), _EXACT)
            if least < low or greatest > high:
                raise ArrayError(f"has values from {least} to {greatest}, expected {low} to {high}")
    else:
        squares = _squares(values, dtype)
        if math.isfinite(squares):
            return squares
        require_finite(values, dtype)
        raise ArrayError(f"is too large: {dtype} cannot hold the square of its norm")
    return 0.0


def require_finite(values: np.ndarray, dtype: np.dtype) -> None:
    """Require that ``values`` are finite, also after a conversion to ``dtype``.

    Raises
    ------
    ArrayError
        They are not.
    """
    if not values.size or (values.dtype.kind in "fc" and math.isfinite(_squares(values, dtype))):
        return
    if not np.isfinite(values).all():
        raise ArrayError("is not finite")
    if values.dtype != dtype and dtype.kind in "iuf":
        limits = np.finfo(dtype) if dtype.kind == "f" else np.iinfo(dtype)
        if values.min() < limits.min or values.max() > limits.max:
            raise ArrayError(f"has values that {dtype} cannot hold")


def _squares(values: np.ndarray, dtype: np.dtype) -> float:
    """Return the sum of all squares, infinite if `dtype` cannot hold it; reads each value once.

    Of complex numbers and of half precision, which cannot hold squares, it is 0 if all are finite.
    """
    # A finite value is not enough: one reply with 1e30 in float32 makes the second moment of
    # FedAdam infinite, and the model never changes again.
    if values.dtype.kind != "f" or dtype.kind != "f":
        return 0.0 if values.dtype == dtype and np.isfinite(values).all() else math.inf
    if min(values.itemsize, dtype.itemsize) < 4:
        largest = np.abs(values).max(initial=0)
        return 0.0 if largest <= np.finfo(dtype).max and np.isfinite(largest) else math.inf
    flat = values.ravel(order="K")
    squares = np.dot(flat, flat)
    return float(squares) if squares <= _LARGEST[dtype.itemsize] else math.inf


# The layout of a model. A call costs more than a small array: all small arrays of one dtype are
# checked, or added, together.


class Stored(NamedTuple):
    """The layout of one array: its place among the model's, how it is stored, and its header."""

    place: int
    name: str
    shape: tuple[int, ...]
    order: Literal["C", "F"]
    header: bytes


class Piece(NamedTuple):
    """Arrays that are read together: a large one, or small ones of one dtype."""

    arrays: Sequence[Stored]
    dtype: np.dtype

    def of_bytes(self, data: Sequence[bytes]) -> np.ndarray:
        """Return the flat values of the arrays, from the bytes of a model with this layout."""
        first = self.arrays[0]
        if len(self.arrays) == 1:
            return np.frombuffer(data[first.place], self.dtype, -1, len(first.header))
        values = [data[each.place][len(each.header) :] for each in self.arrays]
        return np.frombuffer(b"".join(values), self.dtype)

    def read(self, model: ArrayRecord) -> np.ndarray:
        """Return the same of a model with another layout, or raise ArrayError."""
        flat = []
        for each in self.arrays:
            values = view(model[each.name])
            if values.shape != each.shape:
                raise ArrayError(f"has shape {values.shape}, expected {each.shape}")
            flat.append(values.ravel(order=each.order))
        return np.concatenate(flat) if flat[1:] else flat[0]


def layout_of(model: ArrayRecord) -> ArrayLayout:
    """Return the layout of a model: the same object for all models that have it.

    So whoever reads a model next knows what was read of it last.

    Raises
    ------
    ArrayError
        If one of its arrays does not hold plain numbers.
    """
    headers = tuple([_header_of(array.data) for array in model.values()])
    return _layout(tuple(model), tuple([_row(array) for array in model.values()]), headers)


@lru_cache(maxsize=4)
def _layout(
    names: tuple[str, ...], rows: tuple[_Row, ...], headers: tuple[bytes, ...]
) -> ArrayLayout:
    return ArrayLayout(names, rows, headers)


class ArrayLayout:
    """The layout of a model's arrays, by which models are read in few pieces; see `layout_of`."""

    def __init__(
        self, names: Sequence[str], rows: Sequence[_Row], headers: Sequence[bytes]
    ) -> None:
        pieces: dict[tuple[np.dtype, str | None], list[Stored]] = {}
        for place, (name, row, header) in enumerate(zip(names, rows, headers, strict=True)):
            dtype, order, shape = _checked(header, *row)
            alone = name if row[-1] - len(header) > SMALL else None
            stored = Stored(place, name, shape, order, header)
            pieces.setdefault((dtype, alone), []).append(stored)
        self.names, self._rows, self._headers = [*names], [*rows], headers
        self.pieces = [Piece(arrays, dtype) for (dtype, _), arrays in pieces.items()]
        self._last: tuple[weakref.ref[ArrayRecord], list[bytes], list[np.ndarray]] | None = None

    def read_alike(self, model: ArrayRecord) -> list[np.ndarray] | None:
        """Return the flat values of each piece; None if the model has another layout.

        Large arrays are not copied. What was read last is known until the model is gone.
        """
        data = [array.data for array in model.values()]
        last = self._last
        if last is not None and last[0]() is model and data == last[1]:
            return last[2]
        if [*model] != self.names or [_row(array) for array in model.values()] != self._rows:
            return None
        if not all(map(bytes.startswith, data, self._headers)):
            return None
        pieces = [piece.of_bytes(data) for piece in self.pieces]
        self._last = weakref.ref(model, self._forget), data, pieces
        return pieces

    def _forget(self, _: object) -> None:
        self._last = None

    def read(self, model: ArrayRecord) -> list[np.ndarray]:
        """Return the flat values of each piece, whatever the layout of the model.

        Raises
        ------
        ArrayError
            If arrays of these names and shapes are not what the model has.
        """
        values = self.read_alike(model)
        if values is not None:
            return values
        if model.keys() != {*self.names}:
            raise ArrayError(f"is not in both: {model.keys() ^ {*self.names}}")
        return [piece.read(model) for piece in self.pieces]

    def norm(self, model: ArrayRecord) -> float | None:
        """Return the L2 norm over all floats of a model whose values may be averaged.

        None if it has another layout, or values that may not (`require_like`).
        """
        pieces = self.read_alike(model)
        if pieces is None:
            return None
        try:
            with np.errstate(all="ignore"):  # an overflow is found in its result
                return math.sqrt(math.fsum(require_like(each, each.dtype) for each in pieces))
        except ArrayError:
            return None


# The schema of a model, and comparisons with it.

Schema = Mapping[str, tuple[np.dtype, tuple[int, ...]]]
"""Dtype and shape of each array by name, in order."""


def schema_of(arrays: ArrayRecord) -> Schema:
    """Return the schema of a model."""
    return {name: (np.dtype(a.dtype), tuple(a.shape)) for name, a in arrays.items()}


def fits(arrays: ArrayRecord, schema: Schema) -> bool:
    """Return whether arrays belong to the model; a document may have any length."""
    return not difference(schema_of(arrays), schema)


def difference(actual: Schema, expected: Schema) -> str:
    """Describe how the arrays of one model differ from those of another; empty if they do not."""
    if names := other_names(actual, expected):
        return names
    other = [name for name in expected if actual[name] != expected[name]]
    if other and not (is_document(actual) and is_document(expected)):
        rows = (f"{d} {list(shape)}" for d, shape in (actual[other[0]], expected[other[0]]))
        more = f", and {len(other) - 1} more differ" if len(other) > 1 else ""
        return f"its {quoted(other[0])} is {' and not '.join(rows)}{more}"
    return "" if list(actual) == list(expected) else "its arrays are in another order"


def other_names(actual: Collection[str], expected: Collection[str]) -> str:
    """Describe which names of arrays are missing and which are unknown; empty if none are."""
    differ = {"lacks": {*expected} - {*actual}, "has": {*actual} - {*expected}}
    parts = [f"{verb} {_some(names)}" for verb, names in differ.items() if names]
    return f"it {' and '.join(parts)}" if parts else ""


def _some(names: Iterable[str]) -> str:
    first, *rest = sorted(names)
    return f"{quoted(first)} and {len(rest)} more" if rest else quoted(first)


def is_document(schema: Schema) -> bool:
    """Return whether a model is one array of bytes of any length, such as XGBoost's trees."""
    (dtype, shape), *others = schema.values() or [(np.dtype("f4"), ())]
    return not others and dtype == np.uint8 and len(shape) == 1


def array_rows(schema: Schema) -> tuple[tuple[str, str, tuple[int, ...] | None], ...]:
    """Return name, dtype and shape of a model's arrays, in order; no shape for a document."""
    free = is_document(schema)
    return tuple((n, str(d), None if free else tuple(s)) for n, (d, s) in schema.items())


def model_values(
    arrays: ArrayRecord, schema: Schema, require: Callable[[np.ndarray, np.dtype], object]
) -> dict[str, np.ndarray]:
    """Return the values of a model's arrays by name, each checked against its dtype.

    A document may have any length, other arrays have the shapes of the schema. A server that starts
    without a model has no schema; then there must be arrays, of any names and shapes.

    Parameters
    ----------
    arrays : ArrayRecord
        What is to be a model.
    schema : Schema
        The schema of the model.
    require : Callable
        Checks values and dtype: `require_like` or `require_finite`.

    Raises
    ------
    OtherArrayError
        There are other arrays than the model has, or of other shapes or kinds.
    ArrayError
        An array cannot be read, or ``require`` raised.
    """
    if not arrays and not schema:
        raise OtherArrayError("it has no arrays, and the server has no model yet")
    if not schema and len(arrays) > MAX_FIRST:
        raise OtherArrayError(
            f"it has {len(arrays)} arrays, expected at most {MAX_FIRST}; give start() the "
            "initial_arrays of a larger model"
        )
    if schema and (why := other_names(arrays.keys(), schema.keys())):
        raise OtherArrayError(f"its arrays are not the model's: {why}")
    checked, document = {}, is_document(schema)
    for name, array in arrays.items():
        try:
            values = checked[name] = view(array)
            dtype, shape = schema.get(name, (values.dtype, values.shape))
            is_bytes = values.dtype == np.uint8 and values.ndim == 1
            if values.shape != shape and not (document and is_bytes):
                raise OtherArrayError(f"has shape {values.shape}, expected {shape}")
            with np.errstate(all="ignore"):  # an overflow is found in its result
                require(values, dtype)
        except ArrayError as error:
            raise type(error)(f"array {quoted(name)} {error}") from None
    return checked


def restore_dtypes(arrays: ArrayRecord, schema: Schema) -> ArrayRecord:
    """Return a model in the order of its schema, integers, which averages make float64, as such.

    Values are rounded to the nearest integer, as a truncated 11.999 would count one step less.
    """
    restored = ArrayRecord()  # filled, since ArrayRecord(arrays) makes each array anew
    for name, (dtype, _) in schema.items():
        array = arrays[name]
        if np.dtype(array.dtype) != dtype:
            values = view(array)
            rounded = np.rint(values) if np.issubdtype(dtype, np.integer) else values
            array = Array(np.asarray(rounded, dtype=dtype))
        restored[name] = array
    return restored
