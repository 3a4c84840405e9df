# SPDX-License-Identifier: Apache-2.0
"""What must hold whatever bytes a node sends in place of its reply, or somebody in place of a file.

A text of bytes is one byte, which says what the others are, and those. `try_bytes` raises an
AssertionError, or what has escaped.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from typing import Any, cast

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.proto.recorddict_pb2 import RecordDict as Proto
from flwr.serverapp import Grid
from support.local_grid import LocalGrid

from fl_app.api.parsing import ApiError, json_object
from fl_app.retraining.drift.check import DriftSettings, observe
from fl_app.retraining.drift.state import DriftState
from fl_app.strategy import Screening, StreamingFedAvg
from fl_app.strategy.checkpoints.record import encode
from fl_app.strategy.round.grids import OneByOne
from fl_app.strategy.round.inner_strategy import aggregate, aggregate_evaluate
from fl_app.strategy.round.screening import (
    ScreenedReplies,
    needs_of,
    screen_evaluate,
    screen_train,
)
from fl_app.strategy.round.state import ClosedRound, contributions, node_scores
from fl_app.wire.arrays import schema_of, view
from fl_app.wire.compressed_update import UPDATE_RECORD, Encoding, SentModel, UpdateHeader
from fl_app.wire.compressed_update import encode as coded
from fl_app.wire.data_summary import SUMMARY_RECORD, DataSummary, Feature
from fl_app.wire.packing import INDEX_RECORD, pack
from fl_registry.files.weights import read_header
from fl_registry.redaction import printable

NODES, HOSTILE = (1, 2, 3, 4), 2
STRATEGY = StreamingFedAvg()
SHAPES = {"layer.weight": (2, 8), "layer.bias": (3,)}


def model(value: float = 0.0) -> ArrayRecord:
    """Return a small model."""
    return ArrayRecord({n: Array(np.full(s, value, "f4")) for n, s in SHAPES.items()})


@cache
def packed(node: int) -> RecordDict:
    """Return an honest reply as it is sent."""
    return pack(honest(node))


def honest(node: int) -> RecordDict:
    """Return an honest reply."""
    numbers = {"num-examples": 10 + node, "loss": 0.5, "accuracy": 0.5 + node / 100}
    return RecordDict({"arrays": model(1 + node / 100), "metrics": MetricRecord(numbers)})


def summary() -> dict[str, Any]:
    """Return the record of a data summary."""
    features, counts = (Feature("a"), Feature("b")), np.full((2, 3, 4), 5.0)
    return dict(DataSummary(str(HOSTILE), "r", features, counts, (0.0,) * 3).to_record())


def encoded_update() -> RecordDict:
    """Return an honest reply whose arrays are sent as a difference."""
    content, sent, chance = honest(HOSTILE), model(), np.random.default_rng(0)
    arrays, scales = dict(content["arrays"].items()), {}
    for name, array in sent.items():
        made = coded(arrays[name].numpy(), array.numpy(), Encoding.INT8, chance)
        if made is not None:
            values, scales[name] = made
            one = Array(values)
            arrays[name] = Array(one.dtype, one.shape, "fl-app.update", one.data)
    content["arrays"] = ArrayRecord(arrays)
    header = UpdateHeader(Encoding.INT8, SentModel(sent).fingerprint, scales)
    content[UPDATE_RECORD] = ConfigRecord(header.to_record())
    return content


# What the bytes are, each as a part of a reply that is otherwise honest.


def whole(data: bytes) -> RecordDict:
    """The reply, as protobuf."""
    return recorddict_from_proto(Proto.FromString(data))


def of_array(data: bytes) -> RecordDict:
    """An array's payload."""
    content = honest(HOSTILE)
    good = content["arrays"]["layer.bias"]
    lie = Array(good.dtype, good.shape, good.stype, data)
    content["arrays"] = ArrayRecord({**content["arrays"], "layer.bias": lie})
    return content


def of_index(data: bytes) -> RecordDict:
    """The index of packed arrays."""
    content = pack(honest(HOSTILE))
    content[INDEX_RECORD] = ConfigRecord({"index": data.decode(errors="replace")})
    return content


def of_summary(data: bytes) -> RecordDict:
    """The data summary, as protobuf: a reply with that record alone."""
    return RecordDict({**honest(HOSTILE), SUMMARY_RECORD: first_config(data)})


def of_counts(data: bytes) -> RecordDict:
    """The counts of a data summary."""
    record = ConfigRecord({**summary(), "counts": data})
    return RecordDict({**honest(HOSTILE), SUMMARY_RECORD: record})


def of_update(data: bytes) -> RecordDict:
    """The description of encoded arrays, as protobuf: a reply with that record alone."""
    return RecordDict({**encoded_update(), UPDATE_RECORD: first_config(data)})


def of_metrics(data: bytes) -> RecordDict:
    """Metrics, as JSON."""
    content, read = honest(HOSTILE), json.loads(data)
    content["metrics"] = MetricRecord({**read} if data[:1] == b"{" else {})
    return content


def first_config(data: bytes) -> ConfigRecord:
    """Return the first ConfigRecord of a reply."""
    return next(iter(whole(data).config_records.values()), ConfigRecord())


PARTS: tuple[Callable[[bytes], RecordDict], ...] = (
    *(whole, of_array, of_index, of_summary, of_counts, of_update, of_metrics),
)
FILE, BODY = len(PARTS), len(PARTS) + 1
KINDS = len(PARTS) + 2


def proto(content: RecordDict) -> bytes:
    """Return a reply as protobuf."""
    return cast("bytes", recorddict_to_proto(content).SerializeToString())


