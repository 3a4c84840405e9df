# SPDX-License-Identifier: AGPL-3.0-or-later
"""mAP50 of fine-tuning in a federation, beside Ultralytics' own training on all pictures together.

448 photographs of an aquarium, 160 pixels, batches of 16, from a genuine YOLOv8n ``best.pt`` with 6
other classes. Ours: 2 nodes with half of the pictures each, 5 rounds of 2 epochs, through the
ClientApp and the strategy. Ultralytics: `YOLO.train` of 10 epochs with the same arguments. Both
are scored on the 127 validation pictures as ``yolo val`` does, and by the server's `Holdout`. A
session takes one or two minutes of a CPU; ``--seeds`` says how many of each.
"""

from __future__ import annotations

import json
import logging
import os
import statistics
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Before Ultralytics is loaded: settings of its own, without its MLflow callback.
os.environ["YOLO_CONFIG_DIR"] = tempfile.mkdtemp(prefix="fl-app-bench-")
os.environ["FL_APP_HOME"] = os.environ["YOLO_CONFIG_DIR"]
os.environ["OMP_NUM_THREADS"] = "1"

import torch
import ultralytics.data.utils
import yaml
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from support.local_grid import LocalGrid
from support.pretrained import checkpoint
from ultralytics import YOLO, settings
from ultralytics.models.yolo.detect import DetectionValidator
from ultralytics.nn.tasks import load_checkpoint

from benchmarks.table import Row, parser, report
from fl_app.client.client_app import app
from fl_app.client.data import load_data_spec, partition
from fl_app.client.train_args import read_train_args
from fl_app.strategy import LifecycleStrategy, StreamingFedAvg
from fl_models.holdout import Holdout
from fl_models.pictures import DataSpec, label_file
from fl_models.yolo import YoloModel, from_arrays, get_model
from fl_registry import InMemoryModelStore, InMemoryTracker

OWN = Path(os.environ["FL_APP_HOME"])
PHOTOGRAPHS = Path(__file__).parents[1] / "../shared/data/aquarium/data.yaml"
SIDE, BATCH, NODES, ROUNDS, LOCAL_EPOCHS = 160, 16, 2, 5, 2
GOAL = 0.95

Scores = dict[str, float]


def linked(spec: DataSpec) -> Path:
    """A data set of links, since Ultralytics writes a cache beside the labels."""
    for split, paths in {"train": spec.train, "val": spec.val}.items():
        for path in paths:
            for kind, source in {"images": path, "labels": label_file(path)}.items():
                place = OWN / "linked" / kind / split / source.name
                place.parent.mkdir(parents=True, exist_ok=True)
                if source.is_file():
                    place.symlink_to(source)
    return written(OWN / "linked", "data", "images/train", spec)


def written(root: Path, name: str, train: str, spec: DataSpec) -> Path:
    """A ``data.yaml`` with these training pictures."""
    about = {"path": str(root), "train": train, "val": "images/val", "names": list(spec.names)}
    path = root / f"{name}.yaml"
    path.write_text(yaml.safe_dump(about))
    return path


def scored(model: YoloModel, data: Path, spec: DataSpec) -> Scores:
    """mAP50 as ``yolo val`` has it with its defaults, and as the server's holdout has it."""
    told = {"data": str(data), "imgsz": SIDE, "batch": BATCH, "device": "cpu", "workers": 0}
    # `yolo val` pads each batch to its own shape; a bare validator does not.
    args = {**told, "rect": True, "plots": False}
    validator = DetectionValidator(save_dir=OWN / "val", args=args)
    validator(model=model)
    ours = Holdout(spec, image_size=SIDE, batch_size=BATCH)(model)
    return {"yolo val": float(validator.metrics.box.map50), "Holdout": ours["mAP50"]}


def central(seed: int, args: dict[str, Any], data: Path, spec: DataSpec) -> Scores:
    """Ultralytics' own training on all pictures together."""
    model = YOLO(checkpoint())
    told = {"data": str(data), "epochs": ROUNDS * LOCAL_EPOCHS, "imgsz": SIDE, "batch": BATCH}
    quiet = {"plots": False, "val": False, "verbose": False, "device": "cpu", "workers": 0}
    model.train(**told, **quiet, **args, seed=seed, project=str(OWN), name=f"central-{seed}")
    trained, _ = load_checkpoint(OWN / f"central-{seed}" / "weights" / "last.pt")
    ours = get_model("n", spec.nc, names=spec.names)
    ours.load_state_dict(trained.float().state_dict())
    return scored(ours, data, spec)


