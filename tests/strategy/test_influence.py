# SPDX-License-Identifier: Apache-2.0
"""One node of ten cannot decide a round, whatever the strategy inside."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Error, Message, RecordDict
from flwr.app.message import arrayrecord
from flwr.serverapp.strategy import FedAvg, Strategy
from hypothesis import given
from hypothesis import strategies as st
from support.liars import LIES, NODES, ROUNDS, STRATEGIES, Lie, Session, error, session
from support.local_grid import LocalGrid, reply
from support.shadow_nodes import Nodes, World, grows, weight_of

from fl_app.shares import largest_weight
from fl_app.strategy import (
    LifecycleStrategy,
    RoundSettings,
    Screening,
    ShadowEvaluation,
    StreamingFedAvg,
)
from fl_app.strategy.round.influence import FAR, FEWEST, Influence, Size, winsorized
from fl_registry import InMemoryModelStore, InMemoryTracker

WEIGHTS = st.lists(st.integers(1, 10**9).map(float), min_size=3, max_size=40)


def lowered(weights: list[float], shares: float) -> list[float]:
    return [min(weight, largest_weight(weights, shares)) for weight in weights]


@given(WEIGHTS, st.floats(1.1, 5))
def test_no_weight_has_more_than_its_share(weights: list[float], shares: float) -> None:
    counted = lowered(weights, shares)
    most = max(1 / len(weights), shares / len(weights))
    assert max(counted) <= most * math.fsum(counted) * (1 + 1e-9)


@given(WEIGHTS, st.floats(1.1, 5))
def test_weights_within_the_limit_stay_and_none_is_lowered_needlessly(
    weights: list[float], shares: float
) -> None:
    counted = lowered(weights, shares)
    if max(weights) <= shares / len(weights) * math.fsum(weights):
        assert counted == weights
    for before, after in zip(weights, counted, strict=True):
        assert after == before or after == max(counted)


@given(st.lists(st.floats(-1e3, 1e3), min_size=5, max_size=20), st.floats(allow_nan=False))
def test_one_value_moves_a_mean_by_its_share_of_what_is_usual(
    honest: list[float], lie: float
) -> None:
    counted = winsorized([*honest, min(max(lie, -1e308), 1e308)])
    size = max(*map(abs, honest), 0.1)
    assert abs(float(np.mean(counted)) - float(np.mean(honest))) <= 22 * size / len(counted)
    if abs(lie) > 1e5:
        assert min(honest) <= counted[-1] <= max(honest)


@pytest.mark.parametrize(
    ("told", "counts"),
    [
        ([0.5, 0.6, 1e300], [0.5, 0.6, 0.6]),
        ([0.5, 0.6, -1e300, 0.4], [0.5, 0.6, 0.4, 0.4]),
        ([0.0, 0.0, 0.0, 1.0], [0.0, 0.0, 0.0, 1.0]),
        ([0.001, 0.002, 0.003, 0.9], [0.001, 0.002, 0.003, 0.9]),
        ([1e308, 1.0, 2.0, 3.0, -1e308], [3.0, 1.0, 2.0, 3.0, 1.0]),
        ([10, 12, 15, 90], [10, 12, 15, 90]),
        ([10, 12, 15, 10**9], [10, 12, 15, 15]),
        ([[1.0, 5.0], [2.0, 5.0], [3.0, 1e9]], [[1.0, 5.0], [2.0, 5.0], [3.0, 5.0]]),
        ([0.5, 1e300], [0.5, 1e300]),
    ],
)
def test_what_is_out_of_scale_counts_as_the_nearest_that_is_not(
    told: list[Any], counts: list[Any]
) -> None:
    assert winsorized(told) == counts


@given(
    st.lists(
        st.tuples(st.integers(1, 1000).map(float), st.floats(0.1, 1e6)), min_size=0, max_size=30
    )
)
def test_each_reply_is_given_on_or_refused_once(sizes: list[tuple[float, float]]) -> None:
    refused: list[int] = []
    bound = Influence[int](2.0, lambda n, _: n, lambda n, _: refused.append(n))
    given_on = [*bound.streamed(Size(n, *size) for n, size in enumerate(sizes))]
    assert sorted(given_on + refused) == [*range(len(sizes))]
    if len(sizes) >= FEWEST:
        usual = float(np.median([norm for _, norm in sizes]))
        still = {n for n in given_on if sizes[n][1] > FAR * usual}
        assert len(still) <= len(sizes) // 2  # only those that came before what is usual was known


@given(
    st.lists(
        st.tuples(st.sampled_from([10.0, 1e8]), st.sampled_from([1.0, 2.0, 1e6])), max_size=12
    ).flatmap(lambda sizes: st.tuples(st.just(sizes), st.permutations(range(len(sizes)))))
)
def test_the_order_of_replies_that_nobody_streams_changes_nothing(
    drawn: tuple[list[tuple[float, float]], list[int]],
) -> None:
    sizes, order = drawn

    def given_on(numbers: Iterable[int]) -> list[tuple[int, float]]:
        bound = Influence[tuple[int, float]](2.0, lambda r, most: (r[0], most), lambda *_: None)
        return bound.all(Size((n, sizes[n][0]), *sizes[n]) for n in numbers)

    assert given_on(order) == sorted(given_on(range(len(sizes))), key=lambda r: order.index(r[0]))


@pytest.fixture(autouse=True)
def no_garbage_is_collected(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flower collects garbage for each array that QFedAvg reads: seconds a test."""
    monkeypatch.setattr(arrayrecord, "gc", SimpleNamespace(collect=lambda: 0))


