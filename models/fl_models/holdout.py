# SPDX-License-Identifier: AGPL-3.0-or-later
"""Evaluation of a detector on a fixed set of pictures, with Ultralytics' own curves."""

from __future__ import annotations

import copy
import platform
import tempfile
from collections.abc import Callable, Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from ultralytics.models.yolo.detect import DetectionValidator
from ultralytics.utils.nms import non_max_suppression

from fl_models.dataset import PictureDataset
from fl_models.decoding import read_pictures
from fl_models.map_results import Matches
from fl_models.pictures import DataSpec, PictureError

_CACHE_BYTES = 256 << 20
_COLUMNS = {
    "Class": "class",
    "Images": "images",
    "Instances": "instances",
    "Box-P": "precision",
    "Box-R": "recall",
    "Box-F1": "F1",
    "mAP50": "mAP50",
    "mAP50-95": "mAP50-95",
}
"""Our names for the columns of Ultralytics' table."""


class Holdout:
    """A fixed set of labelled pictures; call it with a module to get its scores.

    Build it once and call it every round: the pictures are read in the first call and cached.
    They are scaled to squares (`rect=False`), which differs from the default of `YOLO.val` by some
    points of mAP; apart from that, the scores are Ultralytics' own. Non-maximum suppression has no
    time limit here, so a slow machine gets the same scores. Not safe for two threads at a time:
    give each thread its own.

    Parameters
    ----------
    data : DataSpec
        The data set; its `val` pictures are the holdout.
    image_size : int
        Side of the squares in pixels, a multiple of 32.
    batch_size : int
        Pictures that go through the network at once.
    device : str
        Where to evaluate: "cpu", "cuda", ...
    cache_bytes : int
        Pictures that take more bytes, decoded and scaled, are read again in each call.
    shape_of : Callable[[Path], tuple[int, int]] | None
        As in `read_pictures`.

    Attributes
    ----------
    note : str
        How many pictures are left out and why; empty if none.

    Raises
    ------
    PictureError
        If none of the pictures can be used or has a box, or their labels are numbered from 1.
    """

    def __init__(
        self,
        data: DataSpec,
        *,
        image_size: int,
        batch_size: int = 16,
        device: str = "cpu",
        cache_bytes: int = _CACHE_BYTES,
        shape_of: Callable[[Path], tuple[int, int]] | None = None,
    ) -> None:
        pictures = read_pictures(data.val, data.numbers, data.keypoints, shape_of=shape_of)
        pictures.require_usable("holdout pictures")
        self.note = pictures.note
        clips = dict(zip(data.val, data.val_clips, strict=False))
        self._clips = [clips[picture.path] for picture in pictures] if clips else None
        settings = {"mode": "val", "imgsz": image_size, "batch": batch_size, "plots": False}
        self._dataset = PictureDataset(pictures, data.names, settings=settings, augment=False)
        self._cached = len(pictures) * 3 * image_size**2 <= cache_bytes
        self._device = torch.device(device)

    @cached_property
    def _scorer(self) -> _Scorer:
        # Made when it is needed: it imports torchvision, which takes seconds.
        return _Scorer(self._dataset, self._device, cached=self._cached)

    def __len__(self) -> int:
        """Return the number of pictures, in the latest call if there was one."""
        return self._scorer.count

    def __call__(self, model: nn.Module) -> dict[str, float]:
        """Return mAP50, mAP50-95, precision and recall of the module, each from 0 to 1.

        Precision and recall are those at the confidence with the best F1. The module isn't changed.
        """
        scores = self._scorer.score(model)
        return {
            key.removeprefix("metrics/").removesuffix("(B)"): float(value)
            for key, value in scores.items()
            if key.startswith("metrics/")
        }

    def plot(self, model: nn.Module, folder: Path) -> list[Path]:
        """Score the module and draw Ultralytics' curves and confusion matrices into a folder.

        Returns
        -------
        list[Path]
            PR, F1, P and R curves, and the confusion matrix in numbers and normalized.
        """
        self._scorer.score(model, plots=folder)
        return sorted(folder.glob("*.png"))

    @property
    def matches(self) -> Matches:
        """Detections of the latest call in each picture, and the true boxes."""
        stats, names = self._scorer.stats, self._scorer.metrics.names
        detected = [len(confs) for confs in stats["conf"]]
        true = [len(numbers) for numbers in stats["target_cls"]]
        return Matches(
            num_pictures=len(true),
            picture=np.repeat(np.arange(len(detected)), detected),
            category=np.concatenate(stats["pred_cls"]).astype(int),
            conf=np.concatenate(stats["conf"]),
            right=np.concatenate(stats["tp"]),
            true_picture=np.repeat(np.arange(len(true)), true),
            true_category=np.concatenate(stats["target_cls"]).astype(int),
            names=[str(names[number]) for number in range(len(names))],
            groups=self._clips,
        )

    def per_class(self, metric: str = "mAP50") -> dict[str, float]:
        """Return one of the scores by class name in the latest call.

        Classes without true boxes are left out. Empty for an unknown metric.
        """
        metrics = self._scorer.metrics
        box = metrics.box
        scores = {"mAP50": box.ap50, "mAP50-95": box.ap, "precision": box.p, "recall": box.r}
        return {
            str(metrics.names[int(number)]): float(score)
            for number, score in zip(metrics.ap_class_index, scores.get(metric, ()), strict=False)
        }

    def table(self) -> list[dict[str, Any]]:
        """Return Ultralytics' row for each class with true boxes, of the latest call.

        Returns
        -------
        list[dict[str, Any]]
            ``class``, ``images`` and ``instances`` (boxes) that have it, ``precision``,
            ``recall``, ``F1``, ``mAP50`` and ``mAP50-95``, each from 0 to 1.
        """
        rows = self._scorer.metrics.summary()
        return [
            {
                ours: row[theirs] if ours == "class" else row[theirs].item()
                for theirs, ours in _COLUMNS.items()
            }
            for row in rows
        ]


