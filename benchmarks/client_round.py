# SPDX-License-Identifier: AGPL-3.0-or-later
"""What a client's round and an evaluation cost beside the arithmetic that they cannot do without.

64 pictures in batches of 16, one thread. Both sides of a row run in turn; figures are seconds. The
pure steps are forward, backward and the same AdamW on tensors that are there already.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import pickle
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from copy import copy
from functools import cache, partial
from pathlib import Path
from typing import Any

# Before Ultralytics is loaded: settings of its own, without its MLflow callback.
os.environ["YOLO_CONFIG_DIR"] = tempfile.mkdtemp(prefix="fl-app-bench-")
os.environ["FL_APP_HOME"] = os.environ["YOLO_CONFIG_DIR"]
os.environ["OMP_NUM_THREADS"] = "1"

import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from support.arrays import to_arrays
from ultralytics.utils import NUM_THREADS

from benchmarks.table import Row, parser, report
from fl_app.client import training
from fl_app.client.client_app import app
from fl_app.client.data_yaml import load_data_spec
from fl_app.client.generated_shapes import shapes_data
from fl_app.client.hardware import Hardware
from fl_app.client.optimization import build_optimizer
from fl_app.client.train_args import TrainArgs, read_train_args
from fl_models.decoding import read_pictures
from fl_models.holdout import Holdout
from fl_models.pictures import DataSpec, label_file
from fl_models.yolo import get_model

OWN = Path(os.environ["FL_APP_HOME"])
REPEATS, PICTURES, BATCH = 5, 64, 16
EPOCHS, EPOCH_REPEATS, EPOCH_PICTURES = 2, 2, 128
GOALS = {320: 1.08, 128: 1.2, 64: 1.3}
PHOTOGRAPHS = Path(__file__).parents[1] / "../shared/data/aquarium/data.yaml"
CPU = torch.device("cpu")
ARGS = TrainArgs(read_train_args("{optimizer: AdamW, nbs: 16}"))

FRESH_OURS = """
import json, pickle, sys
from pathlib import Path
from flwr.app import Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity
TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 7, 1
from fl_app.client.client_app import app
told = pickle.loads((Path(sys.argv[2]) / "message").read_bytes())
config = {"image-size": 64, "batch-size": 16, "local-epochs": 1}
context = Context(7, 1, {"data": sys.argv[1]}, RecordDict(), config)
reply = app(Message(told, dst_node_id=1, message_type="train"), context)
sys.exit(reply.has_error() and reply.error.reason)
"""
FRESH_FLOOR = """
import flwr.app
import flwr.clientapp
import torch
import ultralytics.nn.tasks
"""
THEIRS = """
import sys
import ultralytics.data.utils
ultralytics.data.utils.check_font = lambda font: None  # else it asks the network for one
from ultralytics import YOLO, settings
settings.update({"mlflow": False, "raytune": False, "tensorboard": False})
settings_of_the_user = {"optimizer": "AdamW", "nbs": 16, "device": "cpu", "project": sys.argv[2]}
cheap = {"plots": False, "val": False, "save": False, "verbose": False}  # as a node
def train(data, side):
    YOLO("yolov8n.yaml").train(data=data, imgsz=side, epochs=1, batch=16, workers=0,
                               **settings_of_the_user, **cheap)
