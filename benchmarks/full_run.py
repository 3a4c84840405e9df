# SPDX-License-Identifier: AGPL-3.0-or-later
"""A whole run by `flwr run` against central training by Ultralytics: wall time and mAP50 of both.

Eight rounds, two clients, the generated set, everything at its default; central training sees the
same pictures for as many epochs, with the same optimizer, rates and augmentation. Both are run
once, imports counted, and both are scored on the same holdout.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

# This folder last: else `registry` would be the benchmark of that name.
sys.path.sort(key=lambda folder: Path(folder).resolve() == Path(__file__).resolve().parent)

from e2e.flower import OWN_ENVIRONMENT, ROOT, Flower

from fl_app.client.data import partition, split_holdout
from fl_app.client.shapes import shapes_data
from fl_app.config import ServerConfig
from registry import ModelManager

NODES = 2

CENTRAL = """
import json, sys
import ultralytics.data.utils
ultralytics.data.utils.check_font = lambda font: None  # else it asks the network for one
from ultralytics import YOLO, settings
settings.update({"mlflow": False, "raytune": False, "tensorboard": False})
told = json.loads(sys.argv[1])
model = YOLO("yolov8n.yaml")
model.train(**told, optimizer="AdamW", lrf=0.1, momentum=0.9, warmup_epochs=0.0, mosaic=0.0,
            close_mosaic=0, scale=0.2, plots=False, val=False, verbose=False, device="cpu",
            workers=0, name="central")
"""


def federated(folder: Path) -> tuple[float, float, ServerConfig]:
    """Wall seconds and the last round's mAP50 of the app as it is."""
    flower = Flower(folder / "flower", OWN_ENVIRONMENT)
    began = time.perf_counter()
    try:
        flower.run(ROOT, cwd=ROOT)
        seconds = time.perf_counter() - began
    finally:
        flower.stop()
    client = ModelManager(home=flower.fl_app_home).client
    (experiment,) = [e for e in client.search_experiments() if e.name == "fl-app"]
    (session,) = [
        run for run in client.search_runs([experiment.experiment_id]) if "session" in run.data.tags
    ]
    metrics: Mapping[str, float] = session.data.metrics
    (score,) = [value for key, value in metrics.items() if key.rpartition("/")[2] == "mAP50"]
    return seconds, score, ServerConfig.from_run_config({})


def central(folder: Path, config: ServerConfig, epochs: int) -> tuple[float, float]:
    """Wall seconds and mAP50 of Ultralytics' own training on the nodes' pictures together."""
    from fl_app.client.data import load_data_spec
    from models.holdout import Holdout
    from models.model import get_model

    spec = load_data_spec(shapes_data(folder), None)
    nodes = [{"num_partitions": NODES, "partition_id": number} for number in range(NODES)]
    shares = [partition(spec, **node, seed=config.seed) for node in nodes]
    pictures = [path for share in shares for path in split_holdout(share)[0]]
    (folder / "train.txt").write_text("".join(f"{path}\n" for path in pictures))
    names = json.dumps(list(spec.names))
    (folder / "central.yaml").write_text(
        f"path: {spec.root}\ntrain: {folder / 'train.txt'}\nval: images/val\nnames: {names}\n"
    )
    told = {"data": str(folder / "central.yaml"), "epochs": epochs, "imgsz": config.image_size}
    told |= {"batch": config.batch_size, "nbs": config.batch_size, "lr0": config.learning_rate}
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
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    target = parser.parse_args().json
    with tempfile.TemporaryDirectory() as folder:
        ours, our_score, config = federated(Path(folder))
        epochs = config.num_server_rounds * config.local_epochs
        peer, peer_score = central(Path(folder), config, epochs)
    rows = [
        _row("a full run, seconds", ours, peer),
        _row("its last mAP50 on the holdout", our_score, peer_score),
    ]
    if target:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps(rows, indent=1))


def _row(name: str, ours: float, peer: float) -> dict[str, object]:
    sys.stdout.write(f"{name:40} {ours:8.3f} {peer:8.3f} {ours / peer:6.3f}\n")
    return {
        "row": name,
        "ours": ours,
        "peer": "central training by Ultralytics",
        "peer_value": peer,
        "ratio": ours / peer,
        "goal": None,
        "met": None,
    }


if __name__ == "__main__":
    main()
