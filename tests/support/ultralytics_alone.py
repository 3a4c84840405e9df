# SPDX-License-Identifier: AGPL-3.0-or-later
"""Ultralytics in an environment without fl-app, with the files that were exported."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from support.environments import environment_without_fl_app

USE = """
import json, sys
from importlib.util import find_spec
from pathlib import Path
assert not any(find_spec(name) for name in ("fl_app", "fl_models", "fl_registry"))
from ultralytics import YOLO
folder, picture = Path(sys.argv[1]), sys.argv[2]
# Ultralytics' own place for results is the checkout in which its package lies.
place = {"project": folder, "device": "cpu", "verbose": False, "save": False}
common = {"imgsz": int(sys.argv[3]), **place}
predict = {"conf": float(sys.argv[4]), **common}
val = {"data": folder / "data.yaml", "rect": False, "plots": False, "workers": 0}
model = YOLO(folder / "best.pt")
scores = model.val(**common, **val).results_dict
found = {
    "best.pt": YOLO(folder / "best.pt").predict(picture, **predict),
    "squares": YOLO(folder / "best.pt").predict(picture, rect=False, **predict),
    "best.onnx": YOLO(folder / "best.onnx", task="detect").predict(picture, **predict),
}
boxes = {file: results[0].boxes.data for file, results in found.items()}
model.train(
    data=folder / "data.yaml", epochs=1, workers=0, plots=False, val=False, **common
)
print(json.dumps({"scores": scores, "boxes": {k: v.tolist() for k, v in boxes.items()}}))
"""


def use_alone(folder: Path, picture: Path, *, side: int, conf: float) -> dict[str, Any]:
    """Score, detect with and train what is in a folder: best.pt, best.onnx and data.yaml.

    Returns Ultralytics' ``scores`` in squares, and ``boxes`` of the picture by file; ``squares``
    are those of best.pt in a square, as an ONNX file has it.
    """
    python = environment_without_fl_app(folder / "alone") / "python"
    quiet = {"YOLO_OFFLINE": "true", "YOLO_AUTOINSTALL": "false", "YOLO_CONFIG_DIR": str(folder)}
    done = subprocess.run(
        [python, "-c", USE, folder, picture, str(side), str(conf)],
        cwd=folder,
        env=quiet,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found
