# SPDX-License-Identifier: Apache-2.0
"""Views of the values of Flower's ``Array``, and checks that they may be averaged.

Nothing is copied or executed.
"""

from __future__ import annotations

import math
import re
from functools import lru_cache
from io import BytesIO
from typing import Literal

import numpy as np
from flwr.app import Array, ArrayRecord

from fl_registry.redaction import one_line

STYPE = "numpy.ndarray"
"""Flower's name for the serialization by `numpy.save`."""
_HEADER_LENGTH = {b"\x01\x00": 2, b"\x02\x00": 4, b"\x03\x00": 4}  # bytes of the field, by version
_MAX_HEADER = 10_000  # as in numpy
_NUMBER = rb"(?:0|[1-9][0-9]{0,17})"
_HEADER = re.compile(
    rb"\{ *'descr': *'([<>|=]?[biufc][0-9]{1,2})', *'fortran_order': *(True|False),"
    rb" *'shape': *\(((?: *N *,)+ *N? *| *)\),? *\} *\n?".replace(b"N", _NUMBER)
)
_WIDEST = 8
_EXACT = 2**53
"""The largest integer up to which float64, in which integers are averaged, is exact."""


class ArrayError(ValueError):
    """An array is invalid; the text says why, without the array's name."""


class OtherArrayError(ArrayError):
    """An array has another shape or another kind of numbers than expected."""


MAX_NAME = 200  # characters of a name that a node chose


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
    if array.stype != STYPE:
        raise ArrayError(f"is serialized as {array.stype!r}, expected {STYPE!r}")
    header = header_of(array.data)
    dtype, name, fortran, shape = _read_header(header)
    if tuple(array.shape) != shape or array.dtype != name:
        raise ArrayError(
            f"says it is {array.dtype!r} of shape {array.shape}, but holds {dtype} of shape {shape}"
        )
    start, count = len(header), math.prod(shape)
    if len(array.data) - start != count * dtype.itemsize:
        raise ArrayError(
            f"has {len(array.data) - start} bytes of values, expected {count * dtype.itemsize}"
        )
    values = np.frombuffer(array.data, dtype, count, start)
    return values.reshape(shape, order="F" if fortran else "C")


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
    record = ArrayRecord()
    for name, array in arrays.items():
        known = array.stype == STYPE
        values = ViewedArray(array.dtype, array.shape, array.stype, array.data) if known else array
        record[name] = values
    return record


def header_of(data: bytes) -> bytes:
    """Return NumPy's header before the values; raise ArrayError if there is none."""
    field = _HEADER_LENGTH.get(data[6:8])
    if data[:6] != b"\x93NUMPY" or field is None or len(data) < 8 + field:
        raise ArrayError("does not begin as numpy's format does")
    start = 8 + field + int.from_bytes(data[8 : 8 + field], "little")
    if start > _MAX_HEADER or start > len(data):
        raise ArrayError(f"has a header of {start} bytes")
    return data[:start]


@lru_cache(maxsize=1024)
def header_for(dtype: np.dtype, shape: tuple[int, ...], order: Literal["C", "F"]) -> bytes:
    """Return the header that ``numpy.save`` writes before such values."""
    written = BytesIO()
    header = {
        "descr": np.lib.format.dtype_to_descr(dtype),
        "fortran_order": order == "F",
        "shape": shape,
    }
    np.lib.format.write_array_header_1_0(written, header)
    return written.getvalue()


@lru_cache(maxsize=1024)
def _read_header(header: bytes) -> tuple[np.dtype, str, bool, tuple[int, ...]]:
    """Return dtype, its name, whether the order is Fortran's, and shape."""
    match = _HEADER.fullmatch(header, 8 + _HEADER_LENGTH[header[6:8]])
    if match is None:
        raise ArrayError("does not hold plain numbers, or has a header that numpy does not write")
    try:
        dtype = np.dtype(match[1].decode())
    except TypeError:
        raise ArrayError(f"holds numbers of an unknown kind {match[1].decode()!r}") from None
    shape = tuple(int(size) for size in match[3].split(b",") if size.strip())
    return dtype, str(dtype), match[2] == b"True", shape


_LARGEST = {size: np.finfo(f"f{size}").max for size in (4, 8, np.longdouble(0).itemsize)}
"""Largest float by size in bytes, of the floats that are precise enough to be squared."""


def require_like(values: np.ndarray, dtype: np.dtype, shape: tuple[int, ...]) -> None:
    """Require values that may be averaged with a model's array of this dtype and shape.

    They must be of the same kind (floats, integers, booleans) and shape, finite, and so small that
    neither an average nor the sum of their squares overflows the dtype.

    Raises
    ------
    ArrayError
        They are not.
    """
    if values.shape != shape:
        raise OtherArrayError(f"has shape {values.shape}, expected {shape}")
    if _family(values.dtype) != _family(dtype) or values.dtype.itemsize > max(
        _WIDEST, dtype.itemsize
    ):
        raise OtherArrayError(f"holds {values.dtype}, expected {dtype}")
    if values.dtype.kind == "b":
        if values.size and values.view(np.uint8).max() > 1:
            raise ArrayError("holds bytes that are neither true nor false")
    elif values.dtype.kind in "iu":
        _require_range(values, dtype)
    elif not _squares_fit(values, dtype):
        require_finite(values, dtype)
        raise ArrayError(f"is too large: {dtype} cannot hold the square of its norm")


def require_finite(values: np.ndarray, dtype: np.dtype) -> None:
    """Require that ``values`` are finite, also after a conversion to ``dtype``.

    Raises
    ------
    ArrayError
        They are not.
    """
    if not values.size or (values.dtype.kind in "fc" and _squares_fit(values, dtype)):
        return
    if not np.isfinite(values).all():
        raise ArrayError("is not finite")
    if values.dtype != dtype and dtype.kind in "iuf":
        limits = np.finfo(dtype) if dtype.kind == "f" else np.iinfo(dtype)
        if values.min() < limits.min or values.max() > limits.max:
            raise ArrayError(f"has values that {dtype} cannot hold")


def is_bytes(values: np.ndarray) -> bool:
    """Return whether values are a one-dimensional array of bytes."""
    return values.dtype == np.uint8 and values.ndim == 1


def _squares_fit(values: np.ndarray, dtype: np.dtype) -> bool:
    """Return whether the sum of all squares is finite, and so each value; reads them once."""
    # A finite value is not enough: one reply with 1e30 in float32 makes the second moment of
    # FedAdam infinite, and the model never changes again.
    if values.dtype.kind != "f" or dtype.kind != "f":
        return bool(values.dtype == dtype and np.isfinite(values).all())
    if min(values.itemsize, dtype.itemsize) < 4:  # float16 cannot hold squares
        largest = np.abs(values).max(initial=0)
        return bool(largest <= np.finfo(dtype).max) and bool(np.isfinite(largest))
    flat = values.ravel(order="K")
    with np.errstate(all="ignore"):
        return bool(np.dot(flat, flat) <= _LARGEST[dtype.itemsize])


def _require_range(values: np.ndarray, dtype: np.dtype) -> None:
    if not values.size or (values.dtype == dtype and dtype.itemsize < 8):
        return
    limits = np.iinfo(dtype)
    low, high = max(int(limits.min), -_EXACT), min(int(limits.max), _EXACT)
    least, greatest = int(values.min()), int(values.max())
    if least < low or greatest > high:
        raise ArrayError(f"has values from {least} to {greatest}, expected {low} to {high}")


def _family(dtype: np.dtype) -> str:
    return "i" if dtype.kind == "u" else dtype.kind
