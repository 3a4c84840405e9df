# SPDX-License-Identifier: Apache-2.0
"""compress_updates as Flower calls it: what leaves a node, and what the server makes of it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, RecordDict
from flwr.app import MetricRecord as Metrics
from flwr.clientapp import ClientApp
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.proto.recorddict_pb2 import RecordDict as RecordDictProto
from flwr.serverapp.strategy import FedAvg
from support.docs import run_block

from fl_app.client.mods.compression import compress_updates
from fl_app.wire.arrays import schema_of
from fl_app.wire.compressed_update import UPDATE_RECORD, SentModel, decode_update

MODEL = ArrayRecord(
    {
        "weight": Array(np.random.default_rng(0).normal(size=(8, 3, 3, 3)).astype(np.float32)),
        "variance": Array(np.array([1e-6, 50.0], np.float32)),
        "steps": Array(np.asarray(7, np.int64)),
    }
)
Answer = Callable[[Message], RecordDict | Error]


def trained(message: Message) -> RecordDict:
    """Each float a bit further, the counter one step; the message's arrays are taken out."""
    arrays = message.content.array_records["arrays"]
    made = ArrayRecord()
    for name in list(arrays):
        values = arrays.pop(name).numpy()
        further = values * 1.01 + 1e-3 if values.dtype.kind == "f" else values + 1
        made[name] = Array(np.asarray(further, values.dtype))
    return RecordDict({"arrays": made, "metrics": Metrics({"num-examples": 5})})


def ask(
    encoding: str | ClientApp,
    answer: Answer = trained,
    *,
    kind: str = "train",
    model: ArrayRecord = MODEL,
    **settings: Any,
) -> Message:
    made = isinstance(encoding, ClientApp)
    app = encoding if made else ClientApp(mods=[compress_updates(encoding, **settings)])

    def reply(message: Message, context: Context) -> Message:
        return Message(answer(message), reply_to=message)

    app.train()(reply)
    app.evaluate()(reply)
    content = RecordDict({"arrays": ArrayRecord(dict(model)), "config": ConfigRecord()})
    context = Context(run_id=7, node_id=5, node_config={}, state=RecordDict(), run_config={})
    message = Message(content, dst_node_id=5, message_type=kind)
    return app(message, context)


@pytest.mark.parametrize(("encoding", "share"), [("float16", 2), ("int8", 4)])
def test_a_reply_is_smaller_and_the_server_has_what_the_node_had(encoding: str, share: int) -> None:
    content = ask(encoding).content
    plain = trained(Message(RecordDict({"arrays": ArrayRecord(dict(MODEL))}), 5, "train"))
    sent = content.array_records["arrays"]
    values = np.prod(MODEL["weight"].shape) * 4 // share
    assert values < len(sent["weight"].data) <= values + 128  # numpy's header
    decoded = decode_update(content, SentModel(MODEL))
    assert UPDATE_RECORD not in decoded
    assert dict(decoded["metrics"]) == {"num-examples": 5}
    made, exact = decoded["arrays"], plain["arrays"]
    assert list(made) == list(MODEL)
    for name in ("variance", "steps"):
        assert made[name].data == exact[name].data
    off = np.abs(made["weight"].numpy() - exact["weight"].numpy()).max()
    change = np.abs(exact["weight"].numpy() - MODEL["weight"].numpy()).max()
    assert 0 < off < change / (1000 if share == 2 else 127)


def test_the_same_model_is_rounded_alike_and_the_next_is_not() -> None:
    later = ArrayRecord({**MODEL, "steps": Array(np.asarray(8, np.int64))})
    first, again, after, seeded = (
        ask("int8", model=model, seed=seed).content["arrays"]["weight"].data
        for model, seed in ((MODEL, 0), (MODEL, 0), (later, 0), (MODEL, 1))
    )
    assert first == again
    assert len({first, after, seeded}) == 3


def test_flower_s_own_strategy_averages_no_encoded_arrays() -> None:
    with pytest.raises(TypeError, match="Unsupported serialization type"):
        FedAvg().aggregate_train(1, [ask("int8")])


def test_what_is_no_train_reply_stays() -> None:
    assert ask("int8", kind="evaluate").content["arrays"]["weight"].dtype == "float32"
    error = ask("int8", lambda message: Error(3, "no pictures"))
    assert error.error.reason == "no pictures"


@pytest.mark.parametrize("name", ["weight", "variance"])
def test_a_node_with_a_value_that_is_not_finite_sits_out(name: str) -> None:
    def diverged(message: Message) -> RecordDict:
        content = trained(message)
        bad = np.full_like(MODEL[name].numpy(), np.nan)
        content["arrays"][name] = Array(bad)  # type: ignore[index]
        return content

    reason = ask("int8", diverged).error.reason
    assert reason == (
        f"this node's update cannot be sent, as array '{name}' is not finite; "
        "it does not take part in this round"
    )


def test_arrays_that_the_message_did_not_bring_are_sent_as_they_are(
    caplog: pytest.LogCaptureFixture,
) -> None:
    other = ArrayRecord({"weight": Array(np.ones((2, 2), np.float32))})
    with caplog.at_level(logging.WARNING, logger="flwr.fl_app"):
        content = ask("int8", lambda message: RecordDict({"arrays": other})).content
    assert content["arrays"]["weight"].dtype == "float32"
    assert UPDATE_RECORD not in content
    assert "an update is not compressed" in caplog.text


def test_a_model_of_vectors_alone_is_sent_as_it_is() -> None:
    vectors = ArrayRecord({name: MODEL[name] for name in ("variance", "steps")})
    content = ask("int8", model=vectors).content
    assert UPDATE_RECORD not in content
    assert content["arrays"]["variance"].stype == "numpy.ndarray"


def test_a_reply_outlives_flower_s_wire() -> None:
    sent = RecordDictProto.FromString(recorddict_to_proto(ask("int8").content).SerializeToString())
    arrived = decode_update(recorddict_from_proto(sent), SentModel(MODEL))
    assert schema_of(arrived["arrays"]) == schema_of(MODEL)


def test_the_page_s_line_is_all_it_takes() -> None:
    content = ask(run_block("wire.md", "compress_updates(")["app"]).content
    assert content["arrays"]["weight"].dtype == "int8"
    assert schema_of(decode_update(content, SentModel(MODEL))["arrays"]) == schema_of(MODEL)


def test_another_word_is_no_encoding() -> None:
    with pytest.raises(ValueError, match="encoding is 'zip', expected 'float16' or 'int8'"):
        compress_updates("zip")
