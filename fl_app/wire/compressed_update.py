# SPDX-License-Identifier: Apache-2.0
"""Compressed model updates: the arithmetic, the record that describes them, and their decoding."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from fl_app.wire.arrays import STYPE, ArrayError, quoted, view

UPDATE_RECORD = "update-encoding"
"""Key of the ConfigRecord in a train reply whose arrays are encoded."""
VERSION = 1
SERIALIZED_AS = "fl-app.update"
"""``Array.stype`` of an encoded array: a server that does not support it raises an error."""

_LEVELS = 127
_CHANNEL = 16
"""Fewest values of a channel for a scale of its own."""
_HALF_EXPONENT = 15
_SCALE = np.dtype("<f4")


class UpdateError(ArrayError):
    """An update cannot be encoded or is badly encoded; the text says why."""


class Encoding(StrEnum):
    """The form in which the difference to the model is sent.

    Attributes
    ----------
    FLOAT16 : str
        Half precision, two bytes a value.
    INT8 : str
        Whole multiples of a scale for each channel, one byte a value.
    """

    FLOAT16 = "float16"
    INT8 = "int8"

    @property
    def dtype(self) -> np.dtype:
        """The dtype of the encoded values."""
        return np.dtype("<f2" if self is Encoding.FLOAT16 else "i1")


@dataclass(frozen=True)
class UpdateHeader:
    """The description of a reply's encoded arrays.

    Attributes
    ----------
    encoding : Encoding
        The form of the encoded arrays.
    base : int
        CRC-32 of the model to which they are the difference.
    scales : Mapping[str, np.ndarray]
        Scales by the names of the encoded arrays, of shape (1,) or (channels,). All other arrays
        are not encoded.
    """

    encoding: Encoding
    base: int
    scales: Mapping[str, np.ndarray]

    def to_record(self) -> dict[str, Any]:
        """Return the fields of the ConfigRecord; scales are little-endian float32."""
        return {
            "version": VERSION,
            "encoding": str(self.encoding),
            "base": self.base,
            "arrays": list(self.scales),
            "scales": [np.asarray(scale, _SCALE).tobytes() for scale in self.scales.values()],
        }


def read_header(record: Mapping[str, Any], *, most: int) -> UpdateHeader:
    """Read and validate the description of a reply's encoded arrays.

    Parameters
    ----------
    record : Mapping[str, Any]
        The ConfigRecord of the reply.
    most : int
        Arrays that the model has; of more, none is looked at.

    Raises
    ------
    UpdateError
        It is of another version or malformed.
    """
    field: Callable[[str], Any] = record.get
    if any(isinstance(value, list) and len(value) > most for value in record.values()):
        raise UpdateError(f"lists more arrays than the {most} of the model")
    version, encoding, base = map(field, ("version", "encoding", "base"))
    names, scales = map(field, ("arrays", "scales"))
    if version != VERSION:
        raise UpdateError(f"is encoded in version {version!r:.20}, this server supports {VERSION}")
    if encoding not in [*Encoding]:
        known = [*map(str, Encoding)]
        raise UpdateError(f"is encoded as {encoding!r:.40}, expected one of {known}")
    if not isinstance(base, int):
        raise UpdateError("does not name the model to which it is the difference")
    if not _is_list(names, str) or not _is_list(scales, bytes) or len(names) != len(scales):
        raise UpdateError("does not list which arrays are encoded, and the scales of each")
    if len(set(names)) != len(names):
        raise UpdateError("names an array twice")
    if any(not scale or len(scale) % _SCALE.itemsize for scale in scales):
        raise UpdateError("has scales that are no float32 numbers")
    read = (np.frombuffer(scale, _SCALE) for scale in scales)
    return UpdateHeader(Encoding(encoding), base, dict(zip(names, read, strict=True)))


def _is_list(values: Any, kind: type) -> bool:
    return isinstance(values, list) and all(type(value) is kind for value in values)


def encode(
    values: np.ndarray, base: np.ndarray, encoding: Encoding, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray] | None:
    """Return the difference of ``values`` to ``base`` in a compressed form, and its scales.

    For ``INT8`` the scale of a channel (the first axis) is its largest absolute difference / 127,
    and each value is rounded up or down at random, so that its expectation is the exact value:
    the quantiser of D. Alistarh et al., QSGD (NeurIPS 2017), section 3.1, with the maximum for
    the norm as in their section 5, and 127 levels. For ``FLOAT16`` the scale is a power of two
    that brings the largest difference to 2**14 or more, so that none overflows and as few as
    possible are subnormal.

    Parameters
    ----------
    values, base : np.ndarray
        The node's array after training, and the one that it received: floats of one shape.
    encoding : Encoding
        The form.
    random : np.random.Generator
        Source of the random rounding.

    Returns
    -------
    tuple[np.ndarray, np.ndarray] | None
        An array of the same shape and ``encoding.dtype``, and float32 scales of shape (1,) or
        (channels,). None for arrays that are sent unchanged: those that are no floats or have less
        than two axes (biases, and variances that rounding must not make negative), and those whose
        scale does not fit float32.

    Raises
    ------
    UpdateError
        A difference is not finite.
    """
    if values.dtype.kind != "f" or base.dtype.kind != "f":
        return None
    # The difference and not the weights: its largest value is some hundredths of theirs, so the
    # same number of bits resolves it more finely. A scale per channel costs 1 % of the bytes.
    with np.errstate(all="ignore"):
        difference = np.subtract(values, base, dtype=_working(base.dtype))
    if not np.isfinite(difference).all():
        raise UpdateError("is not finite")
    # Arrays of one axis are 1 % of a YOLOv8n's bytes, and a rounded variance may become negative.
    if difference.ndim < 2 or not difference.size:
        return None
    if encoding is Encoding.FLOAT16:
        return _to_float16(difference)
    return _to_int8(difference, random)


def _to_int8(
    difference: np.ndarray, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray] | None:
    channels = len(difference)
    rows = difference.reshape(channels if difference.size >= _CHANNEL * channels else 1, -1)
    largest = np.maximum(rows.max(axis=1), -rows.min(axis=1))
    if largest.max() > np.finfo(_SCALE).max:
        return None
    # The next float up: otherwise rounding could give level 128, and a scale could be 0.
    scale = np.nextafter((largest / _LEVELS).astype(_SCALE), _SCALE.type(np.inf))
    rows = rows / scale[:, None]
    # Random rounding with the exact mean needs no error feedback (Seide et al. 2014; Karimireddy et
    # al. 2019). That would add this round's residual to the next update, which may be hours later,
    # of another model, or after a reply that was rejected or clipped.
    rows += random.random(rows.shape, dtype=np.float32)
    np.floor(rows, out=rows)
    np.clip(rows, -_LEVELS, _LEVELS, out=rows)
    return rows.astype(np.int8).reshape(difference.shape), scale


def _to_float16(difference: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    largest = max(float(difference.max()), -float(difference.min()))
    exponent = max(math.frexp(largest)[1] - _HALF_EXPONENT, np.finfo(_SCALE).minexp)
    if exponent >= np.finfo(_SCALE).maxexp:
        return None
    scale = difference.dtype.type(2.0**exponent)
    return (difference / scale).astype("<f2"), np.array([scale], _SCALE)


def _working(dtype: np.dtype) -> np.dtype:
    """Return the dtype for calculations with a model of that dtype."""
    return np.promote_types(dtype, np.float32)


def fingerprint(data: Mapping[str, bytes]) -> int:
    """Return a CRC-32 of a model's serialized arrays and names; it does not detect attacks."""
    # A difference to another model would decode to arrays of the right shape and wrong values, for
    # example under a strategy that sends different models to nodes.
    crc = 0
    for name in sorted(data):
        crc = zlib.crc32(data[name], zlib.crc32(name.encode(), crc))
    return crc