def federated(
    seed: int, args: dict[str, Any], settings_of_nodes: dict[str, Any], data: Path, spec: DataSpec
) -> Scores:
    """The nodes' answers are the ClientApp's; the aggregation is the shipped one."""
    given, _ = load_checkpoint(checkpoint())
    model = get_model("n", spec.nc, names=spec.names, weights=given.float().state_dict(), seed=seed)
    nodes = []
    linked_spec = load_data_spec(data, None)
    for number in range(NODES):
        share = partition(linked_spec, num_partitions=NODES, partition_id=number, seed=seed)
        name = f"node-{seed}-{number}"
        listed = data.parent / f"{name}.txt"
        listed.write_text("".join(f"{path}\n" for path in share))
        nodes.append(written(data.parent, name, listed.name, spec))
    config: dict[str, Any] = {"image-size": SIDE, "batch-size": BATCH, "seed": seed}
    config |= {"local-epochs": LOCAL_EPOCHS, "data-summaries": False, **settings_of_nodes}
    contexts = [
        Context(7, number, {"data": str(node)}, RecordDict(), config)
        for number, node in enumerate(nodes)
    ]

    def answer(node: int, message: Message) -> RecordDict:
        reply = app(message, contexts[node])
        if reply.has_error():
            raise RuntimeError(reply.error.reason)
        return reply.content

    values = read_train_args(json.dumps(args))
    order = {"names": list(spec.names), "model": json.dumps(model.description)}
    order |= {"num-rounds": ROUNDS, "train-args": json.dumps(values)}
    with tempfile.TemporaryDirectory(dir=OWN) as home:
        made = LifecycleStrategy(
            StreamingFedAvg(fraction_evaluate=0.0),
            store=InMemoryModelStore(),
            tracker=InMemoryTracker(),
            home=Path(home),
        ).start(
            LocalGrid(answer, node_ids=tuple(range(NODES))),
            ArrayRecord(model.state_dict()),
            num_rounds=ROUNDS,
            train_config=ConfigRecord(order),
        )
    from_arrays(model, {name: array.numpy() for name, array in made.arrays.items()})
    return scored(model, data, spec)


def rows(
    seeds: int,
    args: dict[str, Any],
    settings_of_nodes: dict[str, Any],
    central_args: dict[str, Any],
) -> Iterator[Row]:
    """A row for each seed and way to score, and their means, of which the goal is."""
    if not PHOTOGRAPHS.is_file():
        sys.stdout.write("no rows: ../shared/data/aquarium is not there\n")
        return
    spec = load_data_spec(PHOTOGRAPHS.resolve(), None)
    data = linked(spec)
    found: dict[str, list[tuple[float, float]]] = {}
    for seed in range(seeds):
        ours = federated(seed, args, settings_of_nodes, data, spec)
        theirs = central(seed, central_args, data, spec)
        for way, score in ours.items():
            found.setdefault(way, []).append((score, theirs[way]))
            yield Row(f"mAP50 by {way}, seed {seed}", score, "YOLO.train", theirs[way])
    for way, pairs in found.items():
        mine, peer = (statistics.mean(side) for side in zip(*pairs, strict=True))
        met = mine >= GOAL * peer
        yield Row(f"mean mAP50 by {way}", mine, "YOLO.train", peer, GOAL, met=met)


def main() -> None:
    """Print the table, and write its rows where ``--json`` says."""
    options = parser(__doc__)
    options.add_argument("--seeds", type=int, default=3)
    options.add_argument("--args", type=json.loads, default={}, help="train-args of both sides")
    options.add_argument("--ours", type=json.loads, default={}, help="train-args of ours alone")
    options.add_argument("--settings", type=json.loads, default={}, help="settings of the nodes")
    asked = options.parse_args()
    logging.disable(logging.WARNING)
    settings.update({"mlflow": False, "raytune": False, "tensorboard": False})
    ultralytics.data.utils.check_font = lambda font: None  # it would ask the network for one
    torch.set_num_threads(1)
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 7, 1
    told = {**asked.args, **asked.ours}
    report(rows(asked.seeds, told, asked.settings, asked.args), asked.json)


if __name__ == "__main__":
    main()
