# SPDX-License-Identifier: AGPL-3.0-or-later
"""One local round: trains a module in place with Ultralytics' data set and loss.

Nothing is written to disk but decoded pictures, if the cache is there.
"""

from __future__ import annotations

import json
import logging
import math
import random
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from copy import copy
from functools import lru_cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import nn

from fl_app.client.hardware import Hardware, Precision
from fl_app.client.optimization import (
    Schedule,
    build_optimizer,
    optimizer_arrays,
    restore_optimizer,
)
from fl_app.client.train_args import TrainArgs
from fl_models.dataset import PictureDataset
from fl_models.pictures import Picture

logger = logging.getLogger(__name__)

_STRIDE = 32
_CACHED_DATASETS = 2


class TrainingError(RuntimeError):
    """A local round can't produce usable weights; the text is one sentence with the reason."""


def train_locally(
    model: Any,
    pictures: Sequence[Picture],
    *,
    names: Sequence[str],
    image_size: int,
    batch_size: int,
    epochs: int,
    seed: int,
    args: TrainArgs | None = None,
    hardware: Hardware | None = None,
    kept: dict[str, np.ndarray] | None = None,
) -> float:
    """Train the module in place for one round.

    Rates, warm-up and mosaic are those of its global epochs. Equal
    arguments give equal weights on a CPU. Python's, NumPy's and torch's random states are seeded,
    as Ultralytics does; two rounds in threads of one process would disturb each other. Except for
    rounding, the weights of a session of one round equal those of Ultralytics' own trainer.

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
    batch_size : int
        Pictures of a batch.
    seed : int
        Seed of order and augmentation, from 0 to 2**31 - 2.
    args : TrainArgs | None
        Training arguments and the global epoch; by default those of `read_train_args` for a session
        of this round alone.
    hardware : Hardware | None
        What to compute with; by default one thread of the CPU. Another number of ``workers`` draws
        other augmentations.
    kept : dict[str, np.ndarray] | None
        State of the optimizer, which the round continues and leaves here; by default it has a new
        optimizer, whose state is dropped.

    Returns
    -------
    float
        Sum of the box, class and distribution losses, mean over the last epoch's batches.

    Raises
    ------
    TrainingError
        The last batch would be too small for the picture size, every layer is frozen, the loss
        is not finite, or a process of the loader has ended.
    DeviceError
        The device does not compute in the precision.
    """
    args = args or TrainArgs(epochs=epochs)
    settings = {**args.values, "imgsz": image_size, "batch": batch_size, "epochs": args.epochs}
    settings["nbs"] = args.values.get("nbs") or batch_size
    started = time.perf_counter()
    text = json.dumps(settings, sort_keys=True)
    hardware = hardware or Hardware()
    dataset = _dataset(tuple(pictures), tuple(names), text, hardware)
    _require_batches(len(pictures), dataset.settings)
    try:
        with torch_threads(hardware.threads), _loader_explained():
            loss = _train(
                model, dataset, hardware, first=args.epoch, epochs=epochs, seed=seed, kept=kept
            )
    finally:  # after a failure too, the next round has the model, and the device its memory
        model.zero_grad()
        model.criterion = None
        model.to("cpu", memory_format=torch.contiguous_format).eval()
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


@contextmanager
def _loader_explained() -> Iterator[None]:
    """Raise a TrainingError if the processes of the loader within the block can't work."""
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        if "DataLoader worker" not in text and "shared memory" not in text:
            raise
        raise TrainingError(
            f"a process that loads pictures has ended ({text.splitlines()[0]}): set workers to "
            "fewer or 0, or give the container more shared memory (docker run --shm-size 2g)"
        ) from None


