# SPDX-License-Identifier: AGPL-3.0-or-later
"""Ultralytics' data set over pictures whose labels are already read.

Ultralytics' own scan writes a cache beside the user's labels, which clients that share a folder
overwrite, and rewrites JPEG files. This data set writes decoded pictures to a folder of its own, if
it is given one.
"""

from __future__ import annotations

import logging
import math
import shutil
import sys
from collections.abc import Sequence
from copy import copy
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from ultralytics.cfg import get_cfg
from ultralytics.data import YOLODataset, build_dataloader
from ultralytics.data.augment import Format

from fl_models.decoded import NOWHERE, decoded_files, remove_outdated
from fl_models.pictures import Picture, PictureError

logger = logging.getLogger(__name__)

_CACHE_BYTES = 128 << 20  # of decoded, scaled pictures
_SHARE_OF_DISK = 0.9  # of what is free


class _AsIs(Format):  # type: ignore[misc]  # Ultralytics is untyped to mypy
    """Pictures for evaluation, always in RGB order.

    For each picture Ultralytics draws from Python's global generator whether it stays in BGR order.
    That is an augmentation, and the state of the generator belongs to the user.
    """

    def _format_img(self, img: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(img.transpose(2, 0, 1)[::-1]))


class PictureDataset(YOLODataset):  # type: ignore[misc]  # Ultralytics is untyped to mypy
    """Pictures and boxes as Ultralytics' loaders expect them.

    A picture that can no longer be read is skipped with a warning: its successor takes its place in
    training, and in evaluation it is missing from its batch, which is an empty dictionary if no
    picture remains.

    Parameters
    ----------
    pictures : Sequence[Picture]
        The pictures of the data set, in this order.
    names : Sequence[str]
        Class names by class number.
    settings : Any
        Those of Ultralytics' settings that differ from its defaults, such as image size, batch size
        and augmentation; all of them are in the attribute of this name.
    augment : bool
        True for training.
    workers : int
        Processes of a loader, and threads that fill the cache; 0: the caller's own.
    cache : "auto" | "none" | "ram" | "disk"
        Decoded pictures to cache: ``auto`` (scaled, up to 128 MiB in memory), ``none``, ``ram``
        (scaled, all) or ``disk`` (as they are, all). Those that do not fit are decoded each time,
        with a warning for the last two.
    cache_folder : Path | None
        Where ``disk`` writes.
    """

    def __init__(
        self,
        pictures: Sequence[Picture],
        names: Sequence[str],
        *,
        settings: Any,
        augment: bool,
        workers: int = 0,
        cache: str = "none",
        cache_folder: Path | None = None,
    ) -> None:
        self._pictures, self.settings = pictures, get_cfg(overrides=settings)
        self._unreadable = set[str]()
        if not augment:
            self.format_class = _AsIs
        super().__init__(
            img_path="",
            data={"names": dict(enumerate(names)), "nc": len(names), "channels": 3},
            imgsz=self.settings.imgsz,
            batch_size=self.settings.batch,
            augment=augment,
            hyp=self.settings,
            # Ultralytics' validation pads each batch to its own shape, so that a score would depend
            # on the batch size.
            rect=False,
            pad=0.0 if augment else 0.5,
        )
        # Ultralytics reads any .npy beside a picture, and deletes it if it is damaged.
        self.npy_files = [NOWHERE] * self.ni
        self._workers, self._decoded = workers, dict[int, Any]()
        if cache == "disk" and cache_folder is not None:
            self._fill_disk(cache_folder)
        elif cache in {"auto", "ram"}:
            self._fill_memory(everything=cache == "ram")

    def loader(self, device: torch.device) -> Any:
        """Return Ultralytics' loader of batches; it shuffles the pictures for training.

        Its processes end with its `close`.
        """
        loader = build_dataloader(
            self, self.batch_size, workers=self._workers, shuffle=self.augment, device=device
        )
        if loader.num_workers and sys.platform == "linux":
            # Python 3.14 would copy the cached pictures to each process.
            loader.multiprocessing_context = "fork"
        return loader

    def _fill_memory(self, *, everything: bool) -> None:
        """Decode the first pictures, as many as fit, before processes are forked that use them."""
        sizes = np.cumsum([_scaled_bytes(picture.shape, self.imgsz) for picture in self._pictures])
        limit = psutil.virtual_memory().available // 2 if everything else _CACHE_BYTES
        count = int(np.searchsorted(sizes, limit, side="right"))
        if everything and count < self.ni:
            logger.warning(
                "cache='ram' needs %.1f GB for %d pictures, and half of the free memory is %.1f "
                "GB: %d are cached",
                sizes[-1] / 1e9,
                self.ni,
                limit / 1e9,
                count,
            )

        def decode(number: int) -> tuple[int, Any]:
            try:
                return number, super(PictureDataset, self).load_image(number)
            except Exception:  # noqa: BLE001 - reported where the picture is used
                return number, None

        with ThreadPool(max(1, self._workers)) as pool:
            found = pool.imap_unordered(decode, range(count))
            self._decoded = {number: loaded for number, loaded in found if loaded is not None}
        self.open_mosaic()

    def _fill_disk(self, folder: Path) -> None:
        """Write decoded pictures to files, which Ultralytics reads in their place."""
        remove_outdated(folder)
        files = decoded_files([picture.path for picture in self._pictures], folder)
        missing = [n for n, file in enumerate(files) if file != NOWHERE and not file.exists()]
        needed = sum(3 * math.prod(self._pictures[number].shape) for number in missing)
        free = shutil.disk_usage(folder).free if missing else 0
        if needed > _SHARE_OF_DISK * free:
            logger.warning(
                "cache='disk' needs %.1f GB for %d pictures below %s, where %.1f GB are free: they "
                "are not cached",
                needed / 1e9,
                len(missing),
                folder,
                free / 1e9,
            )
            return
        self.npy_files, self.cache = files, "disk"
        with ThreadPool(max(1, self._workers)) as pool:
            pool.map(self.cache_images_to_disk, missing)

    def open_mosaic(self) -> None:
        """Start augmentation as it was before the first picture; the decoded pictures stay."""
        self.transforms = self.build_transforms(hyp=copy(self.settings))
        self.ims = [None] * self.ni
        # The pictures loaded last, from which Ultralytics takes a mosaic's other three.
        self.buffer: list[int] = []

    def load_image(self, i: int, *args: Any, **kwargs: Any) -> Any:
        """Return a picture, scaled, and its sizes before and after; decode it if need be."""
        if i not in self._decoded or self.ims[i] is not None:
            return super().load_image(i, *args, **kwargs)
        # What Ultralytics does with a picture that it has just decoded, so that a mosaic does not
        # depend on which ones the round before has left.
        self.ims[i], self.im_hw0[i], self.im_hw[i] = self._decoded[i]
        self.buffer.append(i)
        if 1 < len(self.buffer) >= self.max_buffer_length:
            self.ims[self.buffer.pop(0)] = None
        return self._decoded[i]

    def get_img_files(self, img_path: str | list[str]) -> list[str]:
        """Return the paths of the pictures; `img_path` is ignored."""
        return [str(picture.path) for picture in self._pictures]

    def __getitem__(self, index: int) -> dict[str, Any] | None:
        """Return a transformed picture; in evaluation None if it can't be read any more."""
        try:
            return dict(super().__getitem__(index))
        except PictureError:
            if self.augment:
                raise
            return None

    def get_image_and_label(self, index: int) -> dict[str, Any]:
        """Return a picture and its boxes; in training the next one that can be read.

        Raises
        ------
        PictureError
            It can't be read; in training, none can.
        """
        indices = [(index + step) % self.ni for step in range(self.ni if self.augment else 1)]
        for number in indices:
            try:
                return dict(super().get_image_and_label(number))
            except Exception as error:  # noqa: BLE001 - what is damaged raises many types
                path = self.im_files[number]
                if path not in self._unreadable:
                    logger.warning("skipped a picture that can't be read any more: %s", error)
                    self._unreadable.add(path)
        raise PictureError(f"none of {len(indices)} pictures can be read any more: {path}")

    @staticmethod
    def collate_fn(batch: list[dict[str, Any] | None]) -> dict[str, Any]:
        """Collate the pictures of a batch that could be read."""
        readable = [item for item in batch if item is not None]
        return dict(YOLODataset.collate_fn(readable)) if readable else {}

    def get_labels(self) -> list[dict[str, Any]]:
        """Return the boxes in Ultralytics' own record format."""
        return [
            {
                "im_file": str(picture.path),
                "shape": picture.shape,
                "cls": np.array(picture.boxes[:, :1]),
                "bboxes": np.array(picture.boxes[:, 1:]),
                "segments": [],
                "keypoints": None,
                "normalized": True,
                "bbox_format": "xywh",
            }
            for picture in self._pictures
        ]


def _scaled_bytes(shape: tuple[int, int], side: int) -> int:
    """Return the bytes of a picture after Ultralytics has scaled its longest side."""
    scale = side / max(shape)
    return 3 * math.prod(min(math.ceil(length * scale), side) for length in shape)
