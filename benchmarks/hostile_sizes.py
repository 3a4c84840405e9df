# SPDX-License-Identifier: Apache-2.0
"""CPU that the server spends on 2 MB and 12 MB of a hostile index, header or list.

Each kind is what one node, or one who may write to the model store, sends in place of a small one.
Rounds are whole rounds of the shipped strategy with two honest nodes beside the hostile one, less
the same round without it. What Flower itself spends to receive a message is not counted.
"""

from __future__ import annotations

import io
import json
import logging
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from support.local_grid import LocalGrid

from benchmarks.table import Row, parser, report
from fl_app.flower_internals import ErrorCode
from fl_app.retraining.drift.check import DriftSettings, observe
from fl_app.retraining.drift.state import DriftState
from fl_app.strategy import LifecycleStrategy, StreamingFedAvg
from fl_app.wire.compressed_update import UPDATE_RECORD
from fl_app.wire.data_summary import SUMMARY_RECORD
from fl_app.wire.packing import INDEX_RECORD, PACKED_AS, pack, unpack
from fl_registry import InMemoryModelStore, InMemoryTracker
from fl_registry.files.weights import read_header

MEGABYTES = (2, 12)
GOAL = 0.2
"""Seconds of CPU for each."""
ROWS = 355  # as many arrays as a YOLOv8n has

Reply = RecordDict | Error


def text_of(unit: str, size: int, *, between: str = ",") -> str:
    """A list of so many bytes of one unit; ``#`` in it is a number."""
    count = size // (len(unit) + len(between) + (5 if "#" in unit else 0))
    return between.join(unit.replace("#", str(n)) for n in range(count))


def model() -> ArrayRecord:
    """A model of many small arrays."""
    return ArrayRecord({f"layer.{n}": Array(np.zeros((4, 4), "f4")) for n in range(ROWS)})


def honest() -> RecordDict:
    """An honest reply."""
    metrics = MetricRecord({"num-examples": 10, "loss": 0.5})
    return RecordDict({"arrays": model(), "metrics": metrics})


def with_record(name: str, **fields: Any) -> RecordDict:
    """An honest reply with one more ConfigRecord."""
    content = honest()
    content[name] = ConfigRecord(fields)
    return content


def with_header(header: bytes) -> RecordDict:
    """A reply in which each array has a header of numpy's that is this long."""
    content, length = honest(), len(header).to_bytes(2, "little")
    data = b"\x93NUMPY\x01\x00" + length + header
    lie = {n: Array(a.dtype, a.shape, a.stype, data) for n, a in content["arrays"].items()}
    content["arrays"] = ArrayRecord(lie)
    return content


