# SPDX-License-Identifier: Apache-2.0
"""All arrays of a record packed into one array, and back.

Flower sends each array as several objects of its own, one request after the other, at each of the
four hops between ServerApp and ClientApp. One long array needs a few requests only. Flower's
settings for more requests at once are private, and larger chunks do not join arrays.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, NamedTuple

from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from pydantic import Field, TypeAdapter

from fl_app.wire.arrays import MAX_FIRST

INDEX_RECORD = "packed-arrays"
"""Key of the ConfigRecord in a message whose arrays are packed."""
PACKED_AS = "fl-app.packed"
"""``Array.stype`` of packed arrays: an app that does not support them raises an error."""
VERSION = 1
_ANY_TEXT = 1 << 20
"""Characters of an index that answers none: of a first model, which nodes make."""
_SLACK = 1_000  # characters

_Size = Annotated[int, Field(ge=0)]


class PackingError(ValueError):
    """Packed arrays are malformed; the text says how."""


class _Row(NamedTuple):
    """One of the packed arrays; ``length`` is that of its data, in bytes."""

    name: str
    dtype: str
    shape: list[_Size]
    stype: str
    length: _Size


@dataclass(frozen=True)
class _Index:
    """The packed arrays by the key of their ArrayRecord."""

    version: int
    records: dict[str, list[_Row]]


_INDEX = TypeAdapter(_Index)

Known = dict[int, tuple[ArrayRecord, ArrayRecord, list[_Row]]]
"""By ``id()`` of a record: the record (it keeps the id valid), the packed one and its index."""


def is_packed(content: RecordDict) -> bool:
    """Whether the arrays of a message's content are packed."""
    return INDEX_RECORD in content


def pack(content: RecordDict, known: Known | None = None) -> RecordDict:
    """Return the content with one array in each of its ArrayRecords, and an index of that array.

    Parameters
    ----------
    content : RecordDict
        A message's content; it is not changed.
    known : Known | None
        ArrayRecords that were packed before; those of this content are added. Messages that share
        a record then share the packed one too.
    """
    known = {} if known is None else known
    made, index = RecordDict(), dict[str, list[_Row]]()
    for key, record in content.items():
        made[key] = record  # for the order of the records
        if isinstance(record, ArrayRecord):
            if id(record) not in known:
                data = b"".join(array.data for array in record.values())
                one = Array("uint8", (len(data),), PACKED_AS, data)
                rows = [
                    _Row(name, a.dtype, list(a.shape), a.stype, len(a.data))
                    for name, a in record.items()
                ]
                known[id(record)] = record, ArrayRecord({"packed": one}), rows
            _, made[key], index[key] = known[id(record)]
    if not index:
        return content
    text = _INDEX.dump_json(_Index(VERSION, index)).decode()
    made[INDEX_RECORD] = ConfigRecord({"index": text})
    return made


def unpack(content: RecordDict, sent: RecordDict | None = None) -> RecordDict:
    """Return the content with its arrays unpacked; content that is not packed is returned as it is.

    This takes no more memory than the content has, whatever its index says, and an index that is
    much larger than one of the model is not parsed.

    Parameters
    ----------
    content : RecordDict
        The content of a reply.
    sent : RecordDict | None
        The packed content that it answers.

    Raises
    ------
    PackingError
        The index is of another version, too large, or malformed.
    """
    if not is_packed(content):
        return content
    made, text = RecordDict(), _index_text(content)
    model = _index_text(sent or RecordDict())
    length = 2 * len(model) + _SLACK if model else _ANY_TEXT
    # Each row has two brackets, so that rows of an empty name are counted too.
    if len(text) > length or text.count("[") > 2 * (model.count("[") or MAX_FIRST):
        raise PackingError(f"has an index of {len(text)} characters, too many for the model")
    try:
        index = _INDEX.validate_json(text, strict=True)
    except ValueError:
        raise PackingError("has no readable index") from None
    if index.version != VERSION:
        raise PackingError(f"is of another version than {VERSION}, the one supported here")
    for key, record in content.items():
        if key != INDEX_RECORD:
            known = key in index.records
            made[key] = _unpacked(record, index.records.pop(key)) if known else record
    if index.records:
        raise PackingError(f"has an index of {len(index.records)} records that are not there")
    return made


def _index_text(content: RecordDict) -> str:
    record = content.get(INDEX_RECORD)
    text = record.get("index") if isinstance(record, ConfigRecord) else None
    return text if isinstance(text, str) else ""


def _unpacked(record: object, rows: list[_Row]) -> ArrayRecord:
    if not isinstance(record, ArrayRecord) or [a.stype for a in record.values()] != [PACKED_AS]:
        raise PackingError("has an index of a record that is not packed")
    (packed,) = record.values()
    if sum(row.length for row in rows) != len(packed.data):
        raise PackingError(f"has {len(packed.data)} bytes, its index says other lengths")
    made, start = dict[str, Array](), 0
    for row in rows:
        data = packed.data[start : start + row.length]
        made[row.name] = Array(row.dtype, tuple(row.shape), row.stype, data)
        start += row.length
    if len(made) != len(rows):
        raise PackingError("has an index that names an array twice")
    return ArrayRecord(made)
