# SPDX-License-Identifier: AGPL-3.0-or-later
"""One local round with Ultralytics: train the given module in place and leave nothing behind.

Which pictures and which learning rate is the caller's business.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from models.dataset import PictureDataset
from models.pictures import Picture
from models.upstream import DetectionTrainer, build_dataloader

_SMALLEST_FOR_ONE = 64  # pixels; below, the head's last map is 1x1, too little for batch norm

# Colour, mirroring and shift stay at Ultralytics' defaults. Mosaic makes four pictures of one,
# which does not pay in rounds of a few dozen steps.
_AUGMENTATION = {"mosaic": 0.0, "scale": 0.2, "close_mosaic": 0}


class TrainingError(RuntimeError):
    """A local round can't give usable weights; the text is one sentence that says why."""


@dataclass(frozen=True)
class LocalResult:
    """What a local round reports.

    Parameters
    ----------
    num_examples : int
        Pictures trained on.
    loss : float
        Sum of the box, class and distribution losses, mean over the last epoch's batches.
    seconds : float
        Wall time of the round.
    """

    num_examples: int
    loss: float
    seconds: float


def train_locally(
    model: nn.Module,
    pictures: Sequence[Picture],
    *,
    names: Sequence[str],
    image_size: int,
    batch_size: int,
    epochs: int,
    learning_rate: float,
    seed: int,
    threads: int = 1,
    device: str = "cpu",
) -> LocalResult:
    """Train the module in place for one round and return what to report.

    The round has a fresh AdamW at a constant rate and one step a batch. Equal arguments give
    equal weights on a CPU. Python's, NumPy's and torch's random states are seeded anew, as
    Ultralytics does; two rounds in threads of one process would disturb each other.

    Parameters
    ----------
    model : nn.Module
        Trained in place; it ends on the CPU, in evaluation mode.
    pictures : Sequence[Picture]
        What to train on, at least one.
    image_size : int
        Side in pixels, a multiple of 32.
    seed : int
        Decides order and augmentation, from 0 to 2**31 - 2.
    threads : int
        CPU threads for this round.
    device : str
        "cpu" or "cuda:0" and so on.

    Raises
    ------
    TrainingError
        If the last batch would be too small for the picture size, or the loss is not finite.
    """
    if len(pictures) % batch_size == 1 and image_size < _SMALLEST_FOR_ONE:
        raise TrainingError(
            f"{len(pictures)} pictures in batches of {batch_size} leave a last batch of one, too "
            f"little for pictures of {image_size} pixels: change batch-size or image-size"
        )
    begun = time.perf_counter()
    hyper = {
        "imgsz": image_size,
        "batch": batch_size,
        "nbs": batch_size,  # one step a batch; at the default of 64 most batches make none
        "epochs": epochs,
        "lr0": learning_rate,
        "seed": seed,
        "device": device,
    }
    with tempfile.TemporaryDirectory(prefix="fl-app-round-") as folder, torch_threads(threads):
        local_round = LocalRound(model, pictures, names, save_dir=folder, **hyper)
        torch.set_num_threads(threads)  # the line above set it to the number of cores
        local_round.train()
    model.to("cpu").eval()
    loss = sum(float(part) for part in local_round.tloss.values())
    return LocalResult(len(pictures), loss, time.perf_counter() - begun)


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Let torch use `count` CPU threads within the block; more than cores only costs time."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class LocalRound(DetectionTrainer):  # type: ignore[misc]  # Ultralytics is untyped to mypy
    """Ultralytics' training loop around a module that is given, without all that surrounds it.

    The name holds no "Trainer", by which Ultralytics decides whether to attach MLflow, Comet
    and others. `setup_model` leaves a module that is set already as it is, so exactly the
    given weights are trained, in place.
    """

    def __init__(
        self, model: nn.Module, pictures: Sequence[Picture], names: Sequence[str], **hyper: Any
    ) -> None:
        self._pictures, self._names = pictures, names
        fixed = {
            "task": "detect",
            "mode": "train",
            "model": "yolov8n.yaml",  # a valid name; the module below replaces it
            "data": "given",
            "optimizer": "AdamW",  # "auto" would ignore the rate
            "lrf": 1.0,
            "momentum": 0.9,
            "warmup_epochs": 0.0,
            "amp": False,  # on a GPU, Ultralytics checks it with a model that it downloads
            "channels_last": False,
            "workers": 0,
            "plots": False,
            "val": False,
            "save": False,
            "verbose": False,
            "deterministic": False,  # would set a flag of the whole process
        }
        super().__init__(overrides={**fixed, **_AUGMENTATION, **hyper})
        self.model = model

    def get_dataset(self) -> dict[str, Any]:
        names = dict(enumerate(self._names))
        return {"train": "", "val": "", "names": names, "nc": len(names), "channels": 3}

    def get_dataloader(
        self, dataset_path: str, batch_size: int = 16, rank: int = 0, mode: str = "train"
    ) -> Any:
        if mode == "val":
            return self.train_loader  # nothing is validated; the loop only wants to have one
        dataset = PictureDataset(self._pictures, self._names, settings=self.args, augment=True)
        return build_dataloader(dataset, batch_size, 0, shuffle=True, device=self.device)

    def get_validator(self) -> Any:
        return SimpleNamespace(metrics=SimpleNamespace(keys=[]), dataloader=None)

    def _setup_train(self) -> None:
        super()._setup_train()
        # An average over the round's steps is neither sent nor used; keeping it costs time.
        self.ema = _NoAverage()

    def run_callbacks(self, event: str) -> None: ...

    def validate(self) -> tuple[dict[str, float], float]:
        return {}, 0.0

    def save_model(self) -> bool:
        return False

    def save_metrics(self, metrics: dict[str, float]) -> None: ...

    def final_eval(self) -> None: ...

    def _handle_nan_recovery(self, epoch: int) -> bool:
        loss = float(self.loss.detach())
        if not math.isfinite(loss):
            raise TrainingError(
                f"the loss is {loss} after local epoch {epoch + 1}: "
                "lower learning-rate, or check the labels"
            )
        return False


class _NoAverage:
    """Stands where Ultralytics keeps its moving average of the weights."""

    def update(self, model: nn.Module) -> None: ...

    def update_attr(self, model: nn.Module, include: Sequence[str] = ()) -> None: ...
