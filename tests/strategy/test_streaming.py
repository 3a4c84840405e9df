# SPDX-License-Identifier: Apache-2.0
"""StreamingFedAvg: Flower's average, of replies that are let go one after the other."""

from __future__ import annotations

import tracemalloc
import weakref
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Error, Message, MetricRecord, RecordDict
from flwr.serverapp.exception import InconsistentMessageReplies
from flwr.serverapp.strategy import FedAvg
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from support.local_grid import LocalGrid, add_one, model, reply

from fl_app.strategy import LifecycleStrategy, StreamingFedAvg
from fl_app.strategy.checkpoints.strategy_state import InnerMemory, InnerState
from fl_app.wire.arrays import view
from fl_registry import InMemoryModelStore, InMemoryTracker

DTYPES = ["<f2", "<f4", "<f8", ">f4", "<i8", "<i4", "|u1", "|b1", "<c8"]


def message(arrays: ArrayRecord | None, node: int = 1, **metrics: Any) -> Message:
    content = RecordDict({"metrics": MetricRecord(metrics)})
    if arrays is not None:
        content["arrays"] = arrays
    return Message(content, reply_to=Message(RecordDict(), node, "train"))


def both(replies: list[Message]) -> tuple[Any, Any]:
    ours = StreamingFedAvg().aggregate_train(1, iter(replies))
    return ours, FedAvg().aggregate_train(1, replies)


def same(ours: ArrayRecord, flowers: ArrayRecord, added: float, tolerance: float = 1e-6) -> None:
    """Whether averages of values up to ``added`` are the same but for the rounding of sums."""
    assert list(ours) == list(flowers)
    for name, array in flowers.items():
        got, expected = ours[name].numpy(), array.numpy()
        np.testing.assert_array_equal(view(ours[name]), got)  # it says of itself what it holds
        assert (ours[name].dtype, got.dtype, got.shape) == (
            array.dtype,
            expected.dtype,
            expected.shape,
        )
        coarse = 5e-3 if expected.dtype == np.float16 else tolerance  # Flower sums up in it
        np.testing.assert_allclose(got, expected, rtol=coarse, atol=coarse * added)


@st.composite
def models(draw: st.DrawFn) -> list[Message]:
    kinds = draw(st.lists(st.sampled_from(DTYPES), min_size=1, max_size=4))
    shapes = [draw(npst.array_shapes(min_dims=0, max_dims=3, min_side=0)) for _ in kinds]
    count = draw(st.integers(1, 5))
    chance = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    replies = []
    for node in range(count):
        arrays = ArrayRecord()
        for number, (kind, shape) in enumerate(zip(kinds, shapes, strict=True)):
            values = np.asarray(chance.standard_normal(shape) * 3).astype(kind)
            order: Any = draw(st.sampled_from("CF"))
            arrays[str(number)] = Array(np.asarray(values, order=order))
        weight = draw(st.one_of(st.integers(1, 10_000), st.floats(0.01, 1e6)))
        replies.append(message(arrays, node, **{"num-examples": weight, "loss": float(node)}))
    return replies


@given(models())
def test_it_averages_as_flower_does(replies: list[Message]) -> None:
    (arrays, metrics), (expected, expected_metrics) = both(replies)
    sent = [array.numpy() for r in replies for array in r.content["arrays"].values()]
    same(arrays, expected, max(float(np.abs(values).max(initial=0.0)) for values in sent))
    assert dict(metrics) == pytest.approx(dict(expected_metrics))


def test_a_round_leaves_nothing_behind_and_changes_no_earlier_result() -> None:
    strategy = StreamingFedAvg()
    memory = InnerMemory(strategy)
    before, _ = strategy.aggregate_train(1, [message(vector(50_000), **{"num-examples": 1})])
    assert before is not None
    kept = [bytes(bytearray(array.data)) for array in before.values()]
    ones = ArrayRecord([np.ones(50_000, np.float32)])
    strategy.aggregate_train(2, [message(ones, node, **{"num-examples": 1}) for node in range(5)])
    assert [array.data for array in before.values()] == kept
    assert memory.take() == InnerState()


