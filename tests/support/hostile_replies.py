# SPDX-License-Identifier: Apache-2.0
"""Replies that no honest node sends: the right schema with one fault each, and plain junk."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, MetricRecord, RecordDict
from hypothesis import strategies as st

NAMES = ("layer.weight", "layer.bias")


def first_model(value: float = 0.0) -> ArrayRecord:
    """The global model before the first round: floats only, which every strategy takes."""
    weight = np.full((2, 3), value, np.float32)
    bias = np.full(3, value, np.float32)
    return ArrayRecord({name: Array(a) for name, a in zip(NAMES, (weight, bias), strict=True)})


@dataclass(frozen=True)
class Parts:
    """What an honest reply is made of."""

    arrays: dict[str, Array]
    metrics: dict[str, Any]

    def content(self) -> RecordDict:
        return RecordDict(
            {"arrays": ArrayRecord(dict(self.arrays)), "metrics": MetricRecord(dict(self.metrics))}
        )

    def with_array(self, name: str, array: Array) -> Parts:
        return replace(self, arrays={**self.arrays, name: array})


def honest(node: int) -> Parts:
    """What node 1, 2, … has trained."""
    random = np.random.default_rng(node)
    return Parts(
        {
            NAMES[0]: Array(random.normal(1, 0.1, (2, 3)).astype(np.float32)),
            NAMES[1]: Array(random.normal(1, 0.1, 3).astype(np.float32)),
        },
        {
            "num-examples": int(random.integers(10, 100)),
            "train_loss": float(random.uniform(0.1, 1)),
            "norm_bit": int(random.integers(0, 2)),
        },
    )


Answer = RecordDict | Error
Fault = Callable[[st.DrawFn, Parts], Answer]


def array_of(draw: st.DrawFn, parts: Parts) -> tuple[str, np.ndarray]:
    name = draw(st.sampled_from(NAMES))
    return name, parts.arrays[name].numpy()


def bad_value(draw: st.DrawFn, parts: Parts) -> Answer:
    name, values = array_of(draw, parts)
    place = draw(st.integers(0, values.size - 1))
    values.flat[place] = draw(st.sampled_from([np.nan, np.inf, -np.inf, 2e19, 3e38]))
    return parts.with_array(name, Array(values)).content()


def all_bad(draw: st.DrawFn, parts: Parts) -> Answer:
    name, values = array_of(draw, parts)
    value = draw(st.sampled_from([np.nan, np.inf, 1e300, -1e200]))
    return parts.with_array(name, Array(np.full(values.shape, value))).content()


def bad_shape(draw: st.DrawFn, parts: Parts) -> Answer:
    name, values = array_of(draw, parts)
    shape = tuple(draw(st.lists(st.integers(0, 4), max_size=4)))
    if shape == values.shape:
        shape = (*shape, 1)
    return parts.with_array(name, Array(np.ones(shape, np.float32))).content()


def bad_dtype(draw: st.DrawFn, parts: Parts) -> Answer:
    name, values = array_of(draw, parts)
    kind = draw(st.sampled_from(["c8", "i4", "i8", "u1", "?", "U3", "S5", "M8[s]", "V8", "g"]))
    return parts.with_array(name, Array(np.ones(values.shape).astype(kind))).content()


def bad_names(draw: st.DrawFn, parts: Parts) -> Answer:
    arrays = dict(parts.arrays)
    taken = arrays.pop(draw(st.sampled_from(NAMES)))
    if draw(st.booleans()):
        arrays[draw(st.text(max_size=20).filter(lambda t: t not in NAMES))] = taken
    if draw(st.booleans()):
        arrays = {**parts.arrays, draw(st.text(max_size=9).filter(lambda t: t not in NAMES)): taken}
    return replace(parts, arrays=arrays).content()


class Opened:
    """A pickle of it leaves a mark when it is loaded."""

    marks: ClassVar[list[str]] = []

    def __reduce__(self) -> tuple[Any, ...]:
        return (Opened.marks.append, ("opened",))


def bad_bytes(draw: st.DrawFn, parts: Parts) -> Answer:
    name, values = array_of(draw, parts)
    good = parts.arrays[name]
    header = good.data[10:128]
    cut = draw(st.integers(0, len(good.data) - 1))
    deep = b"{'descr': '<f4', 'fortran_order': False, 'shape': " + b"(" * 4000 + b")" * 4000 + b"}"
    shape = f"{values.shape}".encode()
    data = draw(
        st.sampled_from(
            [
                b"",
                good.data[:cut],
                good.data + b"\0",
                b"PK\x03\x04" + good.data[4:],
                pickle.dumps(Opened()),
                good.data[:6] + b"\x04\x00" + good.data[8:],
                good.data.replace(b"<f4", b"|O "),
                good.data.replace(b"'<f4'", b"[('a', '<f4')]") + b"\0" * 99,
                good.data.replace(shape, b"(9999999999999999,)"[: len(shape)].ljust(len(shape))),
                good.data.replace(shape, b"(-1, -1)"[: len(shape)].ljust(len(shape))),
                good.data[:8] + len(deep).to_bytes(2, "little") + deep + good.data[128:],
                good.data[:8] + b"\xff\xff" + header,
            ]
        )
        | st.binary(max_size=300)
    )
    return parts.with_array(name, Array(good.dtype, good.shape, good.stype, data)).content()


def tells_another(array: Array) -> Callable[[list[int]], bool]:
    return lambda shape: tuple(shape) != tuple(array.shape)


def bad_description(draw: st.DrawFn, parts: Parts) -> Answer:
    name, _ = array_of(draw, parts)
    good = parts.arrays[name]
    lies: list[dict[str, Any]] = [
        {"dtype": draw(st.text(max_size=300).filter(lambda t: t != "float32"))},
        {"shape": tuple(draw(st.lists(st.integers(), max_size=3).filter(tells_another(good))))},
        {"stype": draw(st.text(max_size=300).filter(lambda t: t != good.stype))},
        {"dtype": "f4,(3,)O"},
    ]
    lie = draw(st.sampled_from(lies))
    told = {"dtype": good.dtype, "shape": good.shape, "stype": good.stype, **lie}
    return parts.with_array(name, Array(**told, data=good.data)).content()


def bad_count(draw: st.DrawFn, parts: Parts) -> Answer:
    metrics = dict(parts.metrics)
    value = draw(
        st.sampled_from([0, -9, 0.0, -0.0, np.nan, np.inf, -np.inf, 1e9, 10**18, 10**400, 2e8, []])
        | st.floats(max_value=0, allow_nan=False)
        | st.lists(st.integers(1, 9), max_size=3)
        | st.none()
    )
    del metrics["num-examples"]
    if value is not None:
        metrics["num-examples"] = value
    return replace(parts, metrics=metrics).content()


def bad_needed_metric(draw: st.DrawFn, parts: Parts) -> Answer:
    """The metrics that only some strategies cannot do without; all others do."""
    metrics = dict(parts.metrics)
    for name in ("train_loss", "norm_bit"):
        del metrics[name]
    return replace(parts, metrics=metrics).content()


def bad_records(draw: st.DrawFn, parts: Parts) -> Answer:
    content = parts.content()
    what = draw(st.sampled_from(["arrays", "metrics", "both", "two", "two more"]))
    if what in ("arrays", "both"):
        del content["arrays"]
    if what in ("metrics", "both"):
        del content["metrics"]
    if what == "two":
        content[draw(st.text(max_size=9)) + "!"] = content["arrays"]
    if what == "two more":
        content["more"] = MetricRecord({"num-examples": 5})
    return content


def errors(draw: st.DrawFn, parts: Parts) -> Answer:
    return Error(draw(st.integers(0, 9)), draw(st.none() | st.text(max_size=500)))


scalars = st.integers(-(2**70), 2**70) | st.floats()


def junk(draw: st.DrawFn, parts: Parts) -> Answer:
    """Records of anything under any key, none of which are both a model and a count."""
    records = st.one_of(
        st.builds(
            ArrayRecord,
            st.dictionaries(
                st.text(max_size=9),
                st.builds(
                    Array,
                    st.text(max_size=9),
                    st.lists(st.integers(-(2**70), 2**70), max_size=4).map(tuple),
                    st.sampled_from(["numpy.ndarray", "torch.tensor", ""]),
                    st.binary(max_size=200),
                ),
                max_size=3,
            ),
        ),
        st.builds(
            MetricRecord,
            st.dictionaries(
                st.sampled_from(["num-examples"]) | st.text(max_size=9),
                scalars | st.lists(st.floats(), max_size=3),
                max_size=5,
            ),
        ),
        st.builds(ConfigRecord, st.dictionaries(st.text(max_size=9), st.text(), max_size=3)),
    )
    key = st.sampled_from(["arrays", "metrics"]) | st.text(max_size=9)
    return RecordDict(draw(st.dictionaries(key, records, max_size=4)))


REFUSED: tuple[Fault, ...] = (
    bad_value,
    all_bad,
    bad_shape,
    bad_dtype,
    bad_names,
    bad_bytes,
    bad_description,
    bad_count,
    bad_records,
    errors,
    junk,
)


@st.composite
def refused(draw: st.DrawFn, faults: Sequence[Fault] = REFUSED) -> Answer:
    """A reply that must not count."""
    return draw(st.sampled_from(faults))(draw, honest(0))


bad_values = st.sampled_from([np.nan, np.inf, 10**400, [np.nan], [1.0, np.inf], [0.0] * 10_001])
strange_names = st.text(max_size=30) | st.sampled_from(
    ["", "../../a\n", "a" * 5000, "\u202egnol", "\x1b[2J", "acc\x00", "\ud800", "a\tb"]
)


@st.composite
def untidy(draw: st.DrawFn) -> RecordDict:
    """A reply whose arrays and count are good, and whose metrics or keys are not."""
    parts = honest(0)
    metrics = dict(parts.metrics)
    metrics.update(draw(st.dictionaries(strange_names, scalars | bad_values, max_size=4)))
    if draw(st.booleans()):
        metrics.update({f"m{i}": float(i) for i in range(draw(st.sampled_from([50, 200, 2000])))})
    metrics["score"] = draw(bad_values | st.lists(st.floats(0, 1), max_size=3))
    for name in ("num-examples", "train_loss", "norm_bit"):
        metrics[name] = parts.metrics[name]
    arrays = dict(parts.arrays)
    if draw(st.booleans()):
        arrays = dict(reversed(arrays.items()))
    content = RecordDict()
    content[draw(st.sampled_from(["arrays", "weights", "metrics"]))] = ArrayRecord(arrays)
    content[draw(st.sampled_from(["m", "results", "\n"]))] = MetricRecord(metrics)
    content["node"] = ConfigRecord({"data-digest": draw(st.text(max_size=300) | st.integers())})
    return content
