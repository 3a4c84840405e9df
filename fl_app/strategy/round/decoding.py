# SPDX-License-Identifier: Apache-2.0
"""Decodes replies whose arrays are encoded as compressed updates; pure."""

from __future__ import annotations

from functools import cached_property

from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from fl_app.strategy.round.replies import ReplyError
from fl_app.wire.arrays import STYPE, ArrayError, quoted, view
from fl_app.wire.compressed_update import (
    SERIALIZED_AS,
    UPDATE_RECORD,
    UpdateError,
    UpdateHeader,
    decode,
    fingerprint,
    read_header,
)


class SentModel:
    """The arrays that the nodes of a round were sent.

    Parameters
    ----------
    arrays : ArrayRecord
        The global model.
    """

    def __init__(self, arrays: ArrayRecord) -> None:
        self.arrays = arrays

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
    ReplyError
        If the encoding is malformed, or the difference is to another model.
    """
    record = content.get(UPDATE_RECORD)
    if not isinstance(record, ConfigRecord):
        return content
    records = [(key, value) for key, value in content.items() if isinstance(value, ArrayRecord)]
    if len(records) != 1:
        raise ReplyError(f"it has {len(records)} ArrayRecords, expected exactly one")
    ((key, arrays),) = records
    try:
        header = read_header(record)
    except UpdateError as error:
        raise ReplyError(f"its update {error}") from None
    if header.base != sent.fingerprint:
        raise ReplyError("its update is the difference to another model than it was sent")
    others = {k: v for k, v in content.items() if k != UPDATE_RECORD}
    return RecordDict({**others, key: _decoded(arrays, header, sent.arrays)})


def _decoded(arrays: ArrayRecord, header: UpdateHeader, model: ArrayRecord) -> ArrayRecord:
    foreign = sorted(header.scales.keys() - (arrays.keys() & model.keys()))
    if foreign:
        raise ReplyError(f"its update claims to hold {quoted(foreign[0])}, and does not")
    made = ArrayRecord()
    for name, array in arrays.items():
        try:
            made[name] = (
                _plain(array, header, model[name], name) if name in header.scales else array
            )
        except (ArrayError, UpdateError) as error:
            raise ReplyError(f"array {quoted(name)} {error}") from None
    return made


def _plain(array: Array, header: UpdateHeader, sent: Array, name: str) -> Array:
    if array.stype != SERIALIZED_AS:
        raise UpdateError(f"is serialized as {array.stype!r:.60}, expected {SERIALIZED_AS!r}")
    values, base = view(Array(array.dtype, array.shape, STYPE, array.data)), view(sent)
    if base.dtype.kind != "f" or values.shape != base.shape:
        raise UpdateError(f"is encoded in shape {values.shape} for {base.dtype} of {base.shape}")
    if values.dtype != header.encoding.dtype:
        raise UpdateError(f"holds {values.dtype}, expected {header.encoding.dtype}")
    return Array(decode(values, header.scales[name], base))