"""


@cache
def theirs(name: str) -> Callable[..., None]:
    """One of the functions above, in this process; the arguments of the script are read by now."""
    sys.argv[1:] = ["", str(OWN)]
    found: dict[str, Any] = {}
    exec(THEIRS, found)  # noqa: S102 - the same lines as in the fresh process
    return found[name]


Seconds = tuple[list[float], list[float]]
"""Those of ours and of the peer."""


def in_turn(ours: Callable[[], Any], peer: Callable[[], Any]) -> Seconds:
    """Seconds of both sides; the first of each is not counted."""
    seconds: dict[Callable[[], Any], list[float]] = {ours: [], peer: []}
    for _ in range(REPEATS + 1):
        for side, found in seconds.items():
            began = time.perf_counter()
            side()
            found.append(time.perf_counter() - began)
    return seconds[ours][1:], seconds[peer][1:]


def row(name: str, peer: str, figures: Seconds, goal: float | None = None) -> Row:
    """A row of the table."""
    ours, value = figures
    return Row(name, ours, peer, value, goal)


def generated(size: int, train: int = PICTURES, val: int = 127) -> DataSpec:
    """The generated set at a size."""
    return load_data_spec(shapes_data(OWN, train=train, val=val, image_size=size), None)


def a_round(spec: DataSpec, size: int) -> tuple[Callable[[], Any], Callable[[], None]]:
    """A local round, and its steps alone."""
    pictures = read_pictures(spec.train[:PICTURES], spec.numbers)
    model: Any = get_model("n", spec.nc, names=spec.names, seed=1)

    def ours() -> None:
        training.train_locally(
            model,
            pictures,
            names=spec.names,
            image_size=size,
            batch_size=BATCH,
            epochs=1,
            args=ARGS,
            seed=1,
        )

    return ours, pure_steps(spec, size, pictures)


def pure_steps(spec: DataSpec, size: int, pictures: list[Any]) -> Callable[[], None]:
    """Forward, backward and step on batches that are in memory."""
    model: Any = get_model("n", spec.nc, names=spec.names, seed=1).train()
    settings = {**ARGS.values, "imgsz": size, "batch": BATCH, "epochs": 1}
    text = json.dumps(settings, sort_keys=True)
    dataset = training._dataset(tuple(pictures), spec.names, text, Hardware())
    model.args, model.criterion = dataset.settings, None
    batches = [{**batch, "img": batch["img"].float() / 255} for batch in dataset.loader(CPU)]

    def steps() -> None:
        with training.torch_threads(1):
            optimizer = build_optimizer(
                model, copy(dataset.settings), num_classes=spec.nc, weight_decay=0.0005
            )
            for batch in batches:
                model(batch)[0].sum().backward()
                optimizer.step()
                optimizer.zero_grad()

    return steps


def message(spec: DataSpec) -> RecordDict:
    """What a train message has."""
    arrays = {name: Array(a) for name, a in to_arrays(get_model("n", spec.nc, seed=1)).items()}
    described = json.dumps(get_model("n", spec.nc, names=spec.names).description)
    told = {"server-round": 1, "num-rounds": 1, "train-args": ARGS.text, "model": described}
    order = ConfigRecord({**told, "names": [*spec.names]})
    return RecordDict({"arrays": ArrayRecord(arrays), "config": order})


def handler(spec: DataSpec, size: int) -> Callable[[], None]:
    """The whole of the ClientApp's answer to a train message, with new weights each time."""
    told = message(spec)
    arrays, order = told.array_records["arrays"], told.config_records["config"]
    config: dict[str, Any] = {"image-size": size, "batch-size": BATCH, "local-epochs": 1}
    node = {"data": str(spec.root / "data.yaml")}

    def ask() -> None:
        content = RecordDict({"arrays": ArrayRecord(dict(arrays)), "config": order})
        context = Context(7, 1, node, RecordDict(), config)
        reply = app(Message(content, dst_node_id=1, message_type="train"), context)
        if reply.has_error():
            raise RuntimeError(reply.error.reason)

    return ask


def rounds() -> Iterator[Row]:
    """Local rounds against their steps, and against Ultralytics' own call."""
    for size, goal in GOALS.items():
        spec, steps = generated(size), "pure steps"
        ours, pure = a_round(spec, size)
        yield row(f"local round, {size} px", steps, in_turn(ours, pure), goal)
        yield row(f"whole train message, {size} px", steps, in_turn(handler(spec, size), pure))
        data = str(generated(size, val=1).root / "data.yaml")  # the call validates at its end
        call = in_turn(ours, lambda d=data, s=size: theirs("train")(d, s))
        yield row(f"local round, {size} px, against the call", "YOLO.train(), cheap", call)
    if PHOTOGRAPHS.is_file():
        ours, pure = a_round(load_data_spec(PHOTOGRAPHS, None), 320)
        yield row("local round, 320 px, photographs", "pure steps", in_turn(ours, pure), 1.08)
    else:
        sys.stdout.write("no row of photographs: ../shared/data/aquarium is not there\n")


