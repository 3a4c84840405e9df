# SPDX-License-Identifier: AGPL-3.0-or-later
"""What compressed updates save on the wire, what that takes, and what it costs in accuracy.

Bytes and milliseconds are those of a YOLOv8n's update, beside the same arrays sent as float32 and
copied by numpy, in turn. Accuracy is that of whole sessions with equal seeds, plain and compressed:

- a network with one hidden layer on scikit-learn's digits, 10 nodes of which each has mostly two
  of the ten classes, 20 rounds; the mean difference over 30 seeds with its interval of 95 %.
- the shipped recipe with YOLOv8n on 512 generated pictures, 2 nodes, 8 rounds. Three sessions take
  some minutes; ``--only`` names one part, so that they can be run apart.
"""

from __future__ import annotations

import json
import logging
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

# Before Ultralytics is loaded: settings of its own, without its MLflow callback.
os.environ["YOLO_CONFIG_DIR"] = tempfile.mkdtemp(prefix="fl-app-bench-")
os.environ["FL_APP_HOME"] = os.environ["YOLO_CONFIG_DIR"]
os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message, RecordDict
from flwr.serverapp.strategy import FedAvg, Strategy
from flwr.supercore.task_identity import TaskIdentity
from scipy.stats import t as students_t
from sklearn.datasets import load_digits
from support.local_grid import LocalGrid, reply

from benchmarks.table import Row, parser, report
from fl_app.client.mods.compression import compress_updates
from fl_app.config import ServerConfig
from fl_app.strategy import LifecycleStrategy, StreamingFedAvg
from fl_app.wire.compressed_update import UPDATE_RECORD, SentModel, decode_update
from fl_registry import InMemoryModelStore, InMemoryTracker

OWN = Path(os.environ["FL_APP_HOME"])
ENCODINGS = ("float16", "int8")
REPEATS, SEEDS = 9, 30
DIGITS_NODES, DIGITS_ROUNDS, HIDDEN, STEPS, RATE = 10, 20, 64, 20, 0.1
YOLO_SEEDS = 1

Split = tuple[np.ndarray, np.ndarray]


def compressed(encoding: str, message: Message, answer: Callable[[], RecordDict]) -> RecordDict:
    """What a node sends; "none" is plain."""
    if encoding == "none":
        return answer()
    context = Context(7, message.metadata.dst_node_id, {}, RecordDict(), {})
    mod = compress_updates(encoding)
    return mod(message, context, lambda m, _: Message(answer(), reply_to=m)).content


# Bytes and time.


def size_of(content: RecordDict) -> int:
    """Bytes of the arrays and of the record that describes them."""
    arrays = sum(len(array.data) for array in content.array_records["arrays"].values())
    header = content.config_records.get(UPDATE_RECORD, {})
    parts = [part for v in header.values() for part in (v if isinstance(v, list) else [v])]
    return arrays + sum(len(v if isinstance(v, bytes) else str(v)) for v in parts)


def milliseconds(work: Callable[[], object]) -> float:
    """Of one call."""
    began = time.perf_counter()
    work()
    return (time.perf_counter() - began) * 1e3


def measure_wire() -> Iterator[Row]:
    """Rows of one update of YOLOv8n."""
    from support.arrays import to_arrays

    from fl_models.yolo import get_model

    rng = np.random.default_rng(0)
    model = ArrayRecord({k: Array(v) for k, v in to_arrays(get_model("n", 7, seed=1)).items()})
    trained = ArrayRecord()
    for name, array in model.items():
        values = array.numpy()
        moved = values + 1e-3 * rng.standard_normal(values.shape)
        trained[name] = Array(
            np.asarray(moved if values.dtype.kind == "f" else values, values.dtype)
        )
    message = Message(RecordDict({"arrays": model}), 5, "train")
    plain, sent = reply(trained), SentModel(model)
    flat = np.concatenate([array.numpy().ravel() for array in trained.values()])
    target = np.empty_like(flat)
    ways: dict[str, Callable[[], object]] = {"copy": lambda: np.copyto(target, flat)}
    for encoding in ENCODINGS:
        content = compressed(encoding, message, lambda: RecordDict(dict(plain)))
        yield Row(f"{encoding}: bytes", size_of(content), "float32", size_of(plain))
        ways[f"{encoding}: encode (ms)"] = lambda encoding=encoding: compressed(
            encoding, message, lambda: RecordDict(dict(plain))
        )
        ways[f"{encoding}: decode (ms)"] = lambda content=content: decode_update(content, sent)
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(REPEATS):
        for name, work in ways.items():
            taken[name].append(milliseconds(work))
    took = {name: statistics.median(times) for name, times in taken.items()}
    copied = took.pop("copy")
    yield from (Row(name, ms, "copied by numpy", copied) for name, ms in took.items())