def _train(
    model: Any,
    dataset: PictureDataset,
    hardware: Hardware,
    *,
    first: int,
    epochs: int,
    seed: int,
    kept: dict[str, np.ndarray] | None,
) -> float:
    """Train the global epochs from ``first``; return the mean loss of the last one."""
    # A loop of its own: YOLO.train() also validates, saves and plots. It takes 2.9 times as long as
    # the steps at 320 pixels and 14.8 times at 64; this loop takes 1.05 and 1.14 times as long
    # (benchmarks/client_round.py). It does not halve a batch that a GPU has no memory for.
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    place, precision = hardware.device, Precision(hardware.amp, hardware.device)
    settings = copy(dataset.settings)
    # As in Ultralytics: on a GPU it is faster. Not on a CPU, see `fl_models.holdout`.
    layout = torch.channels_last if place.type == "cuda" else torch.contiguous_format
    frozen = _freeze(model.to(place, memory_format=layout), settings.freeze)
    _prepare_loss(model, settings, epoch=first)
    dataset.open_mosaic()
    with closing(dataset.loader(place)) as loader:
        rounds = {"epoch": first, "local_epochs": epochs, "batches": len(loader)}
        schedule = Schedule(settings, **rounds, kept=bool(kept))
        decay, count = schedule.weight_decay, len(dataset.data["names"])
        optimizer = build_optimizer(model, settings, num_classes=count, weight_decay=decay)
        restore_optimizer(optimizer, kept or {})
        weights = [weight for weight in model.parameters() if weight.requires_grad]
        number = 0
        for epoch in range(first, first + epochs):
            last = max(first, settings.epochs - settings.close_mosaic)
            if settings.close_mosaic and epoch == last:
                dataset.close_mosaic(hyp=copy(settings))
                loader.reset()
            _training_mode(model, frozen)
            losses, stepped = [], True
            for batch in loader:
                stepped = schedule.prepare(optimizer, number)
                with precision.autocast():
                    loss = model(_preprocessed(batch, settings, place))[0].sum()
                precision.backward(loss)
                if stepped:
                    precision.step(optimizer, weights)
                losses.append(loss.detach() / len(batch["img"]))
                number += 1
            if hasattr(model.criterion, "update"):
                model.criterion.update()
            mean = float(torch.stack(losses).mean())
            if not math.isfinite(mean):
                raise TrainingError(
                    f"the loss is {mean} after local epoch {epoch - first + 1}: "
                    f"lower lr0 in train-args, {precision.advice}or check the labels"
                )
    # Ultralytics drops the gradients that are left at its end. Those of a round would be left at
    # each round's end, which is a large share where a node has few pictures.
    if not stepped and first + epochs < settings.epochs:
        precision.step(optimizer, weights)
    _report_overflows(precision)
    if kept is not None:
        kept.clear()
        kept.update(optimizer_arrays(optimizer))
    return mean


def _report_overflows(precision: Precision) -> None:
    if precision.overflows:
        lost = f"{precision.overflows} of {precision.steps} steps overflowed in float16"
        if precision.overflows == precision.steps:
            raise TrainingError(f"{lost}, so that nothing was learned: set amp to 'bf16' or 'off'")
        logger.warning("%s and changed no weight", lost)


def _preprocessed(batch: dict[str, Any], settings: Any, place: torch.device) -> dict[str, Any]:
    """Return the batch with its pictures on the device, from 0 to 1."""
    # A copy from pinned memory, which the loader uses for CUDA, goes on beside the computation.
    ahead = place.type == "cuda"
    if settings.multi_scale:
        from ultralytics.models.yolo.detect import DetectionTrainer

        trainer = SimpleNamespace(args=settings, device=place, stride=_STRIDE)
        scaled: dict[str, Any] = DetectionTrainer.preprocess_batch(trainer, batch)
        return scaled
    moved = {
        key: value.to(place, non_blocking=ahead) if isinstance(value, torch.Tensor) else value
        for key, value in batch.items()
    }
    return {**moved, "img": moved["img"].float() / 255}


def _prepare_loss(model: Any, settings: Any, *, epoch: int) -> None:
    """Give the model the loss of its family, as far as it is at a global epoch."""
    model.args = settings
    model.criterion = model.init_criterion()
    if hasattr(model.criterion, "update"):  # v10 and 26 weigh their two heads by the epoch
        for _ in range(epoch):
            model.criterion.update()


def _freeze(model: nn.Module, freeze: int | list[int] | None) -> list[str]:
    """Freeze the layers that Ultralytics' ``freeze`` names; return the prefixes of their names."""
    layers = freeze if isinstance(freeze, list) else range(freeze or 0)
    frozen = [*(f"model.{layer}." for layer in layers), ".dfl"]  # .dfl is a constant
    for name, weight in model.named_parameters():
        weight.requires_grad = not any(part in name for part in frozen)
    if not any(weight.requires_grad for weight in model.parameters()):
        raise TrainingError(
            f"freeze={freeze} in train-args freezes every layer of the model: freeze fewer"
        )
    return frozen


def _training_mode(model: nn.Module, frozen: Sequence[str]) -> None:
    """Set the model to training, but for the statistics of frozen layers."""
    model.train()
    for name, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d) and any(part in name for part in frozen):
            module.eval()


def _require_batches(count: int, settings: Any) -> None:
    smallest = max(_STRIDE, int(settings.imgsz * (1 - settings.multi_scale))) // _STRIDE * _STRIDE
    if (count % settings.batch or settings.batch) == 1 and smallest < 2 * _STRIDE:
        # The head's last map is 1x1, too little for the batch norm of one picture.
        raise TrainingError(
            f"{count} pictures in batches of {settings.batch} leave a last batch of one, too "
            f"few for pictures of {smallest} pixels: change batch-size or image-size"
        )


@lru_cache(maxsize=_CACHED_DATASETS)
def _dataset(
    pictures: tuple[Picture, ...], names: tuple[str, ...], settings: str, hardware: Hardware
) -> PictureDataset:
    # Cached with its decoded pictures for the next round with the same records. Augmentation draws
    # from the seeded states alone, so a round does not depend on the one before.
    return PictureDataset(
        pictures,
        names,
        settings=json.loads(settings),
        augment=True,
        workers=hardware.workers,
        cache=hardware.cache,
        cache_folder=hardware.cache_folder,
    )
