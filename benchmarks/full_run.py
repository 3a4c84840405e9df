# SPDX-License-Identifier: AGPL-3.0-or-later
"""A whole run by `fl-app run` against central training by Ultralytics: wall time and mAP50 of both.

Eight rounds, two clients, the generated set, everything at its default; central training sees the
same pictures for as many epochs, with the same optimizer, rates and augmentation. Both are run
several times, in turn, imports counted, and both are scored on the same holdout.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml
from support.flower import ROOT, Flower

from benchmarks.table import Row, parser, report
from fl_app.client.data import partition, split_holdout
from fl_app.client.generated_shapes import TRAIN_ARGS, shapes_data
from fl_app.config import ClientConfig, ServerConfig
from fl_registry import ModelManager

NODES, REPEATS = 2, 5

CENTRAL = """
import json, sys
import ultralytics.data.utils
ultralytics.data.utils.check_font = lambda font: None  # else it asks the network for one
from ultralytics import YOLO, settings
settings.update({"mlflow": False, "raytune": False, "tensorboard": False})
told = json.loads(sys.argv[1])
model = YOLO("yolov8n.yaml")
model.train(**told, plots=False, val=False, verbose=False, device="cpu", workers=0, name="central")
"""


def federated(folder: Path) -> tuple[float, float]:
    """Wall seconds and the last round's mAP50 of the app as it is."""
    flower = Flower(folder / "flower")
    began = time.perf_counter()
    try:
        flower.command("fl-app", "run", cwd=ROOT)
        seconds = time.perf_counter() - began
    finally:
        flower.stop()
    client = ModelManager(home=flower.fl_app_home).client
    (experiment,) = [e for e in client.search_experiments() if e.name == "fl-app"]
    (session,) = [
        run for run in client.search_runs([experiment.experiment_id]) if "session" in run.data.tags
    ]
    return seconds, session.data.metrics["mAP50"]


def central(folder: Path) -> tuple[float, float]:
    """Wall seconds and mAP50 of Ultralytics' own training on the nodes' pictures together."""
    config, epochs = ServerConfig.from_run_config({}), ClientConfig.from_run_config({}).local_epochs
    from fl_app.client.data_yaml import load_data_spec
    from fl_models.holdout import Holdout
    from fl_models.yolo import get_model

    spec = load_data_spec(shapes_data(folder), None)
    nodes = [{"num_partitions": NODES, "partition_id": number} for number in range(NODES)]
    shares = [partition(spec, **node, seed=config.seed) for node in nodes]
    pictures = [path for share in shares for path in split_holdout(share)[0]]
    (folder / "train.txt").write_text("".join(f"{path}\n" for path in pictures))
    names = json.dumps(list(spec.names))
    (folder / "central.yaml").write_text(
        f"path: {spec.root}\ntrain: {folder / 'train.txt'}\nval: images/val\nnames: {names}\n"
    )
    told = {"data": str(folder / "central.yaml"), "imgsz": config.image_size}
    told |= {"epochs": config.num_server_rounds * epochs}
    told |= {"batch": config.batch_size, "nbs": config.batch_size, **yaml.safe_load(TRAIN_ARGS)}
    told |= {"seed": config.seed, "project": str(folder)}
    environment = {**os.environ, "YOLO_CONFIG_DIR": str(folder), "YOLO_OFFLINE": "true"}
    words = [sys.executable, "-c", CENTRAL, json.dumps(told)]
    began = time.perf_counter()
    subprocess.run(words, check=True, capture_output=True, env=environment, cwd=ROOT)
    seconds = time.perf_counter() - began
    import torch

    trained = torch.load(folder / "central" / "weights" / "last.pt", weights_only=False)
    model = get_model("n", spec.nc, names=spec.names)
    model.load_state_dict((trained["ema"] or trained["model"]).float().state_dict())
    scores = Holdout(spec, image_size=config.image_size, batch_size=config.batch_size)(model)
    return seconds, scores["mAP50"]


def main() -> None:
    """Print the table, and write its rows where ``--json`` says."""
    given = parser(__doc__).parse_args()
    sides = {"ours": federated, "central": central}
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    for number in range(REPEATS):
        for name in sorted(sides, reverse=bool(number % 2)):
            with tempfile.TemporaryDirectory() as folder:
                found[name].append(sides[name](Path(folder)))
            print(name, *found[name][-1], flush=True)
    rows = []
    for place, row in enumerate(("a full run, seconds", "its last mAP50 on the holdout")):
        ours, theirs = ([run[place] for run in found[name]] for name in sides)
        rows.append(Row(row, ours, "central training by Ultralytics", theirs))
    report(rows, given.json)


if __name__ == "__main__":
    main()
