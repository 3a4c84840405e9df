# SPDX-License-Identifier: AGPL-3.0-or-later
"""Detectors of Ultralytics as plain torch modules: building, prediction, and loading of arrays.

Training is in the client, evaluation in `fl_models.holdout`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image as PillowImage
from torch import nn
from ultralytics.data.loaders import LoadPilAndNumpy
from ultralytics.engine.results import Results
from ultralytics.nn.tasks import DetectionModel
from ultralytics.utils.patches import imread
from ultralytics.utils.torch_utils import intersect_dicts

from fl_models.architecture import check_architecture, read_architecture
from fl_models.serving import (
    FAMILY,
    as_pixels,
    class_width,
    find_boxes,
    fit_class_branch,
    require_detector,
)

Image = np.ndarray | str | Path | PillowImage.Image

# With Ultralytics' 0.03 the running statistics lag behind in short rounds, and the first rounds of
# a session have a score of 0.
_BATCH_NORM_MOMENTUM = 0.1
_SHAPING = ("backbone", "head", "scale", "scales", "activation", "reg_max", "end2end")
_KEYWORDS = ("conf", "iou", "imgsz", "classes", "max_det", "half", "device")


class ModelMismatchError(ValueError):
    """Arrays don't fit this model; the text names the first that differ."""