def test_small_arrays_count_each_by_its_own_numbers() -> None:
    replies = []
    for node, count in enumerate((np.asarray(3), np.asarray(5), np.asarray(2.5, np.float32))):
        large = np.full((64, 128), node, np.float32)
        arrays = {"a": count, "b": large, "c": np.asarray([node, 7]), "d": np.float32([node])}
        record = ArrayRecord({name: Array(np.asarray(v)) for name, v in arrays.items()})
        replies.append(message(record, node, **{"num-examples": 1 + node}))
    (arrays_, _), (expected, _) = both(replies)
    same(arrays_, expected, 7.0)
    assert arrays_["a"].numpy() == pytest.approx((3 + 2 * 5 + 3 * 2.5) / 6)


@pytest.mark.parametrize("padding", range(4))
@pytest.mark.parametrize("size", [3, 50_000])
def test_headers_may_have_any_length(padding: int, size: int) -> None:
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (%d,), }" % size + b" " * padding
    start = b"\x93NUMPY\x01\x00" + (len(header) + 1).to_bytes(2, "little") + header + b"\n"
    replies = []
    for node in range(6):
        data = start + np.full(size, node, np.float32).tobytes()
        sent = ArrayRecord({"w": Array("float32", (size,), "numpy.ndarray", data)})
        replies.append(message(sent, node, **{"num-examples": 1}))
    (arrays, _), (expected, _) = both(replies)
    same(arrays, expected, 5.0)


def test_many_replies_of_a_large_array_differ_by_rounding_only() -> None:
    chance = np.random.default_rng(0)
    replies = [
        message(
            ArrayRecord([chance.standard_normal(25_001, dtype=np.float32)]),
            node,
            **{"num-examples": 10 + node},
        )
        for node in range(200)
    ]
    (arrays, _), (expected, _) = both(replies)
    same(arrays, expected, 1.0)


def test_a_reply_is_let_go_before_the_next_one_is_asked_for() -> None:
    alive: list[weakref.ref[Array]] = []

    def arriving() -> Iterator[Message]:
        for node in range(6):
            assert sum(known() is not None for known in alive) == 0
            array = Array(np.full(10, node, np.float32))
            alive.append(weakref.ref(array))
            sent = ArrayRecord({"w": array})
            del array
            yield message(sent, node, **{"num-examples": 1})
            del sent

    arrays, _ = StreamingFedAvg().aggregate_train(1, arriving())
    assert arrays is not None
    assert arrays["w"].numpy()[0] == pytest.approx(2.5)