class _Scorer(DetectionValidator):  # type: ignore[misc]  # Ultralytics is untyped to mypy
    """The parts of Ultralytics' validator that compute a score."""

    def __init__(self, dataset: PictureDataset, device: torch.device, *, cached: bool) -> None:
        with tempfile.TemporaryDirectory(prefix="fl-app-") as folder:  # created, never used
            super().__init__(dataset.loader(device), Path(folder), dataset.settings)
        self.data, self.training, self.device = {**dataset.data, "val": ""}, False, device
        # As in YOLO.val. Not in training: channels last is up to 14 % faster there, but gradients
        # are 4e-4 instead of 3e-5 away from those in double precision, and two epochs of AdamW end
        # 2 % away from the weights of Ultralytics' own trainer.
        x86 = platform.machine() in {"AMD64", "x86_64"}
        self._layout = (
            torch.channels_last if device.type == "cpu" and x86 else torch.contiguous_format
        )
        self._cached = cached
        self._loaded: list[dict[str, Any]] = []
        self._true: dict[str, dict[str, Any]] = {}
        self.count = len(dataset)

    def score(self, model: nn.Module, *, plots: Path | None = None) -> dict[str, Any]:
        self.args.plots = plots is not None
        if plots is not None:
            self.save_dir = plots
        # A copy, because inference tensors that remain in the head break later training; fused and
        # in the layout of `YOLO.val`, so that the scores are the same: 127 pictures of 320 pixels
        # take 3.2 s instead of 4.2 (benchmarks/client_round.py).
        network: Any = copy.deepcopy(model).to(self.device).float().eval()
        network.names = self.data["names"]
        network = network.fuse(verbose=False).to(memory_format=self._layout)
        with torch.inference_mode():
            self.init_metrics(network)
            scored = list[str]()
            for raw in self._batches():
                batch = self.preprocess(dict(raw))
                batch["img"] = batch["img"].contiguous(memory_format=self._layout)
                self.update_metrics(self.postprocess(network(batch["img"])), batch)
                scored += batch["im_file"]
        self.count = len(scored)
        if not scored:
            raise PictureError("none of the holdout pictures can be read any more")
        # A list of arrays for each picture; Ultralytics empties its own.
        # A picture that can't be read any more keeps its place, with none, for paired tests.
        place = {name: number for number, name in enumerate(scored)}
        places = [place.get(name) for name in self.dataloader.dataset.im_files]
        self.stats = {
            name: [arrays[0][:0] if number is None else arrays[number] for number in places]
            for name, arrays in self.metrics.stats.items()
        }
        scores = dict(self.get_stats())
        self.finalize_metrics()
        return scores

    def _batches(self) -> Iterable[dict[str, Any]]:
        """Return the pictures as uint8 tensors, decoded once if they are cached."""
        if self._cached:
            self._loaded = self._loaded or list(self.dataloader)
        return (batch for batch in self._loaded or self.dataloader if batch)

    def _prepare_batch(self, si: int, batch: dict[str, Any]) -> dict[str, Any]:
        """Return the true boxes of a picture, which are the same in each call."""
        name = batch["im_file"][si]
        if name not in self._true:
            self._true[name] = super()._prepare_batch(si, batch)
        return self._true[name]

    def postprocess(self, preds: Any) -> list[dict[str, torch.Tensor]]:
        pictures = non_max_suppression(
            preds,
            self.args.conf,
            self.args.iou,
            multi_label=True,
            max_det=self.args.max_det,
            max_time_img=float("inf"),
            end2end=self.end2end,
        )
        return [
            {"bboxes": rows[:, :4], "conf": rows[:, 4], "cls": rows[:, 5], "extra": rows[:, 6:]}
            for rows in pictures
        ]
