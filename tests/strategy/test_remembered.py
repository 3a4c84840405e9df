# SPDX-License-Identifier: Apache-2.0
"""A model that was scored is not scored again, and no other is taken for it."""

from __future__ import annotations

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, MetricRecord

from fl_app.strategy.finish.evaluation import RememberedScores


def model(value: float, *, name: str = "w", dtype: type = np.float32) -> ArrayRecord:
    return ArrayRecord({name: Array(np.full((2, 3), value, dtype))})


def counting() -> tuple[list[float], RememberedScores]:
    asked: list[float] = []

    def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        asked.append(float(next(iter(arrays.values())).numpy().mean()))
        return MetricRecord({"accuracy": asked[-1]})

    return asked, RememberedScores(evaluate, size=2)


def test_the_same_arrays_are_scored_once_in_whichever_round() -> None:
    asked, scores = counting()
    assert [scores(n, model(1))["accuracy"] for n in range(3)] == [1.0, 1.0, 1.0]
    assert asked == [1.0]


def test_the_least_recently_asked_is_forgotten_first() -> None:
    asked, scores = counting()
    for value in (1, 2, 1, 3, 1, 2):
        assert scores(0, model(value))["accuracy"] == value
    assert asked == [1.0, 2.0, 3.0, 2.0]


def test_the_same_bytes_under_other_names_are_another_model() -> None:
    asked, scores = counting()
    one = model(1)
    scores(0, one)
    scores(0, ArrayRecord({"v": one["w"]}))
    scores(0, ArrayRecord(dict(one)))
    assert len(asked) == 2


def test_what_raised_is_asked_again() -> None:
    asked: list[int] = []

    def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        asked.append(server_round)
        if len(asked) == 1:
            raise RuntimeError("no memory")
        return MetricRecord({"accuracy": 1.0})

    scores = RememberedScores(evaluate)
    with pytest.raises(RuntimeError, match="no memory"):
        scores(1, model(1))
    assert scores(2, model(1)) == scores(3, model(1))
    assert asked == [1, 2]


def test_names_dtypes_shapes_and_order_make_another_model() -> None:
    both = {"a": Array(np.zeros(2, np.float32)), "b": Array(np.ones(2, np.float32))}
    turned = dict(reversed(list(both.items())))
    different = [
        model(0),
        model(0, name="v"),
        model(0, dtype=np.int32),
        ArrayRecord({"w": Array(np.zeros((3, 2), np.float32))}),
        ArrayRecord(both),
        ArrayRecord(turned),
    ]
    asked: list[ArrayRecord] = []
    scores = RememberedScores(lambda _, arrays: asked.append(arrays))
    for each in (*different, *different):
        scores(0, each)
    assert len(asked) == len(different)
