# SPDX-License-Identifier: Apache-2.0
"""ArrayLayout: a model read in few pieces, or slowly where another one stores it otherwise."""

from __future__ import annotations

import weakref

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord

from fl_app.wire.arrays import ArrayError, layout_of, model_values, require_finite, schema_of

LARGE = np.arange(6000, dtype=np.float32).reshape(60, 100)
SMALL = np.arange(6, dtype=np.float32).reshape(2, 3)
COUNT = np.asarray(7)


def model(**changed: np.ndarray | Array) -> ArrayRecord:
    arrays = {"a": SMALL, "large": LARGE, "b": SMALL + 1, "n": COUNT, **changed}
    made = {k: v if isinstance(v, Array) else Array(np.asarray(v)) for k, v in arrays.items()}
    return ArrayRecord(made)


LAYOUT = layout_of(model())


def lying(values: np.ndarray, dtype: str, stype: str = "numpy.ndarray") -> Array:
    return Array(dtype, values.shape, stype, Array(values).data)


def test_small_arrays_of_a_dtype_are_one_piece_and_large_ones_are_not_copied() -> None:
    other = model(large=LARGE * 2, b=SMALL + 5)
    found = LAYOUT.read_alike(other)
    assert found is not None
    small, large, count = found
    np.testing.assert_array_equal(small, [*SMALL.ravel(), *(SMALL + 5).ravel()])
    np.testing.assert_array_equal(large, (LARGE * 2).ravel())
    np.testing.assert_array_equal(count, [7])
    assert np.shares_memory(large, np.frombuffer(other["large"].data, np.uint8))


@pytest.mark.parametrize(
    "other",
    [
        model(large=np.asfortranarray(LARGE)),
        model(large=LARGE.astype(np.float64)),
        model(b=(SMALL + 1).astype(">f4")),
        ArrayRecord(dict(reversed(model().items()))),
    ],
    ids=["order of values", "precision", "order of bytes", "order of names"],
)
def test_what_is_stored_otherwise_has_the_same_values(other: ArrayRecord) -> None:
    assert LAYOUT.read_alike(other) is None
    for read, known in zip(LAYOUT.read(other), LAYOUT.read(model()), strict=True):
        np.testing.assert_array_equal(read, known)


@pytest.mark.parametrize(
    ("other", "told"),
    [
        (model(a=SMALL.ravel()), r"has shape \(6,\), expected \(2, 3\)"),
        (model(a=lying(SMALL, "float64")), "says it is 'float64'"),
        (model(a=lying(SMALL, "float32", "torch")), "is serialized as 'torch'"),
        (model(a=Array("float32", (2, 3), "numpy.ndarray", b"junk")), "does not begin"),
        (model(c=SMALL), "is not in both: {'c'}"),
    ],
)
def test_another_model_is_told_of(other: ArrayRecord, told: str) -> None:
    assert LAYOUT.read_alike(other) is None
    with pytest.raises(ArrayError, match=told):
        LAYOUT.read(other)


def test_small_arrays_of_a_dtype_are_one_piece_and_a_large_one_is_its_own() -> None:
    double = layout_of(model(large=LARGE.astype(np.float64)))
    assert [piece.dtype for piece in double.pieces] == ["f4", "f8", "i8"]
    assert [piece.dtype for piece in LAYOUT.pieces] == ["f4", "f4", "i8"]


def test_a_model_whose_arrays_are_not_what_they_claim_has_no_layout() -> None:
    with pytest.raises(ArrayError):
        layout_of(model(a=lying(SMALL, "float64")))


def test_models_of_one_layout_share_it() -> None:
    assert layout_of(model(large=LARGE * 2)) is LAYOUT
    assert layout_of(model(b=SMALL.astype(np.float64))) is not LAYOUT


def test_what_was_read_last_is_known_until_the_model_is_changed_or_gone() -> None:
    layout, other = layout_of(model()), model(large=LARGE * 2)
    found = layout.read_alike(other)
    assert found is not None
    assert layout.read_alike(other) is found
    other["large"] = Array(LARGE * 3)  # as strategies do that clip a reply in its place
    changed = layout.read_alike(other)
    assert changed is not None
    np.testing.assert_array_equal(changed[1], (LARGE * 3).ravel())
    array = weakref.ref(changed[1])
    del found, changed, other
    assert array() is None


def spoilt(value: float) -> np.ndarray:
    values = LARGE.copy()
    values[-1, -1] = value
    return values


@pytest.mark.parametrize(
    ("other", "told"),
    [
        (model(large=spoilt(np.nan)), "array 'large' is not finite"),
        (model(b=np.full_like(SMALL, np.inf)), "array 'b' is not finite"),
        (model(n=np.asarray(np.nan)), "array 'n' is not finite"),
        (model(n=np.asarray(1e30)), "array 'n' has values that int64 cannot hold"),
        (model(a=SMALL.astype(np.float64) * 1e300), "array 'a' has values that float32 cannot"),
        (model(a=SMALL.T.copy()), r"array 'a' has shape \(3, 2\), expected \(2, 3\)"),
        (model(c=SMALL), "its arrays are not the model's: it has 'c'"),
    ],
)
def test_what_is_no_model_is_told_of(other: ArrayRecord, told: str) -> None:
    with pytest.raises(ArrayError, match=told):
        model_values(other, schema_of(model()), require_finite)


@pytest.mark.parametrize(
    "other",
    [
        model(),
        model(n=np.asarray(7.4)),
        model(large=spoilt(3e38)),  # its square is no float32
        model(n=np.asarray(2**60)),
        ArrayRecord(dict(reversed(model().items()))),
    ],
)
def test_what_may_be_the_model_is_taken(other: ArrayRecord) -> None:
    model_values(other, schema_of(model()), require_finite)


def test_a_document_of_any_length_is_taken() -> None:
    trees, longer = (ArrayRecord([np.ones(n, np.uint8)]) for n in (3, 5))
    model_values(longer, schema_of(trees), require_finite)