@pytest.fixture(scope="module")
def without_lies(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Session]:
    """Runs an honest session around a strategy, once."""
    return cache(lambda inside: session(STRATEGIES[inside], tmp_path_factory.mktemp("honest")))


@pytest.mark.parametrize("name", LIES)
@pytest.mark.parametrize("inside", STRATEGIES)
def test_one_of_ten_moves_model_and_metrics_by_two_tenths_at_most(
    inside: str, name: str, tmp_path: Path, without_lies: Callable[[str], Session]
) -> None:
    make, share = STRATEGIES[inside], 2 / len(NODES)
    usual = without_lies(inside)
    liar = 1 if len(name) % 2 else len(NODES)  # the first reply of a round, or the last
    told = session(make, tmp_path / "lied", LIES[name], liar)
    moved = float(np.abs(usual.model).max())
    assert moved > 0.05
    assert float(np.abs(told.model - usual.model).max()) <= share * max(moved, 1)
    assert len(told.metric) == len(told.loss) == len(told.stages) == ROUNDS
    assert float(np.abs(np.subtract(told.metric, usual.metric)).max()) <= share
    assert float(np.abs(np.subtract(told.loss, usual.loss)).max()) <= share * max(usual.loss)
    assert told.stages == usual.stages
    # Small losses are those of a good node, as far as anybody can tell.
    assert told.named or name in ("loss 0", "loss 1e-10", "loss -1")


def scored(candidate: float, champion: float, examples: float = 10) -> Lie:
    """Scores of the candidate, which has weight 3, and of the champion."""

    def lie(content: RecordDict, message: Message) -> RecordDict:
        value = candidate if weight_of(message) > 2 else champion
        return reply(accuracy=value, examples=examples, digest="data-101")

    return lie


SHADOW_LIES: dict[str, Lie] = {
    "-1e300": scored(-1e300, 0.5),
    "1e300 for the champion": scored(0.5, 1e300),
    "the worst and the best score": scored(0.0, 1.0),
    "no score": scored(math.nan, 0.5),
    "1e9 examples": scored(0.0, 1.0, 1e9),
    "error": error,
}


def shadow(ids: Sequence[int], lie: Lie | None = None) -> dict[str, Any]:
    """Run a shadow evaluation on such nodes, of which the first lies; return its result."""

    def fault(node: int, message: Message) -> RecordDict | Error | None:
        return lie(RecordDict(), message) if lie is not None and node == ids[0] else None

    world = World()
    world.session(Nodes(grows, ids, fault), ShadowEvaluation())
    return world.result()


@pytest.fixture(scope="module")
def honest_shadow() -> dict[int, dict[str, Any]]:
    return {count: shadow(range(101, 101 + count)) for count in (10, 20)}


