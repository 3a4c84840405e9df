# SPDX-License-Identifier: Apache-2.0
"""What an inner strategy remembers, written down and put into a new one."""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord
from flwr.serverapp.strategy import (
    DifferentialPrivacyServerSideAdaptiveClipping,
    FedAdagrad,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedXgbBagging,
    FedXgbCyclic,
    FedYogi,
    Strategy,
)
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from support.local_grid import LocalGrid, add_one, model

from fl_app.strategy.checkpoints.record import NotPlainError, decode, encode
from fl_app.strategy.checkpoints.strategy_state import InnerMemory

Make = Callable[[], Strategy]

LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary()
    | hnp.arrays(
        st.sampled_from([np.float32, np.float64, np.int64, np.uint8, np.bool_]),
        hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3),
    )
)
PLAIN = st.recursive(
    LEAVES,
    lambda inside: (
        st.lists(inside, max_size=3)
        | st.lists(inside, max_size=3).map(tuple)
        | st.dictionaries(st.text() | st.integers(), inside, max_size=3)
    ),
    max_leaves=10,
)


def alike(one: Any, other: Any) -> bool:
    """Whether two values are equal bit for bit, with the same types all the way down."""
    if type(one) is not type(other):
        return False
    if isinstance(one, np.ndarray):
        same = one.dtype == other.dtype and one.shape == other.shape
        return same and one.tobytes() == other.tobytes()
    if isinstance(one, dict):
        return list(one) == list(other) and all(alike(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(alike, one, other))
    return bool(one == other)


@given(PLAIN)
def test_plain_values_come_back_bit_for_bit(value: Any) -> None:
    arrays: dict[str, np.ndarray] = {}
    text = json.loads(json.dumps(encode(value, arrays, name="x")))
    assert alike(decode(text, arrays), value)


def test_flower_s_records_come_back() -> None:
    arrays: dict[str, np.ndarray] = {}
    record = ArrayRecord({"b": Array(np.ones(2)), "a": Array(np.zeros((1, 2), np.float32))})
    back = decode(encode(record, arrays), arrays)
    assert list(back) == ["b", "a"]
    assert all(np.array_equal(back[k].numpy(), record[k].numpy()) for k in record)
    metrics = MetricRecord({"loss": 0.5, "counts": [1, 2]})
    config = ConfigRecord({"lr": 0.1, "name": "x", "on": True, "bytes": b"\0"})
    assert decode(encode(metrics)) == metrics
    assert decode(encode(config)) == config


@pytest.mark.parametrize(
    "value", [object(), print, np.array([object()]), np.array(["x"]), {"x": [lambda: 1]}, range(3)]
)
def test_anything_else_is_refused(value: object) -> None:
    with pytest.raises(NotPlainError):
        encode(value, {})


def test_a_value_within_itself_is_refused() -> None:
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(NotPlainError, match="deeply"):
        encode(endless, {})


@pytest.mark.parametrize(
    "text", [{"array": "x"}, {"code": "1"}, {"list": 1, "x": 2}, {"dict": [[1]]}, {"base64": "~"}]
)
def test_what_was_not_written_here_is_not_read(text: Any) -> None:
    with pytest.raises(NotPlainError, match="read back"):
        decode(text)


def rounds(strategy: Strategy, first: int, last: int, arrays: ArrayRecord) -> ArrayRecord:
    """Run some rounds by hand, with Flower's calls in Flower's order."""
    grid = LocalGrid(add_one)
    for number in range(first, last + 1):
        sent = strategy.configure_train(number, arrays, ConfigRecord(), grid)
        made, _ = strategy.aggregate_train(number, grid.send_and_receive(sent))
        arrays = made or arrays
        sent = strategy.configure_evaluate(number, arrays, ConfigRecord(), grid)
        strategy.aggregate_evaluate(number, grid.send_and_receive(sent))
    return arrays


def floats(value: float = 0.0) -> ArrayRecord:
    return ArrayRecord([np.full((2, 3), value, np.float32)])


STRATEGIES: list[Make] = [
    FedAvg,
    lambda: FedAvgM(server_momentum=0.9, server_learning_rate=0.5),
    lambda: FedAdam(eta=0.3),
    lambda: FedYogi(eta=0.3),
    lambda: FedAdagrad(eta=0.3),
    lambda: DifferentialPrivacyServerSideAdaptiveClipping(
        FedAdam(eta=0.3), noise_multiplier=0.0, num_sampled_clients=3, clipped_count_stddev=0.0
    ),
]


@pytest.mark.parametrize("make", STRATEGIES, ids=lambda make: type(make()).__name__)
def test_a_new_strategy_with_the_memory_of_the_old_goes_on_as_it_would_have(make: Make) -> None:
    whole = rounds(make(), 1, 6, floats())
    first = make()
    memory = InnerMemory(first)
    half = rounds(first, 1, 3, floats())
    state = memory.take()
    assert state.missing == ()
    second = make()
    InnerMemory(second).put_back(state)
    resumed = rounds(second, 4, 6, half)
    assert alike(resumed.to_numpy_ndarrays(), whole.to_numpy_ndarrays())
    if type(first) is not FedAvg:  # so the memory mattered
        forgetful = rounds(make(), 4, 6, half)
        assert not alike(forgetful.to_numpy_ndarrays(), whole.to_numpy_ndarrays())


def test_what_does_not_change_is_not_written_down() -> None:
    strategy = FedAdam()
    memory = InnerMemory(strategy)
    assert memory.take().values == {}
    rounds(strategy, 1, 1, floats())
    assert set(memory.take().values) == {"/current_arrays", "/m_t", "/v_t"}


def test_the_chain_and_its_settings_are_told() -> None:
    memory = InnerMemory(STRATEGIES[-1]())
    assert memory.chain == ("DifferentialPrivacyServerSideAdaptiveClipping", "FedAdam")
    assert memory.settings["/strategy/eta"] == 0.3
    assert memory.settings["/clipping_norm"] == 0.1


def test_trees_and_node_numbers_are_kept() -> None:
    bagging = FedXgbBagging()
    memory = InnerMemory(bagging)
    bagging.current_bst = b'{"trees": []}\xff'
    again = FedXgbBagging()
    InnerMemory(again).put_back(memory.take())
    assert again.current_bst == bagging.current_bst
    cyclic = FedXgbCyclic()
    numbers = InnerMemory(cyclic)
    cyclic._reorder_nodes([2**63 + 5, 7])
    other = FedXgbCyclic()
    InnerMemory(other).put_back(numbers.take())
    assert other.registered_nodes == cyclic.registered_nodes


class Accountant:
    """As Flower's: it has its own way to be written down."""

    def __init__(self) -> None:
        self.events: list[object] = []

    def compose(self, noise: float) -> None:
        self.events.append(("event", noise))

    def state_dict(self) -> dict[str, object]:
        return {"compositions": [noise for _, noise in self.events]}  # type: ignore[misc]

    def load_state_dict(self, state: dict[str, object]) -> None:
        self.events = [("event", noise) for noise in state["compositions"]]  # type: ignore[attr-defined]


def test_an_accountant_is_asked_and_told() -> None:
    strategy, again = FedAvg(), FedAvg()
    strategy.accountant, again.accountant = Accountant(), Accountant()  # type: ignore[attr-defined]
    memory = InnerMemory(strategy)
    assert memory.take().values == {}
    strategy.accountant.compose(0.5)  # type: ignore[attr-defined]
    InnerMemory(again).put_back(memory.take())
    assert again.accountant.events == [("event", 0.5)]  # type: ignore[attr-defined]


def test_what_cannot_be_kept_is_told_once_by_name(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, logger="flwr.fl_app")
    strategy = FedAvg()
    memory = InnerMemory(strategy)
    strategy.sampler = random.Random(1)  # type: ignore[attr-defined]
    assert memory.take().missing == ("/sampler",)
    assert memory.take().missing == ("/sampler",)
    assert len(caplog.records) == 1
    assert "sampler of the strategy cannot be written" in caplog.text


def test_a_function_that_stays_is_no_state() -> None:
    strategy = FedAvg(train_metrics_aggr_fn=lambda contents, key: MetricRecord())
    memory = InnerMemory(strategy)
    rounds(strategy, 1, 1, model())
    assert memory.take().missing == ()
    assert memory.take().values == {}