def epochs() -> Iterator[Row]:
    """Seconds of an epoch of photographs beside those of Ultralytics' own trainer, alike in all."""
    if not PHOTOGRAPHS.is_file():
        sys.stdout.write("no rows of epochs: ../shared/data/aquarium is not there\n")
        return
    spec = copied(load_data_spec(PHOTOGRAPHS, None), OWN / "photographs")
    args = read_train_args("{close_mosaic: 0}")
    # At 640 pixels the buffer for decoded pictures holds 109.
    for side, workers, goal in ((320, 2, 1.05), (320, 0, 1.0), (640, 0, 1.05)):
        hardware = Hardware(threads=NUM_THREADS, workers=workers)
        ours, peer = (
            partial(our_epoch, spec, side, args, hardware),
            partial(their_epoch, spec, side, workers),
        )
        found: dict[Any, list[float]] = {ours: [], peer: []}
        for _ in range(EPOCH_REPEATS + 1):
            for epoch, seconds in found.items():
                seconds.append(epoch())
        figures = found[ours][1:], found[peer][1:]
        name = (
            f"epoch of {len(spec.train)} photographs, {side} px, batch {BATCH}, workers={workers}"
        )
        yield row(name, "an epoch of YOLO.train()", figures, goal)


def copied(spec: DataSpec, folder: Path) -> DataSpec:
    """Copy training pictures and labels, since Ultralytics writes its cache beside labels."""
    for path in spec.train[:EPOCH_PICTURES]:
        for file, kind in ((path, "images"), (label_file(path), "labels")):
            (folder / kind).mkdir(parents=True, exist_ok=True)
            shutil.copy(file, folder / kind)
    (folder / "one.txt").write_text(f"./images/{spec.train[0].name}\n")  # it validates at the end
    names = json.dumps(list(spec.names))
    (folder / "data.yaml").write_text(f"train: images\nval: one.txt\nnames: {names}\n")
    return load_data_spec(folder / "data.yaml", None)


def our_epoch(spec: DataSpec, side: int, args: dict[str, Any], hardware: Hardware) -> float:
    """Seconds of a local round by its epochs: processes, optimizer and all."""
    model = get_model("n", spec.nc, names=spec.names, seed=1)
    pictures = cached_pictures(spec.train, spec.numbers)
    began = time.perf_counter()
    training.train_locally(
        model,
        pictures,
        names=spec.names,
        image_size=side,
        batch_size=BATCH,
        epochs=EPOCHS,
        args=TrainArgs(args, epochs=EPOCHS),
        seed=1,
        hardware=hardware,
    )
    return (time.perf_counter() - began) / EPOCHS


cached_pictures = cache(read_pictures)


def their_epoch(spec: DataSpec, side: int, workers: int) -> float:
    """Seconds of an epoch of Ultralytics' trainer, without start, validation and files."""
    import ultralytics.data.utils
    from ultralytics import YOLO, settings

    settings.update({"mlflow": False, "raytune": False, "tensorboard": False})
    ultralytics.data.utils.check_font = lambda font: None
    times: list[float] = []
    model = YOLO("yolov8n.yaml")
    for event in ("on_train_epoch_start", "on_train_epoch_end"):
        model.add_callback(event, lambda trainer: times.append(time.perf_counter()))
    cheap = {"plots": False, "val": False, "save": False, "verbose": False}
    with contextlib.redirect_stdout(io.StringIO()):  # progress bars
        model.train(
            data=str(spec.root / "data.yaml"),
            imgsz=side,
            epochs=EPOCHS,
            batch=BATCH,
            workers=workers,
            close_mosaic=0,
            device="cpu",
            project=str(OWN),
            **cheap,
        )
    return sum(times[1::2]) / EPOCHS - sum(times[::2]) / EPOCHS