# Accuracy on digits.


def digits(seed: int) -> tuple[list[Split], Split]:
    """The nodes' pictures, each node's mostly of two classes, and a fifth of all to score on."""
    pictures, classes = load_digits(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(classes))
    pictures, classes = (pictures[order] / 16).astype(np.float32), classes[order]
    held, rest = slice(0, len(order) // 5), slice(len(order) // 5, None)
    x, y = pictures[rest], classes[rest]
    shares = np.random.default_rng(seed + 1).dirichlet(np.full(DIGITS_NODES, 0.2), 10)
    owner = np.zeros(len(y), int)
    for kind in range(10):
        mine = np.flatnonzero(y == kind)
        owner[mine] = np.random.default_rng((seed, kind)).choice(
            DIGITS_NODES, len(mine), p=shares[kind]
        )
    parts = [(x[owner == node], y[owner == node]) for node in range(DIGITS_NODES)]
    return [part for part in parts if len(part[1]) > 1], (pictures[held], classes[held])


def first_network(seed: int) -> ArrayRecord:
    """Weights of a network with one hidden layer."""
    rng = np.random.default_rng(seed)
    one, two = rng.normal(0, 0.15, (HIDDEN, 64)), rng.normal(0, 0.15, (10, HIDDEN))
    shapes = one, np.zeros(HIDDEN), two, np.zeros(10)
    return ArrayRecord([values.astype(np.float32) for values in shapes])


def forward(arrays: list[np.ndarray], pictures: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Hidden activations and class scores."""
    hidden = np.maximum(pictures @ arrays[0].T + arrays[1], 0)
    return hidden, hidden @ arrays[2].T + arrays[3]


def fitted(arrays: list[np.ndarray], data: Split, seed: list[int]) -> list[np.ndarray]:
    """Steps of stochastic gradient descent on batches of 16, down the cross-entropy."""
    rng, (pictures, classes) = np.random.default_rng(seed), data
    for _ in range(STEPS):
        some = rng.choice(len(classes), min(16, len(classes)), replace=False)
        hidden, scores = forward(arrays, pictures[some])
        raised = np.exp(scores - scores.max(axis=1, keepdims=True))
        error = raised / raised.sum(axis=1, keepdims=True) - np.eye(10)[classes[some]]
        back = (error @ arrays[2]) * (hidden > 0)
        slopes = back.T @ pictures[some], back.sum(0), error.T @ hidden, error.sum(0)
        arrays = [
            (a - RATE * s / len(some)).astype(np.float32)
            for a, s in zip(arrays, slopes, strict=True)
        ]
    return arrays


def digits_accuracy(encoding: str, seed: int) -> float:
    """Accuracy after a session."""
    parts, (pictures, classes) = digits(seed)

    def answer(node: int, message: Message) -> RecordDict:
        arrays = message.content["arrays"].to_numpy_ndarrays()
        number, data = int(message.content["config"]["server-round"]), parts[node]

        def trained() -> RecordDict:
            made = fitted(arrays, data, [seed, node, number])
            return reply(ArrayRecord(made), examples=len(data[1]))

        return compressed(encoding, message, trained)

    grid = LocalGrid(answer, node_ids=range(len(parts)))
    result = session(FedAvg(fraction_evaluate=0.0), grid, first_network(seed), rounds=DIGITS_ROUNDS)
    scores = forward(result.to_numpy_ndarrays(), pictures)[1]
    return float((scores.argmax(axis=1) == classes).mean())


def session(inner: Strategy, grid: LocalGrid, arrays: ArrayRecord, rounds: int) -> ArrayRecord:
    """The model after a session."""
    with tempfile.TemporaryDirectory(dir=OWN) as home:
        strategy = LifecycleStrategy(
            inner, store=InMemoryModelStore(), tracker=InMemoryTracker(), home=Path(home)
        )
        return strategy.start(grid, arrays, num_rounds=rounds).arrays


def measure_digits() -> Iterator[Row]:
    """Rows with the mean accuracy, and with the mean difference and its interval."""
    found = {
        encoding: np.array([digits_accuracy(encoding, seed) for seed in range(SEEDS)])
        for encoding in ("none", *ENCODINGS)
    }
    for encoding in ENCODINGS:
        apart = found[encoding] - found["none"]
        half = students_t.ppf(0.975, SEEDS - 1) * apart.std(ddof=1) / np.sqrt(SEEDS)
        told = f"{encoding}: digits, accuracy ({apart.mean():+.4f}, 95 %: ±{half:.4f})"
        yield Row(told, found[encoding].mean(), "plain", found["none"].mean())


# Accuracy of the shipped recipe.


def yolo_score(encoding: str, seed: int) -> float:
    """mAP50 of the shipped recipe after its eight rounds, on the pictures it holds out."""
    from support.arrays import to_arrays

    from fl_app.client.client_app import app
    from fl_app.client.data_yaml import load_data_spec
    from fl_app.client.generated_shapes import shapes_data
    from fl_app.yolo import train_order
    from fl_models.holdout import Holdout
    from fl_models.yolo import from_arrays, get_model

    data = shapes_data(OWN)
    spec, config = load_data_spec(data, None), ServerConfig.from_run_config({})
    settings = {"data": str(data), "update-compression": encoding, "data-summaries": False}

    def answer(node: int, message: Message) -> RecordDict:
        about = {"partition-id": node, "num-partitions": 2}
        order = {"names": list(spec.names), "model": described, **train_order(config)}
        message.content.config_records["config"].update(order)
        context = Context(7, node, about, RecordDict(), {**settings, "seed": seed})
        return app(message, context).content

    module = get_model("n", spec.nc, names=spec.names, seed=seed)
    described = json.dumps(module.description)
    first = ArrayRecord({name: Array(values) for name, values in to_arrays(module).items()})
    inner = StreamingFedAvg(fraction_evaluate=0.0)
    grid = LocalGrid(answer, node_ids=(0, 1))
    made = session(inner, grid, first, rounds=config.num_server_rounds)
    from_arrays(module, {name: array.numpy() for name, array in made.items()})
    return float(Holdout(spec, image_size=config.image_size)(module)["mAP50"])


def measure_yolo(which: tuple[str, ...], seeds: range) -> Iterator[Row]:
    """Rows with the mAP50 of each session."""
    for seed in seeds:
        found = {encoding: yolo_score(encoding, seed) for encoding in ("none", *which)}
        for encoding in which:
            told = f"{encoding}: YOLOv8n, mAP50 (seed {seed})"
            yield Row(told, found[encoding], "plain", found["none"])


def main() -> None:
    """Print the table, and write its rows where ``--json`` says."""
    options = parser(__doc__)
    options.add_argument("--only", choices=["wire", "digits", "yolo"])
    options.add_argument("--seed", type=int, default=42, help="of the sessions with YOLOv8n")
    given = options.parse_args()
    logging.disable(logging.WARNING)
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 7, 1
    seeds = range(given.seed, given.seed + YOLO_SEEDS)
    parts: dict[str, Callable[[], Iterator[Row]]] = {
        "wire": measure_wire,
        "digits": measure_digits,
        "yolo": lambda: measure_yolo(ENCODINGS, seeds),
    }
    chosen = [given.only] if given.only else parts
    report((row for name in chosen for row in parts[name]()), given.json)


if __name__ == "__main__":
    main()
