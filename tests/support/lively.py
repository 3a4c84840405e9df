# SPDX-License-Identifier: AGPL-3.0-or-later
"""Models that find something without having been trained, pictures for them, and their scores."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from fl_app.client.data_yaml import load_data_spec
from fl_app.client.generated_shapes import shapes_data
from fl_models.pictures import DataSpec, label_file
from fl_models.yolo import YoloModel

if TYPE_CHECKING:
    from ultralytics.models.yolo.detect import DetectionValidator

SIDE = 64


def enlivened(model: YoloModel) -> YoloModel:
    """Fresh weights give boxes that all look alike; these differ in class, place and confidence."""
    noise = torch.Generator().manual_seed(5)
    head = model.model[-1]
    branches = [(head.cv2, head.cv3)]
    if getattr(head, "one2one_cv2", None) is not None:
        branches.append((head.one2one_cv2, head.one2one_cv3))
    with torch.no_grad():
        for boxes, scores in branches:
            for places, classes in zip(boxes, scores, strict=True):
                if head.reg_max > 1:  # boxes of one or two cells
                    places[-1].bias[:] = -torch.arange(float(head.reg_max)).repeat(4)
                classes[-1].bias[:] = -3
                for last in (places[-1], classes[-1]):
                    last.weight += torch.randn(last.weight.shape, generator=noise) / 4
        for _ in range(30):  # batch norm learns to tell pictures apart
            model(torch.rand(4, 3, SIDE, SIDE, generator=noise))
    return model.eval()


def labelled_by(model: YoloModel, home: Path) -> DataSpec:
    """Pictures whose true boxes are some of the model's own, moved a little, and some others."""
    spec = load_data_spec(shapes_data(home, train=1, val=8, image_size=SIDE), 7)
    rng = np.random.default_rng(1)
    for path in spec.val:
        found = model.predict(path, conf=0.001, imgsz=SIDE)[0].boxes
        chosen = rng.permutation(min(len(found), 12))[:5]
        boxes = found.xywhn.numpy()[chosen] + rng.normal(0, 0.01, (len(chosen), 4))
        classes = found.cls.numpy()[chosen].astype(int)
        label_file(path).write_text(_rows(classes, boxes.clip(0.02, 0.98)))
    return replace(spec, names=tuple(model.names.values()))


def _rows(classes: np.ndarray, boxes: np.ndarray) -> str:
    rows = [f"{c} {' '.join(f'{v:.6f}' for v in b)}" for c, b in zip(classes, boxes, strict=True)]
    return "\n".join([*rows, "2 0.5 0.5 0.3 0.3"])


def plain_validation(
    model: YoloModel, data_yaml: Path, folder: Path, **more: object
) -> DetectionValidator:
    """What a user of Ultralytics would run."""
    from ultralytics.models.yolo.detect import (
        DetectionValidator,
    )  # after fl_models, which is offline

    validator = DetectionValidator(
        save_dir=folder,
        args={
            "task": "detect",
            "mode": "val",
            "data": str(data_yaml),
            "imgsz": SIDE,
            "batch": 4,
            "rect": False,
            "plots": False,
            "device": "cpu",
            **more,
        },
    )
    validator(model=model)
    return validator
