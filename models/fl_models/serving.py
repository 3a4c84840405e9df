# SPDX-License-Identifier: AGPL-3.0-or-later
"""Serving code of the YOLO model, copied beside each version's weights for MLflow to run.

Pictures in, boxes out, the same boxes as those of `YoloModel.predict`, which uses `find_boxes` too.
The file is complete in itself: a server needs the packages in `REQUIREMENTS`, but neither this
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

# As in `fl_models.ultralytics_names`, which a server does not have.
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

_BOX = {
    "xyxy": {"type": "array", "items": {"type": "double"}, "required": True},
    "confidence": {"type": "double", "required": True},
    "class": {"type": "long", "required": True},
    "name": {"type": "string", "required": True},
}
INPUTS = [{"type": "any", "name": "image", "required": True}]
OUTPUTS = [{"type": "array", "items": {"type": "object", "properties": _BOX}, "required": True}]
PARAMS = [
    {"name": "conf", "type": "double", "default": 0.25, "shape": None},
    {"name": "image_size", "type": "long", "default": 0, "shape": None},  # 0: as in training
]
REQUIREMENTS = ("ultralytics", "torch", "torchvision", "numpy", "safetensors")
CONFIG = {"device": "cpu"}

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
        pictures = [_pixels(entry) for cell in data["image"] for entry in _entries(cell)]
        weight, classes = next(network.parameters()), len(names)
        with lock, torch.inference_mode():
            detected = [
                find_boxes(network, p, like=weight, num_classes=classes, conf=conf, side=side)
                for p in pictures
            ]
        return [[_as_row(box, names) for box in boxes.tolist()] for boxes in detected]

    return predict


def find_boxes(
    network: Callable[[torch.Tensor], Any],
    pixels: np.ndarray,
    *,
    like: torch.Tensor,
    num_classes: int,
    conf: float,
    side: int,
) -> torch.Tensor:
    """Return the boxes of a picture, shape (n, 6): x1, y1, x2, y2 in pixels, confidence, class.

    Parameters
    ----------
    network : Callable[[torch.Tensor], Any]
        The detector, in evaluation mode.
    pixels : np.ndarray
        The picture, uint8, shape (height, width, 3) in BGR order.
    like : torch.Tensor
        A weight of the detector; the picture is moved to its device and dtype.
    num_classes : int
        Number of classes.
    conf : float
        Boxes with less confidence are left out.
    side : int
        Side in pixels to which the picture is scaled and padded; 0: its longest side, at most 640.
    """
    side = side or min(max(pixels.shape[:2]), _LARGEST_DEFAULT)
    side = math.ceil(side / _STRIDE) * _STRIDE
    square = LetterBox((side, side), auto=False, stride=_STRIDE)(image=pixels)
    rgb = np.ascontiguousarray(square[..., ::-1].transpose(2, 0, 1))
    batch = torch.from_numpy(rgb).to(like.device, like.dtype)[None] / 255
    # Ultralytics drops the boxes of pictures that take long; a slow machine must not change
    # results, so there is no time limit.
    boxes: torch.Tensor = non_max_suppression(
        network(batch), conf, _OVERLAP, nc=num_classes, max_time_img=math.inf
    )[0]
    boxes[:, :4] = scale_boxes((side, side), boxes[:, :4], pixels.shape)
    return boxes[:, :6]


def _as_row(box: list[float], names: list[str]) -> dict[str, Any]:
    number = int(box[5])
    return {"xyxy": box[:4], "confidence": box[4], "class": number, "name": names[number]}


def _entries(cell: Any) -> list[Any]:
    # Of {"image": ["...", "..."]} MLflow makes one cell with the whole list.
    texts = isinstance(cell, list) and bool(cell) and all(isinstance(e, str) for e in cell)
    return list(cell) if texts else [cell]


def _pixels(entry: Any) -> np.ndarray:
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
