# SPDX-License-Identifier: Apache-2.0
"""All arrays of a record as one array, and back; pure.

Flower passes each array on as objects of its own, one request after the other at each of the four
stages between ServerApp and ClientApp. One long array takes a few.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import astuple, dataclass
from typing import Any

from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

INDEX_RECORD = "packed-arrays"
"""Key of the ConfigRecord in a message whose arrays are packed."""
PACKED_AS = "fl-app.packed"
"""``Array.stype`` of packed arrays, so that an app that knows nothing of it reads none."""
VERSION = 1

Known = dict[int, tuple[ArrayRecord, ArrayRecord, list[Any]]]
"""By the identity of a record: the record, which keeps it valid, the packed one and its index."""


class PackingError(ValueError):
    """Packed arrays are malformed; the text says how."""


@dataclass(frozen=True)
class _Row:
    """One of the packed arrays, as the index has it; ``length`` is that of its data, in bytes."""

    name: str
    dtype: str
    shape: list[int]
    stype: str
    length: int


def is_packed(content: RecordDict) -> bool:
    """Whether the arrays of a message's content are packed."""
    return INDEX_RECORD in content


def pack(content: RecordDict, known: Known | None = None) -> RecordDict:
    """Return the content with one array in each of its ArrayRecords, and an index of what is in it.

    Parameters
    ----------
    content : RecordDict
        A message's content; it stays as it is.
    known : dict | None
        ArrayRecords that were packed before, by their identity, and this content's are put there:
        messages that share a record then share the packed one too.
    """
    known = {} if known is None else known
    made, index = RecordDict(), dict[str, list[Any]]()
    for key, record in content.items():
        made[key] = record
        if isinstance(record, ArrayRecord):
            if id(record) not in known:
                data = b"".join(array.data for array in record.values())
                one = Array("uint8", (len(data),), PACKED_AS, data)
                rows = [astuple(row) for row in _rows(record)]
                known[id(record)] = record, ArrayRecord({"packed": one}), rows
            _, made[key], index[key] = known[id(record)]
    if not index:
        return content
    text = json.dumps({"version": VERSION, "records": index})
    made[INDEX_RECORD] = ConfigRecord({"index": text})
    return made


def unpack(content: RecordDict) -> RecordDict:
    """Return what was packed; content that is not packed is returned as it is.

    No more memory is taken than the content has, whatever its index says.

    Raises
    ------
    PackingError
        If it is of another version, or malformed.
    """
    if not is_packed(content):
        return content
    made = RecordDict()
    index = _read_index(content[INDEX_RECORD])
    for key, record in content.items():
        if key != INDEX_RECORD:
            made[key] = _unpacked(record, index.pop(key)) if key in index else record
    if index:
        raise PackingError(f"has an index of {len(index)} records that are not there")
    return made


def _rows(arrays: ArrayRecord) -> Iterator[_Row]:
    for name, array in arrays.items():
        yield _Row(name, array.dtype, list(array.shape), array.stype, len(array.data))


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


def _read_index(record: object) -> dict[str, list[_Row]]:
    text = record.get("index") if isinstance(record, ConfigRecord) else None
    try:
        index: Any = json.loads(text) if isinstance(text, str) else None
        if index["version"] != VERSION:
            raise PackingError(f"is of another version than {VERSION}, which is understood here")
        return {key: [_row(*fields) for fields in rows] for key, rows in index["records"].items()}
    except PackingError:
        raise
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        raise PackingError("has no readable index") from None


def _row(name: object, dtype: object, shape: object, stype: object, length: object) -> _Row:
    if not (isinstance(name, str) and isinstance(dtype, str) and isinstance(stype, str)):
        raise TypeError
    if not isinstance(shape, list):
        raise TypeError
    if type(length) is not int or not all(type(n) is int and n >= 0 for n in (*shape, length)):
        raise TypeError
    return _Row(name, dtype, shape, stype, length)
