# SPDX-License-Identifier: Apache-2.0
"""The smaller form of an update: how far it is off, that it leans to neither side, bad records."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from fl_app.wire.compressed_update import (
    Encoding,
    UpdateError,
    UpdateHeader,
    decode,
    encode,
    fingerprint,
    read_header,
)

SHAPES = npst.array_shapes(min_dims=2, max_dims=4, max_side=7)


def random() -> np.random.Generator:
    return np.random.default_rng(3)


@st.composite
def pairs(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """A model's array and what a node made of it, of the same shape and dtype."""
    dtype = draw(st.sampled_from([np.float16, np.float32, np.float64]))
    largest = {2: 100.0, 4: 1e18, 8: 1e30}[np.dtype(dtype).itemsize]
    width = 8 * np.dtype(dtype).itemsize
    largest = float(dtype(largest))
    floats = st.floats(-largest, largest, width=width)  # type: ignore[call-overload]
    shape = draw(SHAPES)
    one, other = (draw(npst.arrays(dtype, shape, elements=floats)) for _ in range(2))
    return one, other


@given(pairs(), st.sampled_from([*Encoding]))
def test_an_update_comes_back_within_its_rounding(
    pair: tuple[np.ndarray, np.ndarray], encoding: Encoding
) -> None:
    base, values = pair
    encoded = encode(values, base, encoding, random())
    assert encoded is not None
    made = decode(*encoded, base)
    assert (made.dtype, made.shape) == (base.dtype, base.shape)
    assert encoded[0].dtype == encoding.dtype
    exact = values.astype(np.float64) - base
    eps = np.finfo(base.dtype).eps
    own = 4 * eps * (np.abs(values.astype(np.float64)) + np.abs(base)) + np.finfo(base.dtype).tiny
    step = encoded[1].astype(np.float64).reshape(-1, *(1,) * (base.ndim - 1))
    rounding = step if encoding is Encoding.INT8 else np.abs(exact) * 2.0**-11 + step * 2.0**-24
    assert (np.abs(made.astype(np.float64) - values) <= 1.001 * rounding + own).all()


def test_a_channel_with_small_differences_has_a_small_scale() -> None:
    base = np.zeros((2, 16), np.float32)
    values = np.stack([np.linspace(-100, 100, 16), np.linspace(-1e-3, 1e-3, 16)]).astype("f4")
    encoded = encode(values, base, Encoding.INT8, random())
    assert encoded is not None
    assert encoded[1] == pytest.approx([100 / 127, 1e-3 / 127])
    few = encode(values[:, :4], base[:, :4], Encoding.INT8, random())
    assert few is not None
    assert few[1].shape == (1,)


def test_rounding_leans_to_neither_side() -> None:
    base = np.zeros((1, 1000), np.float32)
    values = np.full((1, 1000), 0.3, np.float32)
    values[0, 0] = 127.0  # so that a level is 1
    chance = random()
    total = np.zeros(1000)
    for _ in range(400):
        encoded = encode(values, base, Encoding.INT8, chance)
        assert encoded is not None
        total += decode(*encoded, base)[0]
    # 400,000 draws of variance 0.21: six standard errors are 0.0044; by rounding it would be 0.
    assert (total[1:] / 400).mean() == pytest.approx(0.3, abs=0.0044)


@pytest.mark.parametrize(
    ("values", "base"),
    [
        (np.ones(5, np.float32), np.zeros(5, np.float32)),
        (np.asarray(3.0), np.asarray(1.0)),
        (np.ones((2, 3), np.int64), np.zeros((2, 3), np.int64)),
        (np.ones((0, 3), np.float32), np.zeros((0, 3), np.float32)),
        (np.full((2, 2), 1e300), np.zeros((2, 2))),
    ],
)
@pytest.mark.parametrize("encoding", [*Encoding])
def test_what_travels_as_it_is(values: np.ndarray, base: np.ndarray, encoding: Encoding) -> None:
    assert encode(values, base, encoding, random()) is None


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("encoding", [*Encoding])
def test_what_is_not_finite_is_refused(bad: float, encoding: Encoding) -> None:
    for shape in ((4,), (2, 2)):
        with pytest.raises(UpdateError, match="is not finite"):
            encode(np.full(shape, bad, "f4"), np.zeros(shape, "f4"), encoding, random())
    large = np.full((2, 2), 3e38, np.float32)  # finite, but not the difference
    with pytest.raises(UpdateError, match="is not finite"):
        encode(large, -large, encoding, random())