def fresh() -> Iterator[Row]:
    """The first train message of a process, imports counted, against training as it does."""
    spec = generated(64, val=1)  # the call validates at its end
    data = str(spec.root / "data.yaml")
    (OWN / "message").write_bytes(pickle.dumps(message(spec)))
    call = f"{THEIRS}\ntrain(sys.argv[1], 64)"

    def run(code: str) -> None:
        words = [sys.executable, "-c", code, data, str(OWN)]
        subprocess.run(words, check=True, capture_output=True, cwd=Path(__file__).parents[1])

    peer = "YOLO.train(), cheap, there"
    both = in_turn(lambda: run(FRESH_OURS), lambda: run(call))
    yield row("first train message of a process, 64 px", peer, both, 0.5)
    imports = in_turn(lambda: run(FRESH_FLOOR), lambda: run(call))
    yield row("a floor: imports of torch, Ultralytics' detector and Flower", peer, imports)


def evaluation() -> Iterator[Row]:
    """Scores of 127 pictures against forward and non-maximum suppression alone, and YOLO.val."""
    known = PHOTOGRAPHS.is_file()
    spec = load_data_spec(PHOTOGRAPHS, None) if known else generated(320)
    kind = "photographs" if known else "generated pictures"
    model = get_model("n", spec.nc, names=spec.names, seed=1).eval()
    for size in (320, 96):
        holdout = Holdout(spec, image_size=size, batch_size=BATCH)
        name = f"evaluation of {len(holdout)} {kind}, {size} px"
        scored = lambda h=holdout: h(model)  # noqa: E731
        yield row(name, "forward and NMS", in_turn(scored, pure_forward(holdout, model)), 1.1)
    spec = generated(320)
    model = get_model("n", spec.nc, names=spec.names, seed=1)
    holdout, call = Holdout(spec, image_size=320, batch_size=BATCH), their_scores(spec, model)
    name = f"evaluation of {len(holdout)} generated pictures, 320 px, against the call"
    yield row(name, "YOLO.val(), cheap", in_turn(lambda: holdout(model), call))


def their_scores(spec: DataSpec, model: Any) -> Callable[[], None]:
    """What `YOLO.val` does with a module and a data set, one after the other."""
    import ultralytics.data.utils
    from ultralytics.models.yolo.detect import DetectionValidator

    ultralytics.data.utils.check_font = lambda font: None
    settings = {"data": str(spec.root / "data.yaml"), "imgsz": 320, "batch": BATCH, "device": "cpu"}
    cheap = {"plots": False, "rect": False, "workers": 0, "verbose": False}
    return lambda: DetectionValidator(save_dir=OWN, args={**settings, **cheap})(model=model)


def pure_forward(holdout: Holdout, model: Any) -> Callable[[], None]:
    """The network and non-maximum suppression on tensors that are in memory."""
    from ultralytics.utils.nms import non_max_suppression

    scorer = holdout._scorer
    images = [scorer.preprocess(dict(batch))["img"] for batch in scorer._batches()]

    def forward() -> None:
        with torch.inference_mode():
            for image in images:
                non_max_suppression(
                    model(image), scorer.args.conf, scorer.args.iou, multi_label=True, max_det=300
                )

    return forward


PARTS = {"rounds": rounds, "epochs": epochs, "fresh": fresh, "evaluation": evaluation}


def main() -> None:
    """Print the table, and write its rows where ``--json`` says."""
    options = parser(__doc__)
    options.add_argument("--only", choices=PARTS, action="append")
    asked = options.parse_args()
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 7, 1
    try:
        report((found for part in asked.only or PARTS for found in PARTS[part]()), asked.json)
    finally:
        shutil.rmtree(OWN)


if __name__ == "__main__":
    main()
