# SPDX-License-Identifier: Apache-2.0
"""Encoded replies on the server: decoded before all else, beside plain ones, or rejected."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.serverapp import strategy as flower
from flwr.serverapp.strategy import FedAvg, Strategy
from hypothesis import given, settings
from hypothesis import strategies as st
from support.local_grid import LocalGrid, reply

from fl_app import LifecycleStrategy, RoundReport
from fl_app.client.mods.compression import compress_updates
from fl_app.strategy import Screening, StreamingFedAvg
from fl_app.strategy.round.screening import Needs, ScreenedReplies, screen_train
from fl_app.wire.arrays import schema_of
from fl_app.wire.compressed_update import (
    SERIALIZED_AS,
    UPDATE_RECORD,
    SentModel,
    UpdateError,
    decode_update,
)
from fl_registry import InMemoryModelStore, InMemoryTracker

MODEL = ArrayRecord(
    {
        "weight": Array(np.linspace(-1, 1, 64, dtype=np.float32).reshape(4, 16)),
        "bias": Array(np.zeros(4, np.float32)),
        "steps": Array(np.asarray(7, np.int64)),
    }
)
RULES = Screening()


def step(arrays: ArrayRecord, size: float = 0.1) -> ArrayRecord:
    """A node's local round: floats move by about ``size``, the counter by one."""
    made = ArrayRecord()
    for name, array in arrays.items():
        values, chance = array.numpy(), np.random.default_rng(len(name))
        moved = values + size * chance.normal(size=values.shape)
        made[name] = Array(
            np.asarray(moved if values.dtype.kind == "f" else values + 1, values.dtype)
        )
    return made


def with_mod(
    encoding: str, node: int, message: Message, answer: Callable[[], RecordDict]
) -> RecordDict:
    """What a node with the mod sends."""
    context = Context(run_id=7, node_id=node, node_config={}, state=RecordDict(), run_config={})
    mod = compress_updates(encoding)
    return mod(message, context, lambda m, _: Message(answer(), reply_to=m)).content


def encoded(encoding: str = "int8") -> RecordDict:
    content = RecordDict({"arrays": ArrayRecord(dict(MODEL))})
    message = Message(content, 12, "train")
    return with_mod(encoding, 12, message, lambda: reply(step(MODEL), loss=1.0))


def screen(content: RecordDict, rules: Screening | None = RULES) -> ScreenedReplies:
    asked = Message(RecordDict(), 12, "train")
    asked.metadata.__dict__["_message_id"] = "1"
    answers = [Message(content, reply_to=asked)]
    arriving = screen_train(answers, rules, needs=Needs(), model=MODEL, schema=schema_of(MODEL))
    return arriving.all()


def changed(content: RecordDict, **fields: Any) -> RecordDict:
    record = ConfigRecord({**dict(content[UPDATE_RECORD]), **fields})  # type: ignore[arg-type]
    return RecordDict({**content, UPDATE_RECORD: record})


def with_array(content: RecordDict, name: str, values: np.ndarray) -> RecordDict:
    array = Array(values)
    array.stype = SERIALIZED_AS
    arrays = ArrayRecord({**content.array_records["arrays"], name: array})
    return RecordDict({**content, "arrays": arrays})


@pytest.mark.parametrize("encoding", ["float16", "int8"])
@pytest.mark.parametrize("rules", [RULES, None])
def test_the_inner_strategy_sees_plain_arrays(encoding: str, rules: Screening | None) -> None:
    (message,) = screen(encoded(encoding), rules).good
    assert UPDATE_RECORD not in message.content
    assert schema_of(message.content["arrays"]) == schema_of(MODEL)
    exact = step(MODEL)
    assert message.content["arrays"]["weight"].numpy() == pytest.approx(
        exact["weight"].numpy(), abs=0.3 / 127
    )
    assert message.content["arrays"]["steps"].data == exact["steps"].data


