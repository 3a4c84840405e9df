# SPDX-License-Identifier: Apache-2.0
"""pack_arrays as Flower calls it: what the app sees, and what leaves the node."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord
from flwr.app import RecordDict as Records
from flwr.clientapp import ClientApp
from support.docs import run_block

from fl_app.client.mods.compression import compress_updates
from fl_app.client.mods.packing import pack_arrays
from fl_app.wire.compressed_update import UPDATE_RECORD
from fl_app.wire.packing import INDEX_RECORD, is_packed, pack, unpack

MODEL = ArrayRecord(
    {
        "weight": Array(np.ones((4, 16), np.float32)),
        "steps": Array(np.asarray(7, np.int64)),
    }
)
METRICS = MetricRecord({"num-examples": 5})


def ask(app: ClientApp, content: Records, answer: Any = None) -> Message:
    """Ask an app that sends back what it got; ``answer`` is what it does instead."""

    @app.train()
    def train(message: Message, context: Context) -> Message:
        assert message.content["arrays"]["weight"].numpy().shape == (4, 16)
        assert INDEX_RECORD not in message.content
        got = message.content["arrays"]
        return Message(answer or Records({"arrays": got, "metrics": METRICS}), reply_to=message)

    context = Context(run_id=7, node_id=5, node_config={}, state=Records(), run_config={})
    return app(Message(content, dst_node_id=5, message_type="train"), context)


def sent() -> Records:
    return Records({"arrays": ArrayRecord(dict(MODEL)), "config": ConfigRecord()})


def test_the_app_sees_plain_arrays_and_its_reply_is_packed() -> None:
    reply = ask(ClientApp(mods=[pack_arrays]), pack(sent()))
    assert list(reply.content["arrays"]) == ["packed"]
    content = unpack(reply.content)
    assert list(content["arrays"]) == list(MODEL)
    assert content["arrays"]["weight"].data == MODEL["weight"].data
    assert content["metrics"] == METRICS


def test_a_message_that_is_not_packed_gets_a_reply_that_is_not() -> None:
    assert not is_packed(ask(ClientApp(mods=[pack_arrays]), sent()).content)


def test_compressed_updates_are_packed_as_they_are() -> None:
    mods = [pack_arrays, compress_updates("int8")]
    content = unpack(ask(ClientApp(mods=mods), pack(sent())).content)
    assert UPDATE_RECORD in content
    assert content["arrays"]["weight"].dtype == "int8"


def test_an_error_stays_one() -> None:
    reply = ask(ClientApp(mods=[pack_arrays]), pack(sent()), Error(3, "no pictures"))
    assert reply.error.reason == "no pictures"


def test_what_the_server_has_packed_badly_is_told_of() -> None:
    bad = pack(sent())
    bad[INDEX_RECORD] = ConfigRecord({"index": "{"})
    reply = ask(ClientApp(mods=[pack_arrays]), bad)
    assert reply.error.reason == "what the server sent has no readable index"


def test_the_page_s_line_is_all_it_takes() -> None:
    app = run_block("wire.md", "pack_arrays]")["app"]
    assert list(unpack(ask(app, pack(sent())).content)["arrays"]) == list(MODEL)


@pytest.mark.parametrize("kind", ["train", "evaluate"])
def test_the_shipped_app_has_it_for_all_its_messages(kind: str) -> None:
    pytest.importorskip("ultralytics")
    from fl_app.client.client_app import app

    bad = pack(sent())
    bad[INDEX_RECORD] = ConfigRecord({"index": "{"})
    context = Context(run_id=7, node_id=5, node_config={}, state=Records(), run_config={})
    reply = app(Message(bad, dst_node_id=5, message_type=kind), context)
    assert reply.error.reason == "what the server sent has no readable index"
