# SPDX-License-Identifier: AGPL-3.0-or-later
"""Serving code of the YOLO model, copied beside each version's weights for MLflow to run.

Pictures in, boxes out, the same boxes as those of `YoloModel.predict`, which uses `find_boxes` too.
The file is complete in itself: a server needs the packages that it requires, but neither this
project nor a network.
"""

from __future__ import annotations

import base64
import binascii
import math
import os
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

# As in `fl_models`, which a server does not have.
os.environ.setdefault("YOLO_OFFLINE", "true")
os.environ.setdefault("YOLO_AUTOINSTALL", "false")
os.environ.setdefault("YOLO_VERBOSE", "false")

import cv2
import numpy as np
import torch
from safetensors.torch import load_file
from ultralytics.data.augment import LetterBox
from ultralytics.nn.tasks import DetectionModel
from ultralytics.utils.nms import non_max_suppression
from ultralytics.utils.ops import scale_boxes

_FIELDS = {
    "xyxy": {"type": "array", "items": {"type": "double"}, "required": True},
    "confidence": {"type": "double", "required": True},
    "class": {"type": "long", "required": True},
    "name": {"type": "string", "required": True},
}
_BOX = {"type": "object", "properties": _FIELDS}
SERVING: dict[str, Any] = {
    "inputs": [{"type": "any", "name": "image", "required": True}],
    "outputs": [{"type": "array", "items": _BOX, "required": True}],
    "params": [
        {"name": "conf", "type": "double", "default": 0.25, "shape": None},
        # 0: as in training
        {"name": "image_size", "type": "long", "default": 0, "shape": None},
    ],
    "requirements": ("ultralytics", "torch", "torchvision", "numpy", "safetensors"),
    "config": {"device": "cpu"},
}
"""Arguments of `fl_registry.Serving`, beside this file."""

_STRIDE, _LARGEST_DEFAULT = 32, 640
_OVERLAP = 0.7  # above this, the less confident of two boxes is dropped; Ultralytics' default


def load(
    weights: Path, spec: Mapping[str, Any], config: Mapping[str, str]
) -> Callable[[Any, Mapping[str, Any]], list[list[dict[str, Any]]]]:
    """Build the detector that `spec` describes and return what predicts.

    That takes a table with the column ``image``: each entry a picture file's bytes in base64, or
    the pixels as (height, width, 3) whole numbers from 0 to 255 in BGR order. It returns, for each
    picture, a list of boxes: ``xyxy`` in pixels of the given picture, ``confidence``, ``class``
    and ``name``.

    Raises
    ------
    ValueError
        `spec` does not describe a YOLO model.
    """
    model = spec["model"]
    if model.get("family") != "yolov8":
        raise ValueError(f"the weights are of {model or 'an unknown model'}, expected YOLOv8")
    names = list(model["names"])
    network: Any = DetectionModel(f"yolov8{model['size']}.yaml", nc=len(names), verbose=False)
    network.load_state_dict(load_file(weights), strict=True)
    network.to(config["device"]).eval()
    lock = threading.Lock()  # the head caches its anchors between pictures

    def predict(data: Any, params: Mapping[str, Any]) -> list[list[dict[str, Any]]]:
        conf = params.get("conf", 0.25)
        side = params.get("image_size", 0) or model.get("image_size", 0)
        pictures = [as_pixels(entry) for cell in data["image"] for entry in _entries(cell)]
        with lock, torch.inference_mode():
            detected = [find_boxes(network, each, conf=conf, side=side) for each in pictures]
        return [
            [
                {"xyxy": xyxy, "confidence": confidence, "class": int(c), "name": names[int(c)]}
                for *xyxy, confidence, c in boxes.tolist()
            ]
            for boxes in detected
        ]

    return predict


def find_boxes(
    network: torch.nn.Module, pixels: np.ndarray, *, conf: float, side: int
) -> torch.Tensor:
    """Return the boxes of a picture, shape (n, 6): x1, y1, x2, y2 in pixels, confidence, class.

    Parameters
    ----------
    network : torch.nn.Module
        The detector, in evaluation mode.
    pixels : np.ndarray
        The picture, uint8, shape (height, width, 3) in BGR order.
    conf : float
        Boxes with less confidence are left out.
    side : int
        Side in pixels to which the picture is scaled and padded; 0: its longest side, at most 640.
    """
    side = side or min(max(pixels.shape[:2]), _LARGEST_DEFAULT)
    side = math.ceil(side / _STRIDE) * _STRIDE
    square = LetterBox((side, side), auto=False, stride=_STRIDE)(image=pixels)
    rgb = np.ascontiguousarray(square[..., ::-1].transpose(2, 0, 1))
    weight = next(network.parameters())
    batch = torch.from_numpy(rgb).to(weight.device, weight.dtype)[None] / 255
    # Ultralytics drops the boxes of pictures that take long; a slow machine must not change
    # results, so there is no time limit.
    found = non_max_suppression(network(batch), conf, _OVERLAP, max_time_img=math.inf)
    boxes: torch.Tensor = found[0]
    boxes[:, :4] = scale_boxes((side, side), boxes[:, :4], pixels.shape)
    return boxes[:, :6]


def _entries(cell: Any) -> list[Any]:
    # Of {"image": ["...", "..."]} MLflow makes one cell with the whole list.
    texts = isinstance(cell, list) and bool(cell) and all(isinstance(e, str) for e in cell)
    return list(cell) if texts else [cell]


def as_pixels(entry: Any) -> np.ndarray:
    """Return a picture as uint8 in BGR order, from base64 text, file bytes or pixels."""
    if isinstance(entry, str):
        try:
            entry = base64.b64decode(entry, validate=True)
        except (binascii.Error, ValueError) as error:
            raise ValueError(f"the text of a picture is not base64: {error}") from None
    if isinstance(entry, bytes):
        decoded = cv2.imdecode(np.frombuffer(entry, np.uint8), cv2.IMREAD_COLOR) if entry else None
        if decoded is None:
            raise ValueError("a picture can't be decoded; expected the bytes of a picture file")
        return np.asarray(decoded)
    pixels = np.array(entry)
    whole = np.issubdtype(pixels.dtype, np.integer)
    if not whole or pixels.ndim != 3 or pixels.shape[2] != 3 or 0 in pixels.shape:
        raise ValueError(
            f"a picture has dtype {pixels.dtype} and shape {pixels.shape}, "
            "expected whole numbers and (height, width, 3) in BGR order"
        )
    if pixels.min() < 0 or pixels.max() > 255:
        raise ValueError("a picture has numbers outside of 0 to 255")
    return pixels.astype(np.uint8)