class YoloModel(DetectionModel):  # type: ignore[misc]  # Ultralytics is untyped to mypy
    """A detector of Ultralytics whose `predict` takes pictures as well as tensors.

    The state dict is exactly Ultralytics' (355 entries for YOLOv8n), so weights go both ways.

    Parameters
    ----------
    architecture : Mapping[str, Any]
        What Ultralytics builds it from, such as `read_architecture` returns.
    names : Sequence[str]
        Class names by class number.
    class_width : int | None
        Channels of the head's hidden class layers; by default Ultralytics' for so many classes.
    image_size : int
        Side in pixels of the pictures that it was trained on, which `predict` uses; 0: unknown.

    Raises
    ------
    ValueError
        Ultralytics can't build this.
    """

    def __init__(
        self,
        architecture: Mapping[str, Any],
        names: Sequence[str],
        *,
        class_width: int | None = None,
        image_size: int = 0,
    ) -> None:
        check_architecture(architecture)
        try:
            super().__init__(dict(architecture), nc=len(names), verbose=False)
        except Exception as error:  # whatever a wrong layer or channel count leads to
            raise ValueError(f"Ultralytics can't build the model: {error!r}") from error
        if class_width is not None:
            fit_class_branch(self, class_width)
        self.names = dict(enumerate(names))
        self.nc = len(names)
        self.image_size = image_size
        self._set_momentum()

    @property
    def description(self) -> dict[str, Any]:
        """What `described_model` builds the same model from, as JSON allows."""
        return {
            "family": FAMILY,
            "model": Path(self.yaml.get("yaml_file") or "").stem,
            "yaml": dict(self.yaml),
            "class_width": class_width(self),
            "num_classes": self.nc,
            "names": list(self.names.values()),
            "image_size": self.image_size,
        }

    def load_description(self, description: Mapping[str, Any]) -> None:
        """Take over class names and picture size of the weights that are loaded next.

        Raises
        ------
        ModelMismatchError
            The weights are of another model.
        """
        model, names = description.get("model"), list(description.get("names", []))
        if description.get("family") != FAMILY or not self._is_like(description):
            raise ModelMismatchError(
                f"the weights are of {model or 'an unknown model'}, and this model is "
                f"{self.description['model']}: build it with get_model({model!r}, {len(names)})"
            )
        if len(names) != self.nc:
            raise ModelMismatchError(
                f"the weights are of {len(names)} classes and this model has {self.nc}: build it "
                f"with get_model({model!r}, {len(names)})"
            )
        fit_class_branch(self, description["class_width"])
        self._set_momentum()
        self.names, self.image_size = dict(enumerate(names)), description["image_size"]

    def _is_like(self, description: Mapping[str, Any]) -> bool:
        """Whether a model of this description differs in its class branch only."""
        architecture = description["yaml"]
        if all(architecture.get(key) == self.yaml.get(key) for key in _SHAPING):
            return True
        # The same model is written in two ways: of old, the size was in other entries.
        kinds = [each.get("activation") for each in (architecture, self.yaml)]
        shapes = [
            {name: array.shape for name, array in each.state_dict().items() if ".cv3." not in name}
            for each in (described_model(description), self)
        ]
        return kinds[0] == kinds[1] and shapes[0] == shapes[1]

    def _set_momentum(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = _BATCH_NORM_MOMENTUM

    def predict(
        self,
        images: torch.Tensor | Image | Sequence[Image],
        *args: Any,
        conf: float | None = None,
        iou: float | None = None,
        imgsz: int | Sequence[int] | None = None,
        classes: int | Sequence[int] | None = None,
        max_det: int | None = None,
        half: bool | None = None,
        device: str | int | torch.device | None = None,
        **kwargs: Any,
    ) -> Any:
        """Detect objects, as Ultralytics' own `predict` does; nothing is written to disk.

        Parameters
        ----------
        images : np.ndarray | PIL.Image.Image | str | Path | list of these | torch.Tensor
            Pictures as uint8 arrays of shape (height, width, 3) in BGR order (as in OpenCV and
            Ultralytics), as Pillow's pictures, or paths of picture files. A tensor is passed
            through the network, as in any torch module, without the other arguments.
        conf : float | None
            Boxes with less confidence are left out; by default 0.25.
        iou : float | None
            Of two boxes of a class that overlap more, the less confident is dropped; by default
            0.7. 0 to 1.
        imgsz : int | Sequence[int] | None
            Size in pixels to which a picture is scaled: one number, or (height, width). By default
            that of training; if it is unknown, the picture's longest side, at most 640.
        classes : int | Sequence[int] | None
            Class numbers to look for; by default all.
        max_det : int | None
            Most boxes of a picture; by default 300.
        half : bool | None
            Compute with 16 bit floats on a GPU. On a CPU it changes nothing, as in Ultralytics.
        device : str | int | torch.device | None
            Where to compute, such as "cpu", "cuda:0" or 0; the model stays there.

        Returns
        -------
        list[Results]
            Ultralytics' results, one per picture; boxes are in pixels of the given picture.

        Raises
        ------
        TypeError
            An argument is unknown.
        ValueError
            A picture is missing or can't be decoded, or a value is out of range.
        """
        given: dict[str, Any] = {
            "conf": conf, "iou": iou, "imgsz": imgsz, "classes": classes, "max_det": max_det,
            "half": half, "device": device,
        }  # fmt: skip
        given = {name: value for name, value in given.items() if value is not None}
        if isinstance(images, torch.Tensor):
            if given:
                raise TypeError(
                    f"{', '.join(given)} can't be applied to a tensor, which only passes through "
                    "the network; give pictures as arrays, Pillow's pictures or paths"
                )
            return super().predict(images, *args, **kwargs)
        if args or kwargs:
            raise TypeError(
                f"predict() does not know {', '.join(map(str, (*args, *kwargs)))}; its arguments "
                f"are {', '.join(_KEYWORDS)}"
            )
        one = isinstance(images, np.ndarray | str | Path | PillowImage.Image)
        many: Any = [images] if one else images
        if device is not None:
            self.to(_device(given.pop("device")))
        given.setdefault("imgsz", self.image_size)
        if isinstance(classes, int):
            given["classes"] = [classes]
        was_training = self.training
        self.eval()
        try:
            with torch.no_grad():
                return [self._detect(image, given) for image in many]
        finally:
            self.train(was_training)

    def _detect(self, image: Image, given: Mapping[str, Any]) -> Results:
        pixels, path = _pixels(image)
        return Results(pixels, path=path, names=self.names, boxes=find_boxes(self, pixels, **given))


def described_model(description: Mapping[str, Any]) -> YoloModel:
    """Build the model that `YoloModel.description` describes, with random weights.

    Raises
    ------
    ValueError
        It describes no detector of Ultralytics.
    """
    require_detector(description)
    return YoloModel(
        description["yaml"],
        description["names"],
        class_width=description["class_width"],
        image_size=description["image_size"],
    )


def get_model(
    model_size: str | Path = "n",
    num_classes: int = 7,
    *,
    names: Sequence[str] | None = None,
    weights: Mapping[str, np.ndarray | torch.Tensor] | None = None,
    seed: int | None = None,
    image_size: int = 0,
) -> YoloModel:
    """Build a detector from its name and class count alone; downloads nothing.

    Parameters
    ----------
    model_size : str | Path
        n, s, m, l or x for YOLOv8 of that size, any detector of Ultralytics by name, such as
        ``yolo11s``, or the path of a model's ``.yaml`` file.
    num_classes : int
        Number of classes.
    names : Sequence[str] | None
        Class names; by default the class numbers.
    weights : Mapping | None
        Pretrained arrays by state-dict name, from a model of any class count, as in `take_weights`.
    seed : int | None
        Seed of the random values; by default torch's current random state.
    image_size : int
        Side in pixels of the pictures of training; 0: unknown.

    Raises
    ------
    ValueError
        The name is unknown, the names don't fit the class count, or the weights the model.
    """
    architecture = read_architecture(model_size)
    names = [str(number) for number in range(num_classes)] if names is None else names
    if num_classes < 1 or len(names) != num_classes:
        raise ValueError(f"{len(names)} names were given for {num_classes} classes (at least 1)")
    with torch.random.fork_rng(devices=[], enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        model = YoloModel(architecture, names, image_size=image_size)
    if weights is not None:
        take_weights(model, weights)
    return model


def take_weights(
    model: YoloModel,
    weights: Mapping[str, np.ndarray | torch.Tensor],
    description: Mapping[str, Any] | None = None,
) -> str:
    """Start a model from weights of the same architecture, whatever their classes.

    Arrays of the head's class branch that have another shape keep their random values. If both
    sides have class names, Ultralytics' own `load` takes the rows of equal names. The model's
    dtypes stay as they are.

    Parameters
    ----------
    model : YoloModel
        Changed in place, or left as it is if the weights don't fit. Its class branch becomes as
        wide as that of the weights.
    weights : Mapping[str, np.ndarray | torch.Tensor]
        Arrays by state-dict name.
    description : Mapping[str, Any] | None
        `YoloModel.description` of the model that they are of, if it is known.

    Returns
    -------
    str
        How many arrays were taken, such as "349 of 355 arrays".

    Raises
    ------
    ModelMismatchError
        The weights are of another architecture; names the first difference.
    """
    tensors = {name: torch.as_tensor(array) for name, array in weights.items()}
    head, state = f"model.{len(model.model) - 1}.", model.state_dict()
    branch = (f"{head}cv3.", f"{head}one2one_cv3.")
    misfits = [
        name
        for name, own in state.items()
        if not name.startswith(branch) and (name not in tensors or tensors[name].shape != own.shape)
    ]
    if misfits:
        said = (description or {}).get("model") or "another architecture"
        raise ModelMismatchError(
            f"{len(misfits)} of {len(state)} arrays don't fit {model.description['model']}, the "
            f"first is {misfits[0]}: the weights are of {said}, so set model to what they are of"
        )
    last = tensors.get(f"{head}cv3.0.2.weight")
    if last is not None and last.ndim == 4:
        names = dict(model.names)
        fit_class_branch(model, last.shape[1])
        model.names = names
        model._set_momentum()
    known = (description or {}).get("names", [])
    fitting = intersect_dicts(tensors, model.state_dict())
    if known and list(known) != list(model.names.values()):
        donor = described_model(description or {})
        donor.load_state_dict(tensors, strict=True)
        names = dict(model.names)
        model.load(donor, verbose=False)
        model.names = names
        same = len(set(known) & set(names.values()))
        rows = f" and {same} of {model.nc} classes by name" if same else ""
        return f"{len(fitting)} of {len(state)} arrays{rows}"
    model.load_state_dict(fitting, strict=False)
    return f"{len(fitting)} of {len(state)} arrays"


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
            f"({'; '.join(faults[:3])}): use the model and class count they come from"
        )
    with torch.no_grad():
        for name, tensor in state.items():
            tensor.copy_(torch.from_numpy(np.array(arrays[name])))


def _pixels(image: Image) -> tuple[np.ndarray, str]:
    if isinstance(image, np.ndarray):
        return as_pixels(image), "image.jpg"
    if isinstance(image, PillowImage.Image):
        return LoadPilAndNumpy([image]).im0[0], getattr(image, "filename", "") or "image.jpg"
    pixels = imread(str(image))
    if pixels is None:
        raise ValueError(f"picture {image} is missing or can't be decoded")
    return as_pixels(pixels), str(image)


def _device(given: str | int | torch.device) -> torch.device:
    try:
        device = torch.device(f"cuda:{given}" if str(given).isdigit() else given)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # the second: torch without CUDA
        reason = str(error).partition("\n")[0]
        raise ValueError(f"device {given!r} can't be used here: {reason}") from error
    return device
