# SPDX-License-Identifier: Apache-2.0
"""The schema of a model (name, dtype and shape of each array), and comparisons with it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

import numpy as np
from flwr.app import Array, ArrayRecord

from fl_app.wire.arrays import ArrayError, OtherArrayError, is_bytes, quoted, require_finite, view

Schema = Mapping[str, tuple[np.dtype, tuple[int, ...]]]


def schema_of(arrays: ArrayRecord) -> Schema:
    """Return dtype and shape of each array by name, in order."""
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


def check_arrays(arrays: ArrayRecord, schema: Schema) -> None:
    """Require that an aggregate may become the model.

    A document may change its length, other arrays may not change their shape. A server that starts
    without a model has no schema; then there must be arrays, and all must be finite.

    Raises
    ------
    OtherArrayError
        The aggregate has other arrays than the model, or other shapes.
    ArrayError
        One of its arrays is not finite, or cannot be read.
    """
    if not arrays:
        raise OtherArrayError("the aggregate has no arrays")
    if schema and list(arrays) != list(schema):
        foreign = sorted(set(arrays) ^ set(schema))[:3]
        raise OtherArrayError(f"the aggregate has other arrays than the global model: {foreign}")
    document = is_document(schema)
    for name, array in arrays.items():
        try:
            values = view(array)
            dtype, shape = schema.get(name, (values.dtype, values.shape))
            if values.shape != shape and not (document and is_bytes(values)):
                raise OtherArrayError(f"has shape {values.shape}, expected {shape}")
            require_finite(values, dtype)
        except ArrayError as error:
            raise type(error)(f"the aggregate's {name!r} {error}") from None


def restore_dtypes(arrays: ArrayRecord, schema: Schema) -> ArrayRecord:
    """Convert averaged integer buffers, which are float64, back to their own dtype.

    Values are rounded to the nearest integer, as a truncated 11.999 would count one step less.
    """
    restored: dict[str, Array] = {}
    for name, array in arrays.items():
        dtype, _ = schema[name]
        if np.dtype(array.dtype) == dtype:
            restored[name] = array
            continue
        values = view(array)
        rounded = np.rint(values) if np.issubdtype(dtype, np.integer) else values
        restored[name] = Array(np.asarray(rounded, dtype=dtype))
    return ArrayRecord(restored)