@pytest.mark.parametrize("name", SHADOW_LIES)
def test_one_of_ten_moves_a_shadow_test_by_two_tenths_at_most(
    name: str, honest_shadow: dict[int, dict[str, Any]], caplog: pytest.LogCaptureFixture
) -> None:
    honest, told = honest_shadow[10], shadow(range(101, 111), SHADOW_LIES[name])
    assert abs(told["mean_difference"] - honest["mean_difference"]) <= 0.2
    assert honest["outcome"] == "better"
    assert told["outcome"] != "worse"
    if "1e300" in name:
        assert told["outcome"] == "better"
        assert "node 101" in caplog.text
        assert "expected 0 to 1; not counted" in caplog.text
    of_more = shadow(range(101, 121), SHADOW_LIES[name])
    assert of_more["outcome"] == honest_shadow[20]["outcome"] == "better"


def models_of(strategy: Strategy, counts: Sequence[int], steps: np.ndarray) -> list[bytes]:
    """Run a session in which each node moves the model by its own steps; return each model."""
    seen: list[bytes] = []

    def answer(node: int, message: Message) -> RecordDict:
        if message.metadata.message_type != "train":
            return reply(examples=counts[node - 1], accuracy=0.5)
        arrays = message.content.array_records["arrays"]
        if node == 1:
            seen.append(arrays["w"].data)
        moved = np.asarray(arrays["w"].numpy() + steps[len(seen) - 1, node - 1], "f4")
        return reply(ArrayRecord({"w": Array(moved)}), examples=counts[node - 1])

    random.seed(1)
    first = ArrayRecord({"w": Array(np.zeros(steps.shape[2], "f4"))})
    grid = LocalGrid(answer, [*range(1, len(counts) + 1)])
    result = strategy.start(grid, first, num_rounds=len(steps))
    return [*seen, result.arrays["w"].data]


@pytest.mark.parametrize("inside", [FedAvg, StreamingFedAvg])
def test_a_thousand_honest_rounds_give_flowers_own_bits(
    inside: type[FedAvg], tmp_path: Path
) -> None:
    chance = np.random.default_rng(5)
    for number in range(10):
        counts = chance.integers(100, 201, chance.integers(2, 12)).tolist()
        steps = chance.normal(0, 1, (100, len(counts), 20)).astype("f4")
        ours = LifecycleStrategy(
            inside(),
            store=InMemoryModelStore(),
            tracker=InMemoryTracker(),
            home=tmp_path / str(number),
        )
        assert models_of(ours, counts, steps) == models_of(inside(), counts, steps)


def test_a_large_node_counts_in_full_where_no_limit_is_set(tmp_path: Path) -> None:
    def answer(node: int, message: Message) -> RecordDict:
        if message.metadata.message_type != "train":
            return reply(accuracy=0.5)
        model = ArrayRecord({"w": Array(np.full(3, node, "f4"))})
        return reply(model, examples=10_000 if node == 4 else 10)

    def last(share: float | None) -> float:
        strategy = LifecycleStrategy(
            FedAvg(),
            store=InMemoryModelStore(),
            tracker=InMemoryTracker(),
            home=tmp_path / str(share),
            rounds=RoundSettings(screening=Screening(max_node_share=share)),
        )
        first = ArrayRecord({"w": Array(np.zeros(3, "f4"))})
        result = strategy.start(LocalGrid(answer, [1, 2, 3, 4]), first, num_rounds=1)
        return float(result.arrays["w"].numpy()[0])

    assert last(None) == pytest.approx((10 * 6 + 10_000 * 4) / 10_030)
    assert last(2.0) == pytest.approx((10 * 6 + 30 * 4) / 60)


def test_a_range_of_the_metric_is_checked() -> None:
    with pytest.raises(ValueError, match=r"metric_range is .*, expected two numbers"):
        Screening(metric_range=(1.0, 0.0))
    assert Screening().range_of("mAP50-95") == (0, 1)
    assert Screening().range_of("val_accuracy") == (0, 1)
    assert Screening().range_of("loss") == (-math.inf, math.inf)
    assert Screening(metric_range=(0, 100)).range_of("accuracy") == (0, 100)