def test_a_header_is_read_as_it_was_written() -> None:
    scales = {"a": np.array([0.5], "f4"), "b": np.array([1, 2, 3], "f4")}
    for encoding in Encoding:
        header = read_header(UpdateHeader(encoding, 7, scales).to_record(), most=len(scales))
        assert (header.encoding, header.base) == (encoding, 7)
        assert {name: scale.tolist() for name, scale in header.scales.items()} == {
            "a": [0.5],
            "b": [1, 2, 3],
        }
    assert read_header(UpdateHeader(Encoding.INT8, 7, {}).to_record(), most=0).scales == {}


GOOD = UpdateHeader(Encoding.INT8, 7, {"a": np.ones(1, "f4"), "b": np.ones(2, "f4")}).to_record()
ODD = st.one_of(
    st.none(),
    st.integers(),
    st.floats(),
    st.text(max_size=20),
    st.binary(max_size=20),
    st.lists(st.integers(), max_size=4),
    st.lists(st.text(max_size=3), max_size=4),
    st.lists(st.binary(max_size=9), max_size=4),
)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"version": 2}, "version 2, this server supports 1"),
        ({"version": None}, "version None"),
        ({"encoding": "int4"}, "is encoded as 'int4', expected one of ['float16', 'int8']"),
        ({"base": "x"}, "the model to which"),
        ({"arrays": ["a", "a"]}, "names an array twice"),
        ({"arrays": ["a"]}, "which arrays are encoded"),
        ({"arrays": [1, 2]}, "which arrays are encoded"),
        ({"scales": [b"1234", b"123"]}, "has scales that are no float32 numbers"),
        ({"scales": [b"1234", b""]}, "has scales that are no float32 numbers"),
        ({"scales": [b"1234"]}, "the scales of each"),
        ({"arrays": ["a"] * 6}, "lists more arrays than the 5 of the model"),
        ({"scales": [b""] * 10**6}, "lists more arrays than the 5 of the model"),
        ({"more": [1] * 6}, "lists more arrays than the 5 of the model"),
        ({"scales": b"12345678"}, "the scales of each"),
        ({"scales": [1.0, 1.0]}, "the scales of each"),
    ],
)
def test_bad_headers(change: dict[str, Any], why: str) -> None:
    with pytest.raises(UpdateError) as told:
        read_header({**GOOD, **change}, most=5)
    assert why in str(told.value)


@given(st.dictionaries(st.sampled_from([*GOOD]), ODD))
def test_a_header_is_read_or_refused_whatever_is_in_it(change: dict[str, Any]) -> None:
    try:
        header = read_header({**GOOD, **change}, most=5)
    except UpdateError:
        return
    assert all(isinstance(scale, np.ndarray) for scale in header.scales.values())


def test_scales_that_are_no_scales() -> None:
    values, base = np.ones((2, 3), np.int8), np.zeros((2, 3), np.float32)
    for scale in (np.nan, np.inf, -1.0):
        with pytest.raises(UpdateError, match="negative or not finite"):
            decode(values, np.array([scale], "f4"), base)
    with pytest.raises(UpdateError, match=r"has 3 scales for shape \(2, 3\)"):
        decode(values, np.ones(3, "f4"), base)


def test_a_fingerprint_knows_names_and_values_and_no_order() -> None:
    assert fingerprint({"a": b"1", "b": b"2"}) == fingerprint({"b": b"2", "a": b"1"})
    assert fingerprint({"a": b"1"}) != fingerprint({"a": b"2"})
    assert fingerprint({"a": b"1"}) != fingerprint({"b": b"1"})