def test_memory_is_that_of_a_few_models_however_many_reply() -> None:
    size = 1_000_000

    def arriving() -> Iterator[Message]:
        for node in range(20):
            sent = ArrayRecord({"w": Array(np.full(size // 4, node, np.float32))})
            yield message(sent, node, **{"num-examples": 1})
            del sent

    StreamingFedAvg().aggregate_train(1, arriving())  # imports take memory once
    tracemalloc.start()
    arrays, _ = StreamingFedAvg().aggregate_train(1, arriving())
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert arrays is not None
    assert arrays["w"].numpy()[0] == pytest.approx(9.5)
    in_the_making = 3  # of a reply: its values, numpy's file of them, its bytes
    assert peak < (3 + in_the_making + 0.5) * size  # a sum, and two that wait for the third


def test_errors_count_for_nothing_and_without_a_result_there_is_no_model() -> None:
    failed = Message(Error(1, "out of memory"), reply_to=Message(RecordDict(), 3, "train"))
    good = message(model(1.0), **{"num-examples": 4})
    arrays, _ = StreamingFedAvg().aggregate_train(1, [failed, good])
    assert arrays is not None
    assert arrays["0"].numpy().mean() == 1.0
    assert StreamingFedAvg().aggregate_train(1, [failed]) == (None, None)
    assert StreamingFedAvg().aggregate_train(1, []) == (None, None)


def vector(size: int) -> ArrayRecord:
    return ArrayRecord([np.zeros(size, np.float32)])


@pytest.mark.parametrize(
    ("replies", "told"),
    [
        ([(vector(2), 1), (ArrayRecord(), 1)], "not in both"),
        ([(vector(2), 1), (vector(3), 1)], "has shape"),
        ([(vector(2), None)], "num-examples is None"),
        ([(vector(2), -1)], "num-examples is -1"),
        ([(vector(2), [1, 2])], "num-examples is"),
        ([(vector(2), 0)], "weight of 0"),
        ([(None, 1)], "0 ArrayRecords"),
    ],
)
def test_replies_that_do_not_fit_are_told_of(replies: list[Any], told: str) -> None:
    sent = [
        message(arrays, **({} if weight is None else {"num-examples": weight}))
        for arrays, weight in replies
    ]
    with pytest.raises(InconsistentMessageReplies, match=told):
        StreamingFedAvg().aggregate_train(1, sent)


def test_metrics_that_only_some_nodes_tell_are_averaged_over_those() -> None:
    replies = [
        message(model(), 1, **{"num-examples": 1, "loss": 1.0, "odd": 9.0}),
        message(model(), 2, **{"num-examples": 3, "loss": 2.0}),
        message(model(), 3, **{"num-examples": 1}),
    ]
    _, metrics = StreamingFedAvg().aggregate_train(1, replies)
    assert dict(metrics or {}) == {"loss": pytest.approx(1.75)}


def lifecycle(inner: FedAvg, home: Path, **named: Any) -> LifecycleStrategy:
    store, tracker = InMemoryModelStore(), InMemoryTracker()
    return LifecycleStrategy(inner, store=store, tracker=tracker, home=home, **named)


def test_inside_the_lifecycle_it_makes_what_fed_avg_makes(tmp_path: Path) -> None:
    def answer(node: int, sent: Message) -> RecordDict:
        if node == 13:
            return reply(ArrayRecord([np.full((2, 3), np.nan, np.float32), np.asarray(1)]))
        return add_one(node, sent)

    made = []
    for inner in (StreamingFedAvg(), FedAvg()):
        strategy = lifecycle(inner, tmp_path / type(inner).__name__, metric="accuracy")
        result = strategy.start(LocalGrid(answer), model(), num_rounds=2)
        made.append(result.arrays)
        assert strategy.setup.store.get_version("1").tags["rejected"]
    same(*made, 2.0)


def test_in_a_session_replies_are_added_as_they_arrive(tmp_path: Path) -> None:
    asked = []

    class Slow(LocalGrid):
        def send_and_receive(
            self, messages: Iterable[Message], *, timeout: float | None = None
        ) -> Iterator[Message]:
            replies = super().send_and_receive(messages, timeout=timeout)

            def one_by_one() -> Iterator[Message]:
                for each in replies:
                    asked.append((each.metadata.message_type, len(added)))
                    yield each

            return one_by_one()

    added: list[int] = []

    class Counting(StreamingFedAvg):
        def _weight(self, content: RecordDict) -> float:
            added.append(1)
            return super()._weight(content)

    strategy = lifecycle(Counting(), tmp_path)
    strategy.start(Slow(add_one, range(11, 17)), model(), num_rounds=1)
    # Of the first three it cannot be told yet which one is unlike the others.
    assert [count for kind, count in asked if kind == "train"] == [0, 0, 0, 3, 4, 5]


def test_a_connection_that_is_lost_while_replies_arrive_ends_the_run(tmp_path: Path) -> None:
    class Lost(LocalGrid):
        def send_and_receive(
            self, messages: Iterable[Message], *, timeout: float | None = None
        ) -> Iterator[Message]:
            yield from list(super().send_and_receive(messages, timeout=timeout))[:1]
            raise ConnectionResetError("the SuperLink is gone")

    strategy = lifecycle(StreamingFedAvg(), tmp_path)
    with pytest.raises(ConnectionResetError, match="SuperLink is gone"):
        strategy.start(Lost(add_one), model(), num_rounds=1)