def test_the_norm_of_what_was_decoded_is_bounded() -> None:
    rules = Screening(max_update_norm=0.5, norm_action="refuse")
    assert "its update has norm" in screen(encoded(), rules).rejected["12"]
    (message,) = screen(encoded(), Screening(max_update_norm=0.5)).good
    arrays = message.content["arrays"]
    moved = [arrays[n].numpy() - MODEL[n].numpy() for n in ("weight", "bias")]
    assert np.sqrt(sum((m**2).sum() for m in moved)) == pytest.approx(0.5, rel=1e-4)


BOMB = np.zeros((4, 16), np.int8)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (
            lambda: changed(encoded(), version=9),
            "its update is encoded in version 9, this server supports 1",
        ),
        (lambda: changed(encoded(), base=1), "difference to another model than it was sent"),
        (
            lambda: changed(encoded(), arrays=["steps"]),
            "array 'steps' is serialized as 'numpy.ndarray', exp",
        ),
        (
            lambda: changed(encoded(), arrays=["bias"]),
            "array 'bias' is serialized as 'numpy.ndarray', expected 'fl-app",
        ),
        (
            lambda: changed(encoded(), arrays=["\x1b[2J"]),
            "its update claims to hold '\\x1b[2J', and do",
        ),
        (
            lambda: changed(encoded(), encoding="float16"),
            "array 'weight' holds int8, expected float16",
        ),
        (
            lambda: changed(encoded(), scales=[b"\xff" * 16]),
            "array 'weight' has a scale that is negative or not finite",
        ),
        (
            lambda: changed(encoded(), scales=[np.full(4, 1e38, "f4").tobytes()]),
            "array 'weight' is ",  # too large or not finite, as a plain one would be
        ),
        (
            lambda: changed(encoded(), scales=[b"\0" * 12]),
            "array 'weight' has 3 scales for shape (4, 16)",
        ),
        (
            lambda: with_array(encoded(), "weight", BOMB[:2]),
            "array 'weight' is encoded in shape (2, 16)",
        ),
        (
            lambda: with_array(encoded(), "weight", BOMB[:, :1]),
            "array 'weight' is encoded in shape (4, 1)",
        ),
        (
            lambda: changed(with_array(encoded(), "steps", BOMB), arrays=["steps"]),
            "array 'steps' is encoded in shape (4, 16) for int64 of ()",
        ),
        (
            lambda: with_array(encoded(), "weight", np.zeros((10**6, 1), np.int8)),
            "array 'weight' is encoded in shape (1000000, 1) for float32 of (4, 16)",
        ),
        (lambda: RecordDict({UPDATE_RECORD: encoded()[UPDATE_RECORD]}), "it has 0 ArrayRecords"),
        (
            lambda: RecordDict({**encoded(), "more": ArrayRecord(dict(MODEL))}),
            "it has 2 ArrayRecords, expected exactly one",
        ),
        (
            lambda: RecordDict({k: v for k, v in encoded().items() if k != UPDATE_RECORD}),
            "array 'weight' is serialized as 'fl-app.update', expected 'numpy.ndarray'",
        ),
    ],
)
def test_a_bad_encoding_is_rejected_with_its_reason(
    content: Callable[[], RecordDict], why: str
) -> None:
    screened = screen(content())
    assert not screened.good
    assert why in screened.rejected["12"]
    assert "cannot be read" not in screened.rejected["12"]


VALUES = st.one_of(
    st.integers(-(2**63), 2**63 - 1),
    st.floats(),
    st.text(max_size=9),
    st.binary(max_size=24),
    st.lists(st.integers(-(2**40), 2**40), max_size=4),
    st.lists(st.sampled_from(["weight", "bias", "steps", "other"]), max_size=4),
    st.lists(st.binary(max_size=24), max_size=4),
)


