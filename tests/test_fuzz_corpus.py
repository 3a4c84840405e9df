# SPDX-License-Identifier: Apache-2.0
"""Inputs that a fuzzer has found, and the time that 2 MB of a hostile header may not take."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from flwr.app.message import arrayrecord
from fuzz.replies import PARTS, round_of, seeds, try_bytes
from hypothesis import given
from hypothesis import strategies as st

CORPUS = sorted(Path(__file__).with_name("fuzz").joinpath("corpus").iterdir())


@pytest.fixture(autouse=True)
def no_garbage_is_collected(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flower collects garbage for each array that is read."""
    monkeypatch.setattr(arrayrecord, "gc", SimpleNamespace(collect=lambda: 0))


def test_what_the_fuzzer_found_escapes_from_nothing() -> None:
    assert len(CORPUS) > 50
    for path in CORPUS:
        try_bytes(path.read_bytes())


def test_the_fuzzer_begins_with_replies_that_count() -> None:
    for data in seeds():
        if data[0] < len(PARTS):
            _, rejected = round_of(lambda data=data: PARTS[data[0]](data[1:]))
            assert rejected == set()


@given(st.sampled_from(seeds()), st.data())
def test_a_changed_byte_escapes_from_nothing(data: bytes, draw: st.DataObject) -> None:
    place = draw.draw(st.integers(1, len(data) - 1))
    end = draw.draw(st.integers(place, len(data)))
    try_bytes(data[:place] + draw.draw(st.binary(max_size=4)) + data[end:])