def seeds() -> list[bytes]:
    """Return honest inputs of each kind, from which a fuzzer begins."""
    summed = RecordDict({"s": ConfigRecord(summary())})
    node = ConfigRecord({"data-digest": "a" * 64, "notes": ["a note"]})
    header = {"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}
    order = {"fl-app": '{"format":"fl-app-weights/2","order":["w"],"model":{}}'}
    text = json.dumps({"__metadata__": order, **header}).encode()
    index = pack(honest(HOSTILE)).config_records[INDEX_RECORD]["index"]
    metrics = {"num-examples": 10, "accuracy": 0.5, "accuracy/car": 0.5, "list": [0.5, 1.0]}
    parts = [
        *[(0, proto(RecordDict({**honest(HOSTILE), "node": node})))],
        *[(0, proto(encoded_update())), (0, proto(pack(encoded_update())))],
        *[(1, honest(HOSTILE)["arrays"]["layer.bias"].data), (2, str(index).encode())],
        *[(3, proto(summed)), (4, cast("bytes", summary()["counts"]))],
        (5, proto(RecordDict({"u": encoded_update()[UPDATE_RECORD]}))),
        (6, json.dumps(metrics).encode()),
        (FILE, len(text).to_bytes(8, "little") + text + bytes(4)),
        (BODY, b'{"reason": "new pictures", "force": false, "a": [1, 2.5, null, "\\u00e4"]}'),
    ]
    return [bytes([kind]) + data for kind, data in parts]


# The round.


@dataclass
class Wire(LocalGrid):
    """A Grid of Flower's in so far as a reply is read when it is pulled."""

    data: Callable[[], RecordDict]
    sent: dict[str, Message] = field(default_factory=dict)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Remember the messages."""
        for number, message in enumerate(messages):
            message.metadata.__dict__["_message_id"] = str(number)
            self.sent[str(number)] = message
        return [*self.sent]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Read the replies: this may raise, as Flower's may."""
        for message_id in message_ids:
            message = self.sent[message_id]
            node = message.metadata.dst_node_id
            content = self.data() if node == HOSTILE else packed(node)
            answer = Message(content, reply_to=message)
            answer.metadata.__dict__["_src_node_id"] = node
            yield answer


def arriving(kind: str, data: Callable[[], RecordDict]) -> Iterator[Message]:
    """Send the model to all nodes and return what is read of their replies."""
    content = RecordDict({"arrays": model(), "config": ConfigRecord({"server-round": 1})})
    grid = OneByOne(cast("Grid", Wire(data)), packed=True, sleep=lambda _: None)
    yield from grid.send_and_receive([Message(content, node, kind) for node in NODES])


def round_of(data: Callable[[], RecordDict]) -> tuple[ArrayRecord, set[str]]:
    """Train for a round; return the model that it made, and the nodes that were rejected."""
    needs, sent = needs_of(STRATEGY), model()
    schema, asked = schema_of(sent), [str(node) for node in NODES]
    replies = arriving("train", data)
    screened = screen_train(
        replies, Screening(), needs=needs, model=sent, schema=schema, requested=asked
    )
    made = aggregate(STRATEGY, 1, screened, schema)
    assert made.arrays is not None, made.problem
    nodes = contributions(screened.good, needs.weighted_by)
    require_written(ClosedRound(1, nodes=nodes, train=made.metrics), screened)
    records = {n.node_id: n.summary for n in nodes if n.summary is not None}
    state, _ = observe(DriftState(), records, 1.0, DriftSettings())
    assert state is not None
    return made.arrays, {*screened.rejected}


def scores_of(data: Callable[[], RecordDict]) -> None:
    """Evaluate for a round."""
    replies, asked = arriving("evaluate", data), [str(node) for node in NODES]
    needs = needs_of(STRATEGY, evaluate=True)
    screened = screen_evaluate(
        replies, Screening(), needs=needs, requested=asked, metric="accuracy"
    )
    clients = aggregate_evaluate(STRATEGY, 1, screened)
    assert clients is not None
    assert 0 <= float(cast("float", clients["accuracy"])) <= 1
    scores = node_scores(screened.good, "accuracy")
    require_written(ClosedRound(1, clients=clients, node_scores=scores), screened)


def require_written(closed: ClosedRound, screened: ScreenedReplies) -> None:
    """Require that a round can be written to disk, and that its reasons are one line each."""
    json.dumps(encode(closed), allow_nan=False).encode()
    for why in (*screened.rejected.values(), *screened.notes.values()):
        assert printable(why) == why
        assert 0 < len(why) <= 500


@cache
def without() -> ArrayRecord:
    """Return the model of a round whose hostile node sends nothing that can be read."""
    return round_of(lambda: whole(b"\xff"))[0]


def try_bytes(data: bytes) -> None:
    """Read bytes as what their first one says, and check what comes of them."""
    if not data:
        return
    kind, rest = data[0] % KINDS, data[1:]
    if kind == FILE:
        with suppress(ValueError):
            read_header(io.BytesIO(rest))
    elif kind == BODY:
        with suppress(ApiError):
            json_object(rest)
    else:
        made, rejected = round_of(lambda: PARTS[kind](rest))
        if PARTS[kind] in (whole, of_metrics):
            scores_of(lambda: PARTS[kind](rest))
        assert rejected <= {str(HOSTILE)}
        assert list(made) == list(SHAPES)
        for name, array in made.items():
            values = view(array)
            assert values.shape == SHAPES[name]
            assert math.isfinite(float(np.abs(values).sum()))
            if rejected:
                assert array.data == without()[name].data
