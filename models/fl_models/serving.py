# SPDX-License-Identifier: AGPL-3.0-or-later
"""Serving code of the detectors, copied beside each version's weights for MLflow to run.

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
from collections.abc import Callable, Mapping, Sequence
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
        {"name": "iou", "type": "double", "default": 0.7, "shape": None},
        {"name": "imgsz", "type": "long", "default": 0, "shape": None},  # 0: as in training
        {"name": "classes", "type": "long", "default": [], "shape": [-1]},  # none: all
        {"name": "max_det", "type": "long", "default": 300, "shape": None},
        {"name": "half", "type": "boolean", "default": False, "shape": None},
    ],
    "requirements": ("ultralytics", "torch", "torchvision", "numpy", "safetensors"),
    "config": {"device": "cpu"},
}
"""Arguments of `fl_registry.Serving`, beside this file."""

FAMILY = "ultralytics-detect"
"""What the description of a version calls the models of this package."""

_LARGEST_DEFAULT = 640


def load(
    weights: Path, spec: Mapping[str, Any], config: Mapping[str, str]
) -> Callable[[Any, Mapping[str, Any]], list[list[dict[str, Any]]]]:
    """Build the detector that `spec` describes and return what predicts.

    That takes a table with the column ``image``: each entry a picture file's bytes in base64, or
    the pixels as (height, width, 3) whole numbers from 0 to 255 in BGR order. It returns, for each
    picture, a list of boxes: ``xyxy`` in pixels of the given picture, ``confidence``, ``class``
    and ``name``. The parameters are those of `YoloModel.predict`.

    Raises
    ------
    ValueError
        `spec` does not describe a detector of Ultralytics.
    """
    model = spec["model"]
    network = described_network(model)
    names = list(model["names"])
    network.load_state_dict(load_file(weights), strict=True)
    network.to(config["device"]).eval()
    lock = threading.Lock()  # the head caches its anchors between pictures

    def predict(data: Any, params: Mapping[str, Any]) -> list[list[dict[str, Any]]]:
        given = {**params}
        given["imgsz"] = params.get("imgsz", 0) or model["image_size"]
        given["classes"] = params.get("classes") or None
        pictures = [as_pixels(entry) for cell in data["image"] for entry in _entries(cell)]
        with lock, torch.inference_mode():
            detected = [find_boxes(network, each, **given) for each in pictures]
        return [
            [
                {"xyxy": xyxy, "confidence": confidence, "class": int(c), "name": names[int(c)]}
                for *xyxy, confidence, c in boxes.tolist()
            ]
            for boxes in detected
        ]

    return predict


def require_detector(model: Mapping[str, Any]) -> None:
    """Raise ValueError if a description is not of a detector of Ultralytics."""
    if model.get("family") != FAMILY:
        raise ValueError(
            f"the weights are of {model.get('family') or 'an unknown model'}, expected a detector "
            "of Ultralytics"
        )


def described_network(model: Mapping[str, Any]) -> Any:
    """Build the plain Ultralytics model that a version's description describes.

    Raises
    ------
    ValueError
        It does not describe a detector of Ultralytics.
    """
    require_detector(model)
    network: Any = DetectionModel({**model["yaml"]}, nc=len(model["names"]), verbose=False)
    fit_class_branch(network, model["class_width"])
    network.names = dict(enumerate(model["names"]))
    return network


def fit_class_branch(network: Any, width: int) -> None:
    """Give the head's hidden class layers `width` channels, with random weights.

    Ultralytics makes them as wide as the number of classes asks for. When it starts from weights of
    other classes, it keeps those layers, so that a model of 7 classes that was trained from COCO's
    80 has wider ones than a new model of 7.
    """
    if class_width(network) != width:
        donor = DetectionModel({**network.yaml}, nc=width, verbose=False)
        if class_width(donor) != width:
            raise ValueError(f"a class branch of {width} channels can't be built")
        network.load(donor, verbose=False)


def class_width(network: Any) -> int:
    """Return the number of channels of the head's hidden class layers."""
    return int(network.model[-1].cv3[0][-1].in_channels)


def find_boxes(
    network: Any,
    pixels: np.ndarray,
    *,
    conf: float = 0.25,
    iou: float = 0.7,
    imgsz: int | Sequence[int] = 0,
    classes: Sequence[int] | None = None,
    max_det: int = 300,
    half: bool = False,
) -> torch.Tensor:
    """Return the boxes of a picture, shape (n, 6): x1, y1, x2, y2 in pixels, confidence, class.

    They are those of Ultralytics' own `predict` with the same arguments.

    Parameters
    ----------
    network : torch.nn.Module
        The detector, in evaluation mode.
    pixels : np.ndarray
        The picture, uint8, shape (height, width, 3) in BGR order.
    conf : float
        Boxes with less confidence are left out, from 0 to 1.
    iou : float
        Of two boxes of a class that overlap more, the less confident is dropped, from 0 to 1.
    imgsz : int | Sequence[int]
        Size in pixels to which the picture is scaled, as one number or (height, width); 0: its
        longest side, at most 640. Rounded up to the stride of the model.
    classes : Sequence[int] | None
        Class numbers to look for; None: all.
    max_det : int
        Most boxes of a picture.
    half : bool
        Compute with 16 bit floats on a GPU. On a CPU it changes nothing, as in Ultralytics.

    Raises
    ------
    ValueError
        A number is out of range.
    """
    if not (0 <= conf <= 1 and 0 <= iou <= 1):
        raise ValueError(f"conf is {conf} and iou is {iou}, expected numbers from 0 to 1")
    count = network.model[-1].nc
    if classes is not None and not all(0 <= number < count for number in classes):
        raise ValueError(f"classes is {list(classes)}, expected numbers from 0 to {count - 1}")
    stride = int(network.stride.max())
    given = imgsz or min(max(pixels.shape[:2]), _LARGEST_DEFAULT)
    height, width = (given, given) if isinstance(given, int) else given
    size = tuple(math.ceil(max(side, 1) / stride) * stride for side in (height, width))
    scaled = LetterBox(size, auto=True, stride=stride)(image=pixels)
    rgb = np.ascontiguousarray(scaled[..., ::-1].transpose(2, 0, 1))
    weight = next(network.parameters())
    batch = torch.from_numpy(rgb).to(weight.device, weight.dtype)[None] / 255
    place = weight.device.type
    with torch.autocast(place, torch.float16, enabled=half and place != "cpu"):
        output = network(batch)
    found = non_max_suppression(
        output,
        conf,
        iou,
        classes=None if classes is None else list(classes),
        max_det=max_det,
        end2end=network.end2end,
        # Ultralytics drops the boxes of pictures that take long; a slow machine must not change
        # results, so there is no time limit.
        max_time_img=math.inf,
    )
    boxes: torch.Tensor = found[0]
    boxes[:, :4] = scale_boxes(batch.shape[2:], boxes[:, :4], pixels.shape)
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