@settings(max_examples=200)
@given(
    st.dictionaries(
        st.sampled_from(["version", "encoding", "base", "arrays", "scales"]),
        VALUES,
        max_size=3,
    ),
    st.sampled_from([np.int8, np.float16, np.float32, np.int64, np.complex64]),
    st.lists(st.integers(0, 16), max_size=3),
)
def test_hostile_encodings_raise_nothing_but_their_reason(
    fields: dict[str, Any], dtype: type, shape: list[int]
) -> None:
    content = changed(with_array(encoded(), "weight", np.ones(shape, dtype)), **fields)
    try:
        made = decode_update(content, SentModel(MODEL))
    except UpdateError:
        return
    known = sum(np.prod(array.shape) for array in made["arrays"].values())
    assert known <= max(69, np.prod(shape) + 5)


def nodes(forms: dict[int, str]) -> Callable[[int, Message], RecordDict]:
    """Nodes of which each sends in a form of its own; "" is plain."""

    def answer(node: int, message: Message) -> RecordDict:
        arrays = ArrayRecord(dict(message.content["arrays"]))
        if message.metadata.message_type != "train":
            return reply(accuracy=0.5)
        grown = lambda: reply(step(arrays, 0.01 * node), digest=f"of {node}")  # noqa: E731
        form = forms.get(node, "")
        return with_mod(form, node, message, grown) if form else grown()

    return answer


def session(inner: Strategy, forms: dict[int, str], rounds: int = 3) -> tuple[Any, Any]:
    store, reports = InMemoryModelStore(), list[Any]()
    strategy = LifecycleStrategy(
        inner, metric="accuracy", store=store, tracker=InMemoryTracker(), hooks=[reports.append]
    )
    result = strategy.start(LocalGrid(nodes(forms)), MODEL, num_rounds=rounds)
    return result, [r for r in reports if isinstance(r, RoundReport)]


def privacy() -> Strategy:
    return flower.DifferentialPrivacyServerSideFixedClipping(
        FedAvg(), noise_multiplier=0.0, clipping_norm=0.2, num_sampled_clients=3
    )


@pytest.mark.parametrize("make", [FedAvg, StreamingFedAvg, flower.FedMedian, privacy])
def test_nodes_with_and_without_it_take_part_in_one_round(
    make: Callable[[], Strategy], home: Path
) -> None:
    plain, _ = session(make(), {})
    mixed, reports = session(make(), {11: "int8", 12: "float16"})
    assert [len(report.rejected) for report in reports] == [0, 0, 0]
    assert schema_of(mixed.arrays) == schema_of(MODEL)
    moved = np.abs(plain.arrays["weight"].numpy() - MODEL["weight"].numpy()).max()
    off = np.abs(plain.arrays["weight"].numpy() - mixed.arrays["weight"].numpy()).max()
    assert 0 < off < 0.02 * moved
    assert mixed.arrays["steps"].numpy() == plain.arrays["steps"].numpy() == 10


def test_a_session_that_was_cut_short_goes_on_with_encoded_replies(home: Path) -> None:
    forms = {11: "int8", 12: "float16"}
    whole, _ = session(StreamingFedAvg(), forms)
    answer = nodes(forms)

    def cut_short(node: int, message: Message) -> RecordDict:
        if message.content["config"]["server-round"] == 3:
            raise KeyboardInterrupt
        return answer(node, message)

    def strategy() -> LifecycleStrategy:
        parts: Any = {"store": InMemoryModelStore(), "tracker": tracker, "home": home / "cut"}
        return LifecycleStrategy(StreamingFedAvg(), metric="accuracy", **parts)

    tracker = InMemoryTracker()
    with pytest.raises(KeyboardInterrupt):
        strategy().start(LocalGrid(cut_short), MODEL, num_rounds=3)
    went_on = strategy().start(LocalGrid(answer), MODEL, num_rounds=3)
    assert list(went_on.train_metrics_clientapp) == [3]
    for name, array in whole.arrays.items():
        # Flower asks the nodes in a random order, by which sums round another way.
        made = went_on.arrays[name].numpy()
        np.testing.assert_allclose(made, array.numpy(), atol=0.003)
