# SPDX-License-Identifier: Apache-2.0
"""Arrays packed into one and taken out again; an index that lies."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from fl_app.wire import packing
from fl_app.wire.packing import (
    INDEX_RECORD,
    PACKED_AS,
    Known,
    PackingError,
    is_packed,
    pack,
    unpack,
)

ARRAYS = npst.arrays(
    st.sampled_from(["f4", "f8", "f2", "i8", "u1", "?"]), npst.array_shapes(min_dims=0, min_side=0)
)
NAMES = st.text(max_size=9)
MODEL = ArrayRecord(
    {
        "weight": Array(np.arange(64, dtype=np.float32).reshape(4, 16)),
        "bias": Array(np.zeros(4, np.float32)),
        "steps": Array(np.asarray(7, np.int64)),
    }
)


def content() -> RecordDict:
    return RecordDict({"arrays": ArrayRecord(dict(MODEL)), "config": ConfigRecord({"round": 3})})


def same(one: RecordDict, other: RecordDict) -> bool:
    """Whether two contents are the same for Flower, in the same order."""
    names = [(key, list(record)) for key, record in one.items()]
    return one.object_id == other.object_id and names == [(k, list(r)) for k, r in other.items()]


@given(st.dictionaries(NAMES, st.dictionaries(NAMES, ARRAYS, max_size=4), max_size=3), NAMES)
def test_what_is_taken_out_is_what_was_packed(
    records: dict[str, dict[str, np.ndarray]], metrics: str
) -> None:
    made = RecordDict({key: ArrayRecord(_arrays(values)) for key, values in records.items()})
    made[metrics] = MetricRecord({"loss": 1.0})
    before, packed = made.object_id, pack(made)
    assert same(unpack(packed), made)
    assert made.object_id == before
    assert is_packed(packed) == bool(made.array_records)


def _arrays(values: dict[str, np.ndarray]) -> dict[str, Array]:
    return {name: Array(array) for name, array in values.items()}


def test_an_array_of_any_serialization_travels() -> None:
    odd = RecordDict({"arrays": ArrayRecord({"a": Array("int8", (3,), "fl-app.update", b"xyz")})})
    (array,) = unpack(pack(odd))["arrays"].values()
    assert (array.dtype, array.shape, array.stype, array.data) == (
        *("int8", (3,), "fl-app.update"),
        b"xyz",
    )


def test_a_model_of_hundreds_of_arrays_is_a_few_objects_for_flower() -> None:
    arrays = {str(n): Array(np.full(9, n, np.float32)) for n in range(355)}
    model = RecordDict({"arrays": ArrayRecord(arrays)})
    assert len(get_all_nested_objects(model)) > 2 * 355
    assert len(get_all_nested_objects(pack(model))) == 5


def test_messages_that_share_a_record_share_what_is_packed() -> None:
    record, known = ArrayRecord(dict(MODEL)), Known()
    first, second = (
        pack(RecordDict({"arrays": record, "config": ConfigRecord({"node": n})}), known)
        for n in (1, 2)
    )
    assert first["arrays"] is second["arrays"]
    assert same(unpack(second), RecordDict({"arrays": record, "config": second["config"]}))


def test_what_holds_no_arrays_stays() -> None:
    metrics = RecordDict({"metrics": MetricRecord({"loss": 1.0})})
    assert pack(metrics) is metrics
    assert unpack(metrics) is metrics


def test_an_app_that_knows_nothing_of_it_reads_none() -> None:
    with pytest.raises(TypeError, match="Unsupported serialization type"):
        pack(content())["arrays"].to_numpy_ndarrays()


def with_index(index: object) -> RecordDict:
    packed = pack(content())
    text = index if isinstance(index, str) else json.dumps(index)
    packed[INDEX_RECORD] = ConfigRecord({"index": text})
    return packed


def with_rows(*rows: Any) -> RecordDict:
    return with_index({"version": 1, "records": {"arrays": rows}})


def not_packed() -> RecordDict:
    plain = content()
    plain[INDEX_RECORD] = pack(content())[INDEX_RECORD]
    return plain


SIZE = len(pack(content())["arrays"]["packed"].data)
ROW = ["a", "float32", [1], "numpy.ndarray", SIZE]


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (with_index({"version": 2, "records": {}}), "is of another version than 1"),
        (with_index("[" * 100_000), "too many for the model"),
        (with_index("[" * 5_000), "has no readable index"),
        (with_index("{"), "has no readable index"),
        (with_index([]), "has no readable index"),
        (with_index({"version": 1}), "has no readable index"),
        (with_rows(["a"]), "has no readable index"),
        (with_rows([*ROW[:4], -1]), "has no readable index"),
        (with_rows([*ROW[:4], True]), "has no readable index"),
        (with_rows([*ROW[:2], [-1], *ROW[3:]]), "has no readable index"),
        (with_rows([*ROW[:2], "1", *ROW[3:]]), "has no readable index"),
        (with_rows([*ROW[:4], 10**30]), f"has {SIZE} bytes, its index says other lengths"),
        (with_rows([*ROW[:4], SIZE - 1]), f"has {SIZE} bytes, its index says other lengths"),
        (with_rows(ROW, [*ROW[:4], 0]), "has an index that names an array twice"),
        (
            with_index({"version": 1, "records": {"config": []}}),
            "has an index of a record that is not packed",
        ),
        (
            with_index({"version": 1, "records": {"arrays": [ROW], "more": []}}),
            "has an index of 1 records that are not there",
        ),
        (not_packed(), "has an index of a record that is not packed"),
        (RecordDict({INDEX_RECORD: MetricRecord({"index": 1})}), "has no readable index"),
    ],
)
def test_an_index_that_lies_is_told_of(bad: RecordDict, why: str) -> None:
    with pytest.raises(PackingError) as told:
        unpack(bad)
    assert why in str(told.value)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=9) | st.just("arrays"),
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.dictionaries(st.sampled_from(["version", "records", "arrays"]), inner, max_size=3)
    ),
    max_leaves=12,
)


@given(st.one_of(JSON, JSON.map(lambda rows: {"version": 1, "records": {"arrays": rows}})))
def test_no_index_raises_anything_but_its_reason(index: object) -> None:
    try:
        made = unpack(with_index(index))
    except PackingError:
        return
    assert sum(len(array.data) for array in made["arrays"].values()) == SIZE


def many_rows(count: int) -> RecordDict:
    """What claims to hold that many empty arrays."""
    rows = ",".join(f'["{number}","",[],"",0]' for number in range(count))
    text = f'{{"version":1,"records":{{"arrays":[{rows}]}}}}'
    packed = ArrayRecord({"packed": Array("uint8", (0,), PACKED_AS, b"")})
    return RecordDict({"arrays": packed, INDEX_RECORD: ConfigRecord({"index": text})})


@pytest.mark.parametrize("count", [20, 100_000])
def test_an_index_much_larger_than_the_model_s_is_not_parsed(
    count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = pack(content())
    assert same(unpack(sent, sent), content())
    monkeypatch.setattr(packing, "_INDEX", None)
    with pytest.raises(PackingError, match="too many for the model"):
        unpack(many_rows(count), sent)


def test_an_index_of_a_first_model_is_bounded_too() -> None:
    assert len(unpack(many_rows(1000))["arrays"]) == 1000
    with pytest.raises(PackingError, match="too many for the model"):
        unpack(many_rows(10_000))
