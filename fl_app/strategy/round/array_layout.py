# SPDX-License-Identifier: Apache-2.0
"""The layout of a model's arrays, by which models are read in few pieces; pure.

A call costs more than a small array. Therefore all small arrays of one dtype are checked, or added,
together.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from operator import attrgetter, eq
from typing import Literal, NamedTuple

import numpy as np
from flwr.app import Array, ArrayRecord

from fl_app.wire.arrays import ArrayError, header_of, view

SMALL = 16_384
"""Bytes of an array up to which it is read together with others."""
_KIND = attrgetter("dtype", "shape", "stype")


class Stored(NamedTuple):
    """The layout of one array: Flower's description of it, its header, and its length in bytes."""

    place: int
    name: str
    dtype: str
    shape: tuple[int, ...]
    stype: str
    header: bytes
    length: int

    @property
    def size(self) -> int:
        """The number of its values."""
        return math.prod(self.shape)

    @property
    def order(self) -> Literal["C", "F"]:
        """The order in which its values are stored."""
        return "F" if b"'fortran_order': True" in self.header else "C"

    def read(self, array: Array) -> np.ndarray:
        """Return the flat values of an array of the same shape, in the same order.

        Raises ArrayError if it has another shape.
        """
        values = view(array)
        if values.shape != self.shape:
            raise ArrayError(f"has shape {values.shape}, expected {self.shape}")
        return values.ravel(order=self.order)

    def array(self, data: bytes) -> Array:
        """Return an array like it with these bytes, header included."""
        return Array(self.dtype, self.shape, self.stype, data)


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

    def read(self, model: Mapping[str, Array]) -> np.ndarray:
        """Return the same of a model with another layout, or raise ArrayError."""
        flat = [each.read(model[each.name]) for each in self.arrays]
        return np.concatenate(flat) if flat[1:] else flat[0]


class ArrayLayout:
    """The layout of a model's arrays.

    Parameters
    ----------
    model : ArrayRecord
        Any model of the kind.

    Raises
    ------
    ArrayError
        If one of its arrays does not hold plain numbers.
    """

    def __init__(self, model: ArrayRecord) -> None:
        self.names = list(model)
        stored: list[Stored] = []
        pieces: dict[tuple[np.dtype, str | None], list[Stored]] = {}
        for place, (name, array) in enumerate(model.items()):
            values, header = view(array), header_of(array.data)
            kind, length = (array.dtype, values.shape, array.stype), len(array.data)
            stored.append(Stored(place, name, *kind, header, length))
            alone = name if values.nbytes > SMALL else None
            pieces.setdefault((values.dtype, alone), []).append(stored[-1])
        self.pieces = [Piece(arrays, dtype) for (dtype, _), arrays in pieces.items()]
        self._kinds = [_KIND(each) for each in stored]
        self._lengths = [each.length for each in stored]
        self._headers = [each.header for each in stored]

    def read_alike(self, model: ArrayRecord) -> list[np.ndarray] | None:
        """Return the flat values of each piece; None if the model has another layout.

        Large arrays are not copied.
        """
        data = [array.data for array in model.values()]
        alike = (
            [*model.keys()] == self.names
            and all(map(eq, map(_KIND, model.values()), self._kinds))
            and [*map(len, data)] == self._lengths
            and all(map(bytes.startswith, data, self._headers))
        )
        return [piece.of_bytes(data) for piece in self.pieces] if alike else None

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
        by_name = dict(model.items())
        return [piece.read(by_name) for piece in self.pieces]
