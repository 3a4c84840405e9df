# SPDX-License-Identifier: AGPL-3.0-or-later
"""Ultralytics' data set over pictures whose labels are already read.

Ultralytics' own scan writes a cache beside the user's labels, which clients that share a folder
overwrite, and rewrites JPEG files; this data set writes no file.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from fl_models.pictures import Picture
from fl_models.ultralytics_names import Format, YOLODataset

_CACHE_BYTES = 128 << 20  # of decoded, scaled pictures


class _AsIs(Format):  # type: ignore[misc]  # Ultralytics is untyped to mypy
    """Pictures for evaluation, always in RGB order.

    For each picture Ultralytics draws from Python's global generator whether it stays in BGR order.
    That is an augmentation, and the state of the generator belongs to the user.
    """

    def _format_img(self, img: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(img.transpose(2, 0, 1)[::-1]))


class PictureDataset(YOLODataset):  # type: ignore[misc]  # Ultralytics is untyped to mypy
    """Pictures and boxes as Ultralytics' loaders expect them.

    Parameters
    ----------
    pictures : Sequence[Picture]
        The pictures of the data set, in this order.
    names : Sequence[str]
        Class names by class number.
    settings : Any
        Ultralytics' settings (the result of `get_cfg`): image size and augmentation.
    augment : bool
        True for training.
    """

    def __init__(
        self, pictures: Sequence[Picture], names: Sequence[str], *, settings: Any, augment: bool
    ) -> None:
        self._pictures, self.settings = pictures, settings
        if not augment:
            self.format_class = _AsIs
        super().__init__(
            img_path="",
            data={"names": dict(enumerate(names)), "nc": len(names), "channels": 3},
            task="detect",
            imgsz=settings.imgsz,
            batch_size=settings.batch,
            augment=augment,
            hyp=settings,
            rect=False,
            pad=0.0 if augment else 0.5,
        )
        # Ultralytics caches the latest few for mosaics; here later epochs and rounds use the cache.
        self.max_buffer_length = 1 + _CACHE_BYTES // (3 * settings.imgsz**2)

    def get_img_files(self, img_path: str | list[str]) -> list[str]:
        """Return the paths of the pictures; `img_path` is ignored."""
        return [str(picture.path) for picture in self._pictures]

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