@dataclass
class SentModel:
    """The arrays that the nodes of a round were sent."""

    arrays: ArrayRecord

    @cached_property
    def fingerprint(self) -> int:
        """The id of this model in encoded replies; computed once, when the first one arrives."""
        return fingerprint({name: array.data for name, array in self.arrays.items()})


def decode_update(content: RecordDict, sent: SentModel) -> RecordDict:
    """Return the content with the arrays that the node has, in the model's dtypes and shapes.

    Content that is not encoded is returned as it is. Decoding takes no more memory than the model
    has, whatever a reply claims.

    Raises
    ------
    UpdateError
        If the encoding is malformed, or the difference is to another model.
    """
    record = content.get(UPDATE_RECORD)
    if not isinstance(record, ConfigRecord):
        return content
    records = [(key, each) for key, each in content.items() if isinstance(each, ArrayRecord)]
    if len(records) != 1:
        raise UpdateError(f"it has {len(records)} ArrayRecords, expected exactly one")
    ((key, arrays),) = records
    try:
        header = read_header(record, most=len(sent.arrays))
    except UpdateError as error:
        raise UpdateError(f"its update {error}") from None
    if header.base != sent.fingerprint:
        raise UpdateError("its update is the difference to another model than it was sent")
    if foreign := sorted(header.scales.keys() - (arrays.keys() & sent.arrays.keys())):
        raise UpdateError(f"its update claims to hold {quoted(foreign[0])}, and does not")
    made = dict(arrays.items())
    for name, scale in header.scales.items():
        try:
            made[name] = _decoded(made[name], header.encoding, scale, view(sent.arrays[name]))
        except ArrayError as error:
            raise UpdateError(f"array {quoted(name)} {error}") from None
    others = {k: v for k, v in content.items() if k != UPDATE_RECORD}
    return RecordDict({**others, key: ArrayRecord(made)})


def _decoded(array: Array, encoding: Encoding, scale: np.ndarray, base: np.ndarray) -> Array:
    if array.stype != SERIALIZED_AS:
        raise UpdateError(f"is serialized as {array.stype!r:.60}, expected {SERIALIZED_AS!r}")
    values = view(Array(array.dtype, array.shape, STYPE, array.data))
    if base.dtype.kind != "f" or values.shape != base.shape:
        raise UpdateError(f"is encoded in shape {values.shape} for {base.dtype} of {base.shape}")
    if values.dtype != encoding.dtype:
        raise UpdateError(f"holds {values.dtype}, expected {encoding.dtype}")
    return Array(decode(values, scale, base))


def decode(values: np.ndarray, scale: np.ndarray, base: np.ndarray) -> np.ndarray:
    """Return the sum of ``base`` and the encoded difference, in the shape and dtype of ``base``.

    Raises
    ------
    UpdateError
        There is neither one scale nor one for each channel, or a scale is negative or not finite.
    """
    if scale.shape not in ((1,), base.shape[:1]):
        raise UpdateError(f"has {len(scale)} scales for shape {base.shape}")
    if not (np.isfinite(scale) & (scale >= 0)).all():
        raise UpdateError("has a scale that is negative or not finite")
    working = _working(base.dtype)
    with np.errstate(all="ignore"):  # screening rejects values that overflow here
        made = values.astype(working)
        made *= scale.reshape(-1, *(1,) * (made.ndim - 1)).astype(working)
        made += base
        return made.astype(base.dtype, copy=False)
