# SPDX-License-Identifier: AGPL-3.0-or-later
"""YOLOv8 as a plain torch module: building, prediction, and loading of arrays.

Training is in the client, evaluation in `fl_models.holdout`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import nn
from ultralytics.engine.results import Results
from ultralytics.nn.tasks import DetectionModel
from ultralytics.utils.torch_utils import intersect_dicts

from fl_models.serving import as_pixels, find_boxes

Image = np.ndarray | str | Path

_SIZES = "nsmlx"
# With Ultralytics' 0.03 the running statistics lag behind in short rounds, and the first rounds of
# a session have a score of 0.
_BATCH_NORM_MOMENTUM = 0.1


class ModelMismatchError(ValueError):
    """Arrays don't fit this model; the text names the first that differ."""


class YoloModel(DetectionModel):  # type: ignore[misc]  # Ultralytics is untyped to mypy
    """YOLOv8 detector whose `predict` takes pictures as well as tensors.

    The state dict is exactly Ultralytics' (355 entries), so weights go both ways.

    Parameters
    ----------
    model_size : str
        One of n, s, m, l, x.
    names : Sequence[str]
        Class names by class number.
    """

    def __init__(self, model_size: str, names: Sequence[str]) -> None:
        super().__init__(f"yolov8{model_size}.yaml", nc=len(names), verbose=False)
        self.model_size = model_size
        self.names = dict(enumerate(names))
        self.nc = len(names)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = _BATCH_NORM_MOMENTUM

    def predict(
        self,
        images: torch.Tensor | Image | Sequence[Image],
        *args: Any,
        conf: float = 0.25,
        image_size: int | None = None,
        **kwargs: Any,
    ) -> Any:
        """Detect objects; nothing is written to disk.

        Parameters
        ----------
        images : np.ndarray | str | Path | list of these | torch.Tensor
            Pictures as uint8 arrays of shape (height, width, 3) in BGR order (as in OpenCV and
            Ultralytics), or paths of picture files. A tensor is passed through the network, as in
            any torch module.
        conf : float
            Boxes with less confidence are left out.
        image_size : int | None
            Side in pixels to which a picture is scaled and padded, preferably that of training. By
            default the picture's longest side, at most 640.

        Returns
        -------
        list[Results]
            Ultralytics' results, one per picture; boxes are in pixels of the given picture.
        """
        if isinstance(images, torch.Tensor):
            return super().predict(images, *args, **kwargs)
        many = [images] if isinstance(images, np.ndarray | str | Path) else list(images)
        was_training = self.training
        self.eval()
        try:
            with torch.no_grad():
                return [self._detect(image, conf, image_size) for image in many]
        finally:
            self.train(was_training)

    def _detect(self, image: Image, conf: float, image_size: int | None) -> Results:
        pixels, path = _pixels(image)
        boxes = find_boxes(self, pixels, conf=conf, side=image_size or 0)
        return Results(pixels, path=path, names=self.names, boxes=boxes)


def get_model(
    model_size: str = "n",
    num_classes: int = 7,
    *,
    names: Sequence[str] | None = None,
    weights: Mapping[str, np.ndarray | torch.Tensor] | None = None,
    seed: int | None = None,
) -> YoloModel:
    """Build YOLOv8 from its size and class count alone; downloads nothing.

    Parameters
    ----------
    model_size : str
        One of n, s, m, l, x.
    num_classes : int
        Number of classes.
    names : Sequence[str] | None
        Class names; by default the class numbers.
    weights : Mapping | None
        Pretrained arrays by state-dict name, from a model of any class count. Arrays of the same
        shape are copied; the others (the class branch) keep their random values.
    seed : int | None
        Seed of the random values; by default torch's current random state.

    Raises
    ------
    ValueError
        The size is unknown, the names don't fit the class count, or no array fits.
    """
    if model_size not in tuple(_SIZES):
        raise ValueError(f"model size '{model_size}' is unknown, expected one of {list(_SIZES)}")
    names = [str(number) for number in range(num_classes)] if names is None else names
    if num_classes < 1 or len(names) != num_classes:
        raise ValueError(f"{len(names)} names were given for {num_classes} classes (at least 1)")
    with torch.random.fork_rng(devices=[], enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        model = YoloModel(model_size, names)
    if weights is not None:
        tensors = {name: torch.as_tensor(array) for name, array in weights.items()}
        fitting = intersect_dicts(tensors, model.state_dict())
        if not fitting:
            raise ValueError(
                "none of the pretrained weights fit, expected arrays of a YOLOv8 model"
            )
        model.load_state_dict(fitting, strict=False)
    return model


def from_arrays(model: nn.Module, arrays: Mapping[str, np.ndarray]) -> None:
    """Load arrays into the module, all or none; the module's dtypes and device do not change.

    Averaging turns integer counters into floats; they are truncated to whole numbers.

    Raises
    ------
    ModelMismatchError
        A name is missing or unknown, or a shape differs. The module is unchanged then.
    """
    state = model.state_dict()
    faults = [f"{name} is missing" for name in state if name not in arrays]
    faults += [f"{name} is unknown" for name in arrays if name not in state]
    faults += [
        f"{name} has shape {arrays[name].shape}, expected {tuple(tensor.shape)}"
        for name, tensor in state.items()
        if name in arrays and arrays[name].shape != tuple(tensor.shape)
    ]
    if faults:
        raise ModelMismatchError(
            f"{len(faults)} of {len(state)} arrays don't fit the model "
            f"({'; '.join(faults[:3])}): use the model size and class count they come from"
        )
    with torch.no_grad():
        for name, tensor in state.items():
            tensor.copy_(torch.from_numpy(np.array(arrays[name])))


def _pixels(image: Image) -> tuple[np.ndarray, str]:
    if isinstance(image, np.ndarray):
        return as_pixels(image), "image.jpg"
    pixels = cv2.imread(str(image), cv2.IMREAD_COLOR)
    if pixels is None:
        raise ValueError(f"picture {image} is missing or can't be decoded")
    return np.asarray(pixels), str(image)
