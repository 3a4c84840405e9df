# SPDX-License-Identifier: AGPL-3.0-or-later
"""One local round: trains a module in place with Ultralytics' data set and loss.

Nothing is written to disk.
"""

from __future__ import annotations

import logging
import math
import random
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import nn

from fl_app.client.adamw import AdamW
from fl_models.dataset import PictureDataset
from fl_models.pictures import Picture

logger = logging.getLogger(__name__)

_SMALLEST_FOR_ONE = 64  # pixels; below, the head's last map is 1x1, too little for batch norm

# Colour, mirroring and shift have Ultralytics' defaults. Mosaic combines four pictures into one,
# which does not help in rounds of a few dozen steps.
_AUGMENTATION = {"mosaic": 0.0, "scale": 0.2}
_CACHED_DATASETS = 2
_DECAY, _LARGEST_GRADIENT = 0.0005, 10.0  # Ultralytics' own


class TrainingError(RuntimeError):
    """A local round can't produce usable weights; the text is one sentence with the reason."""


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
) -> float:
    """Train the module in place for one round.

    The round has a new AdamW with a constant learning rate and one step per batch. Equal arguments
    give equal weights on a CPU. Python's, NumPy's and torch's random states are seeded, as
    Ultralytics does; two rounds in threads of one process would disturb each other. Except for
    rounding, the weights equal those of Ultralytics' own trainer with these settings.

    The decoded pictures are cached for the next round with the same `Picture` records. If a file
    has changed, pass new records.

    Parameters
    ----------
    model : nn.Module
        Trained in place; afterwards it is on the CPU, in evaluation mode.
    pictures : Sequence[Picture]
        At least one picture.
    image_size : int
        Side in pixels, a multiple of 32.
    seed : int
        Seed of order and augmentation, from 0 to 2**31 - 2.
    threads : int
        CPU threads for this round.
    device : str
        "cpu" or "cuda:0" and so on.

    Returns
    -------
    float
        Sum of the box, class and distribution losses, mean over the last epoch's batches.

    Raises
    ------
    TrainingError
        The last batch would be too small for the picture size, or the loss is not finite.
    """
    if len(pictures) % batch_size == 1 and image_size < _SMALLEST_FOR_ONE:
        raise TrainingError(
            f"{len(pictures)} pictures in batches of {batch_size} leave a last batch of one, too "
            f"few for pictures of {image_size} pixels: change batch-size or image-size"
        )
    started = time.perf_counter()
    dataset = _dataset(tuple(pictures), tuple(names), image_size, batch_size)
    with torch_threads(threads):
        loss = _train(model, dataset, epochs=epochs, rate=learning_rate, seed=seed, device=device)
    model.to("cpu").eval()
    seconds = time.perf_counter() - started
    logger.info("trained on %d pictures in %.1f s, loss %.3f", len(pictures), seconds, loss)
    return loss


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Let torch use `count` CPU threads within the block; more threads than cores are slower."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _train(
    model: Any, dataset: PictureDataset, *, epochs: int, rate: float, seed: int, device: str
) -> float:
    """Make one step per batch; return the mean loss of the last epoch."""
    # A loop of its own: YOLO.train() also validates, saves and plots. It takes 2.9 times as long as
    # the steps at 320 pixels and 14.8 times at 64; this loop takes 1.05 and 1.14 times as long
    # (benchmarks/client_round.py). It does not halve a batch that a GPU has no memory for.
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    place = torch.device(device)
    model.to(place).train()
    model.args, model.criterion = dataset.settings, None  # the loss is built from these settings
    optimizer, loader = AdamW(_groups(model), rate), dataset.loader(place)
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    for epoch in range(epochs):
        losses = []
        for batch in loader:
            # The loss moves the boxes to the device itself.
            loss = model({**batch, "img": batch["img"].to(place).float() / 255})[0].sum()
            loss.backward()
            nn.utils.clip_grad_norm_(weights, _LARGEST_GRADIENT)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.detach() / len(batch["img"]))
        mean = float(torch.stack(losses).mean())
        if not math.isfinite(mean):
            raise TrainingError(
                f"the loss is {mean} after local epoch {epoch + 1}: "
                "lower learning-rate, or check the labels"
            )
    return mean


@lru_cache(maxsize=_CACHED_DATASETS)
def _dataset(
    pictures: tuple[Picture, ...], names: tuple[str, ...], image_size: int, batch_size: int
) -> PictureDataset:
    # Cached with its decoded pictures for the next round with the same records. Augmentation draws
    # from the seeded states alone, so a round does not depend on the one before.
    settings = {"imgsz": image_size, "batch": batch_size, **_AUGMENTATION}
    return PictureDataset(pictures, names, settings=settings, augment=True)


def _groups(model: nn.Module) -> list[tuple[list[nn.Parameter], float]]:
    """Return parameters with weight decay: none for biases and batch norm; constants left out."""
    plain, decaying = list[nn.Parameter](), list[nn.Parameter]()
    for module in model.modules():
        for name, weight in module.named_parameters(recurse=False):
            if weight.requires_grad:
                constant = "bias" in name or isinstance(module, nn.BatchNorm2d)
                (plain if constant else decaying).append(weight)
    return [(plain, 0.0), (decaying, _DECAY)]
