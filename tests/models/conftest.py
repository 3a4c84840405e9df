# SPDX-License-Identifier: AGPL-3.0-or-later
"""A small generated set and a model that finds something in it without having been trained."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from fl_app.client.data_yaml import load_data_spec
from fl_app.client.generated_shapes import shapes_data
from fl_models.pictures import DataSpec, label_file
from fl_models.yolo import YoloModel, get_model

SIDE = 64


@pytest.fixture(scope="session")
def lively_model() -> YoloModel:
    """Fresh weights give boxes that all look alike; these differ in class, place and confidence."""
    model = get_model("n", 7, names=[f"class {i}" for i in range(7)], seed=3)
    noise = torch.Generator().manual_seed(5)
    with torch.no_grad():
        head = model.model[-1]
        for places, classes in zip(head.cv2, head.cv3, strict=True):
            places[-1].bias[:] = -torch.arange(16.0).repeat(4)  # boxes of one or two cells
            classes[-1].bias[:] = -3
            for last in (places[-1], classes[-1]):
                last.weight += torch.randn(last.weight.shape, generator=noise) / 4
        for _ in range(30):  # batch norm learns to tell pictures apart
            model(torch.rand(4, 3, SIDE, SIDE, generator=noise))
    return model.eval()


@pytest.fixture(scope="session")
def labelled_by_model(
    lively_model: YoloModel, tmp_path_factory: pytest.TempPathFactory
) -> DataSpec:
    """Pictures whose true boxes are some of the model's own, moved a little, and some others."""
    home = tmp_path_factory.mktemp("labelled")
    spec = load_data_spec(shapes_data(home, train=1, val=8, image_size=SIDE), 7)
    rng = np.random.default_rng(1)
    for path in spec.val:
        found = lively_model.predict(path, conf=0.001, image_size=SIDE)[0].boxes
        chosen = rng.permutation(min(len(found), 12))[:5]
        boxes = found.xywhn.numpy()[chosen] + rng.normal(0, 0.01, (len(chosen), 4))
        classes = found.cls.numpy()[chosen].astype(int)
        label_file(path).write_text(_rows(classes, boxes.clip(0.02, 0.98)))
    return replace(spec, names=tuple(lively_model.names.values()))


def _rows(classes: np.ndarray, boxes: np.ndarray) -> str:
    rows = [f"{c} {' '.join(f'{v:.6f}' for v in b)}" for c, b in zip(classes, boxes, strict=True)]
    return "\n".join([*rows, "2 0.5 0.5 0.3 0.3"])