def with_metrics(size: int) -> RecordDict:
    """A reply with as many metrics as fit."""
    content = honest()
    names = {f"m{n:07}": float(n) for n in range(size // 17)}
    content["metrics"] = MetricRecord({"num-examples": 10, "loss": 0.5, **names})
    return content


def with_arrays(size: int) -> RecordDict:
    """A reply of as many arrays as fit."""
    content, one = honest(), Array(np.zeros((1,), "f4"))
    content["arrays"] = ArrayRecord({f"a{n}": one for n in range(size // 132)})
    return content


def in_metrics(value: list[float]) -> RecordDict:
    """A reply with a list among its metrics."""
    content = honest()
    content["metrics"] = MetricRecord({"num-examples": 10, "loss": 0.5, "list": value})
    return content


def summary(size: int, **lies: Callable[[int], object]) -> RecordDict:
    """A reply whose data summary has a field that is far too long."""
    node = {"version": 1, "node-id": "1", "reference": "r", "bins": 64, "noise": [0.0]}
    fields = {**node, "names": ["a"], "kinds": ["value"], "counts": b"\0" * 256}
    return with_record(SUMMARY_RECORD, **{**fields, **{k: lie(size) for k, lie in lies.items()}})


def update(size: int, *, scale: bytes) -> RecordDict:
    """A reply that claims to encode as many arrays as fit."""
    names = [f"a{n:07}" for n in range(size // (8 + len(scale)))]
    fields = {"version": 1, "encoding": "int8", "base": 0, "arrays": names}
    return with_record(UPDATE_RECORD, **fields, scales=[scale] * len(names))


REPLIES: dict[str, Callable[[int], Reply]] = {
    "npy headers of blanks": lambda size: with_header(
        b"{'descr': '<f4', 'fortran_order': False, 'shape': (4,".ljust(min(9_900, size // ROWS))
    ),
    "npy headers of commas": lambda size: with_header(
        b"{'descr': '<f4', 'fortran_order': False, 'shape': ("
        + b"1 , " * (min(9_800, size // ROWS) // 4)
    ),
    "npy headers of axes": lambda size: with_header(
        b"{'descr': '<f4', 'fortran_order': False, 'shape': ("
        + b"9" * 18
        + b",1" * (min(9_800, size // ROWS) // 2)
        + b",), }\n"
    ),
    "one npy header": lambda size: with_header(b"{" + b" " * 60_000),
    "arrays": with_arrays,
    "metrics": with_metrics,
    "a metric's list": lambda size: in_metrics([0.5] * (size // 8)),
    "summary: names": lambda size: summary(size, names=lambda s: ["abcd"] * (s // 4)),
    "summary: kinds": lambda size: summary(size, kinds=lambda s: ["value"] * (s // 5)),
    "summary: wrong kinds": lambda size: summary(size, kinds=lambda s: ["nokind"] * (s // 6)),
    "summary: noise": lambda size: summary(size, noise=lambda s: [0.0] * (s // 8)),
    "summary: a name": lambda size: summary(size, names=lambda s: ["a" * s]),
    "summary: counts": lambda size: summary(size, counts=bytes),
    "summary: other fields": lambda size: summary(size, more=lambda s: ["x" * 9] * (s // 9)),
    "summary: more fields": lambda size: with_record(
        SUMMARY_RECORD, **{f"m{n:07}": 1 for n in range(size // 16)}
    ),
    "update: names": lambda size: update(size, scale=b"\0\0\0\0"),
    "update: no scales": lambda size: update(size, scale=b""),
    "update: one scale": lambda size: with_record(
        UPDATE_RECORD, version=1, encoding="int8", base=0, arrays=["layer.0"], scales=[bytes(size)]
    ),
    "node: notes": lambda size: with_record("node", notes=["note"] * (size // 4)),
    "node: a note": lambda size: with_record("node", notes=["\0" * size]),
    "node: digest": lambda size: with_record("node", **{"data-digest": "\0" * size}),
    "other records": lambda size: with_record("config", a=["x" * 8] * (size // 8)),
    "an error's text": lambda size: Error(
        ErrorCode.CLIENT_APP_RAISED_EXCEPTION, "://a:b" * (size // 6)
    ),
}


def seconds_of_round(hostile: Reply, home: Path, first: ArrayRecord | None = None) -> float:
    """CPU of a round with two honest nodes and this reply."""
    made = {1: hostile, 2: honest(), 3: honest()}

    def answer(node: int, message: Message) -> Reply:
        if message.metadata.message_type == "train":
            return made[node]
        return RecordDict({"metrics": MetricRecord({"num-examples": 10, "accuracy": 0.5})})

    strategy = LifecycleStrategy(
        StreamingFedAvg(), store=InMemoryModelStore(), tracker=InMemoryTracker(), home=home
    )
    first = model() if first is None else first
    began = time.process_time()
    strategy.start(LocalGrid(answer, [1, 2, 3]), first, num_rounds=1)
    return time.process_time() - began


def seconds_of(work: Callable[[], object]) -> float:
    """CPU of work that is to be refused or not."""
    began = time.process_time()
    with suppress(ValueError):
        work()
    return time.process_time() - began


def packed(text: str) -> tuple[RecordDict, RecordDict]:
    """A reply with an index, and what it answers."""
    one = ArrayRecord({"packed": Array("uint8", (0,), PACKED_AS, b"")})
    return RecordDict({"arrays": one, INDEX_RECORD: ConfigRecord({"index": text})}), pack(honest())


EMPTY_ROW = '["#","",[],"",0]'
INDEXES: dict[str, Callable[[int], str]] = {
    "empty rows": lambda s: f'{{"version":1,"records":{{"arrays":[{text_of(EMPTY_ROW, s)}]}}}}',
    "records": lambda s: (
        f'{{"version":1,"records":{{{text_of(chr(34) + "#" + chr(34) + ":[]", s)}}}}}'
    ),
    "one shape": lambda s: (
        f'{{"version":1,"records":{{"arrays":[["a","f4",[{text_of("1", s)}],"",0]]}}}}'
    ),
    "blanks": lambda s: f'{{"version":1,"records":{{{" " * s}}}}}',
    "a name": lambda s: f'{{"version":1,"records":{{"{"a" * s}":[]}}}}',
    "depth": lambda s: "[" * s,
    "numbers": lambda s: f'{{"version":{"9" * s}}}',
}
"""Indexes of packed arrays by what they are full of."""
HEADERS: dict[str, Callable[[int], str]] = {
    "empty arrays": lambda s: (
        "{" + text_of('"#":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}', s) + "}"
    ),
    "wrong arrays": lambda s: "{" + text_of('"#":{}', s) + "}",
    "a shape": lambda s: (
        f'{{"a":{{"dtype":"F32","shape":[{text_of("1", s)}],"data_offsets":[0,4]}}}}'
    ),
    "metadata": lambda s: '{"__metadata__":{' + text_of('"#":"a"', s) + "}}",
    "wrong metadata": lambda s: '{"__metadata__":{' + text_of('"#":1', s) + "}}",
    "a manifest": lambda s: json.dumps(
        {
            "__metadata__": {
                "fl-app": '{"format":"fl-app-weights/2","model":{},"order":['
                + text_of('"#"', s)
                + "]}"
            }
        }
    ),
    "a manifest's model": lambda s: json.dumps(
        {
            "__metadata__": {
                "fl-app": '{"format":"fl-app-weights/2","order":[],"model":{'
                + text_of('"#":[]', s)
                + "}}"
            }
        }
    ),
    "depth": lambda s: "[" * s,
    "blanks": lambda s: "{" + " " * s + "}",
    "numbers": lambda s: '{"a":' + "9" * s + "}",
}
"""Headers of safetensors files by what they are full of."""


def file_of(header: str) -> io.BytesIO:
    """A safetensors file of a header alone."""
    data = header.encode()
    return io.BytesIO(len(data).to_bytes(8, "little") + data)


def measured() -> Iterator[tuple[str, int, float]]:
    """Kind, megabytes, and seconds."""
    for number, (name, reply) in enumerate(REPLIES.items()):
        for megabytes in MEGABYTES:
            with tempfile.TemporaryDirectory(prefix="fl-app-bench-") as folder:
                home = Path(folder)
                seconds_of_round(honest(), home / "warm")
                usual = min(seconds_of_round(honest(), home / f"{number}-{n}") for n in range(3))
                content = reply(megabytes * 10**6)
                spent = min(seconds_of_round(content, home / f"h{n}") for n in range(2))
                yield f"a round: {name}", megabytes, max(0.0, spent - usual)
                if name == "arrays":
                    spent = seconds_of_round(content, home / "first", first=ArrayRecord())
                    yield "a first round: arrays", megabytes, max(0.0, spent - usual)
                if isinstance(content, RecordDict) and SUMMARY_RECORD in content:
                    records = {"1": content.config_records[SUMMARY_RECORD]}
                    spent = seconds_of(
                        lambda records=records: observe(DriftState(), records, 1.0, DriftSettings())
                    )
                    yield f"drift: {name}", megabytes, spent
    for name, index in INDEXES.items():
        for megabytes in MEGABYTES:
            content, sent = packed(index(megabytes * 10**6))
            for what, asked in (("", sent), (", first model", None)):
                spent = seconds_of(lambda content=content, asked=asked: unpack(content, asked))
                yield f"packed index: {name}{what}", megabytes, spent
    for name, header in HEADERS.items():
        for megabytes in MEGABYTES:
            file = file_of(header(megabytes * 10**6))
            spent = seconds_of(lambda file=file: read_header(file))
            yield f"safetensors: {name}", megabytes, spent


def measure() -> Iterator[Row]:
    """A row for each kind and size."""
    logging.disable(logging.CRITICAL)
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 7, 1
    for name, megabytes, seconds in measured():
        yield Row(f"{name}, {megabytes} MB (s of CPU)", seconds, goal=GOAL, met=seconds < GOAL)


if __name__ == "__main__":
    report(measure(), parser(__doc__).parse_args().json)
