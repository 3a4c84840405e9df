# SPDX-License-Identifier: Apache-2.0
"""A ClientApp that trains nothing: honest nodes add one to the weights, hostile ones do not."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


class Leaves:
    """A pickle of it would write a file where it is loaded."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, ("hostile-was-here", "w"))


def honest(message: Message) -> dict[str, Any]:
    (weights,) = message.content["arrays"].to_numpy_ndarrays()
    return {"weights": weights + np.float32(1), "metrics": {"num-examples": 10, "loss": 0.5}}


def arrays(parts: dict[str, Any]) -> ArrayRecord:
    return ArrayRecord([np.asarray(parts["weights"])])


def raw(parts: dict[str, Any], data: bytes) -> ArrayRecord:
    good = arrays(parts)["0"]
    return ArrayRecord({"0": Array(good.dtype, good.shape, good.stype, data)})


def with_weights(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Any], RecordDict]:
    return lambda parts: records({**parts, "weights": change(parts["weights"])})


def with_metrics(**changed: Any) -> Callable[[Any], RecordDict]:
    named = {name.replace("_", "-"): value for name, value in changed.items()}
    return lambda parts: records({**parts, "metrics": {**parts["metrics"], **named}})


def records(parts: dict[str, Any]) -> RecordDict:
    metrics = MetricRecord(dict(parts["metrics"]))
    return RecordDict({"arrays": arrays(parts), "metrics": metrics})


def unpackable(parts: dict[str, Any]) -> RecordDict:
    content = records(parts)
    content.array_records["arrays"]["0"].shape = ("x",)  # type: ignore[assignment]
    return content


def raises(parts: dict[str, Any]) -> RecordDict:
    raise RuntimeError("no disk\nround 9: all is well\x1b[2J")


KINDS: dict[str, Callable[[dict[str, Any]], RecordDict]] = {
    "nan": with_weights(lambda w: np.full_like(w, np.nan)),
    "unpackable": unpackable,
    "huge": with_weights(lambda w: np.full_like(w, 3e38)),
    "shape": with_weights(lambda w: w[:1]),
    "dtype": with_weights(lambda w: w.astype("U8")),
    "foreign": lambda parts: RecordDict(
        {
            "arrays": ArrayRecord({"z": Array(np.ones(3))}),
            "metrics": MetricRecord({"num-examples": 10**15}),
        }
    ),
    "pickle": lambda parts: RecordDict(
        {
            "arrays": raw(parts, pickle.dumps(Leaves())),
            "metrics": MetricRecord({"num-examples": 10}),
        }
    ),
    "negative": with_metrics(num_examples=-9),
    "many": with_metrics(num_examples=10**18),
    "uncounted": lambda parts: RecordDict(
        {"arrays": arrays(parts), "metrics": MetricRecord({"loss": 0.5})}
    ),
    "recordless": lambda parts: RecordDict({"node": ConfigRecord({"data-digest": "x" * 9000})}),
    "error": raises,
    "untidy": lambda parts: records(
        {
            **parts,
            "metrics": {
                **parts["metrics"],
                "loss": float("nan"),
                "../../a\n\x1b[2J": 1.0,
                **{f"m{number}": 1.0 for number in range(2000)},
            },
        }
    ),
}
"""What a hostile node sends; all but the last are to be rejected."""


@app.train()
def train(message: Message, context: Context) -> Message:
    """Do what the node is set to in this round."""
    kinds = str(context.node_config["data"]).split("+")
    number = int(message.content["config"]["server-round"])
    kind = kinds[(number - 1) % len(kinds)]
    parts = honest(message)
    content = records(parts) if kind == "honest" else KINDS[kind](parts)
    return Message(content, reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """A tenth of the weights; hostile nodes lie, but not in a way that can be counted."""
    (weights,) = message.content["arrays"].to_numpy_ndarrays()
    told: dict[str, Any] = {"num-examples": 10, "accuracy": float(weights.mean()) / 10}
    if "honest" not in str(context.node_config["data"]):
        told = {"num-examples": -1, "accuracy": 1e9}
    return Message(RecordDict({"metrics": MetricRecord(told)}), reply_to=message)
