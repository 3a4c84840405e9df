# SPDX-License-Identifier: Apache-2.0
"""Reads pictures and their label files in Ultralytics' layout; nothing on disk is changed."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

logger = logging.getLogger(__name__)

SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
_MIN_SIDE = 10
_JPEG_END = b"\xff\xd9"


class PictureError(ValueError):
    """A picture or its label file can't be used; the text names the file and the reason."""


@dataclass(frozen=True, eq=False)
class Picture:
    """One readable picture with its true boxes.

    Parameters
    ----------
    path : Path
        The picture's file.
    shape : tuple[int, int]
        Height and width in pixels, as stored.
    boxes : np.ndarray
        float32, shape (n, 5): class, centre x, centre y, width, height; the last four as
        fractions of the picture. No rows for a background picture.
    """

    path: Path
    shape: tuple[int, int]
    boxes: np.ndarray


class LabelledData(Protocol):
    """The parts of a data set that an evaluation needs."""

    @property
    def val(self) -> Sequence[Path]:
        """Paths of the pictures to evaluate on."""

    @property
    def names(self) -> Sequence[str]:
        """Class names, by class number."""


def label_file(picture: Path) -> Path:
    """Return the label file of a picture: the last folder `images` becomes `labels`."""
    head, folder, tail = str(picture).rpartition(f"{os.sep}images{os.sep}")
    path = f"{head}{os.sep}labels{os.sep}{tail}" if folder else tail
    return Path(path).with_suffix(".txt")


def read_pictures(paths: Iterable[Path], num_classes: int) -> list[Picture]:
    """Read labels and check files; unusable pictures are left out, one warning line each.

    A picture without a label file counts as background, as in Ultralytics; their number is logged
    in one warning.
    """
    pictures, unlabelled = [], 0
    for path in paths:
        try:
            picture = Picture(path, _checked_shape(path), read_boxes(path, num_classes))
        except PictureError as error:
            logger.warning("skipped a picture: %s", error)
            continue
        unlabelled += not label_file(path).is_file()
        pictures.append(picture)
    if unlabelled:
        logger.warning(
            "%d of %d pictures have no label file and count as background",
            unlabelled,
            len(pictures),
        )
    return pictures


def read_boxes(picture: Path, num_classes: int) -> np.ndarray:
    """Return the true boxes of a picture, shape (n, 5), without repeated rows.

    Polygon rows (class, x1, y1, x2, y2, ...) become the boxes around them.

    Raises
    ------
    PictureError
        A row is no box or polygon in fractions of the picture, or has an unknown class.
    """
    path = label_file(picture)
    if not path.is_file():
        return np.zeros((0, 5), np.float32)
    try:
        rows = [row.split() for row in path.read_text("utf-8-sig").splitlines() if row.strip()]
        boxes = np.array([_to_box(row) for row in rows], np.float32).reshape(-1, 5)
    except (OSError, ValueError) as error:
        raise PictureError(f"{picture}: label file {path} can't be read: {error}") from error
    fault = _fault(boxes, num_classes)
    if fault:
        raise PictureError(f"{picture}: label file {path} has {fault}")
    _, first = np.unique(boxes, axis=0, return_index=True)
    return boxes[np.sort(first)]


def usable_boxes(picture: Path, num_classes: int) -> np.ndarray:
    """Return the boxes of ``read_boxes``, or none if they can't be used."""
    try:
        return read_boxes(picture, num_classes)
    except PictureError:
        return np.zeros((0, 5), np.float32)


def _to_box(row: Sequence[str]) -> list[float]:
    values = [float(value) for value in row]
    if len(values) == 5:
        return values
    if len(values) < 7 or len(values) % 2 == 0:
        raise ValueError(f"a row has {len(values)} numbers, expected 5 (class, x, y, w, h)")
    xs, ys = values[1::2], values[2::2]
    left, right, top, bottom = min(xs), max(xs), min(ys), max(ys)
    return [values[0], (left + right) / 2, (top + bottom) / 2, right - left, bottom - top]


def _fault(boxes: np.ndarray, num_classes: int) -> str:
    classes, places = boxes[:, 0], boxes[:, 1:]
    if not np.isfinite(boxes).all() or (classes % 1 != 0).any():
        return "a class or coordinate that is not a valid number"
    if (classes < 0).any() or (classes >= num_classes).any():
        worst = int(classes.max()) if (classes >= num_classes).any() else int(classes.min())
        return f"class {worst}, expected 0 to {num_classes - 1}"
    # One hundredth of tolerance for rounding in label tools, the same as Ultralytics has.
    if (places > 1.01).any() or (places[:, :2] < -0.01).any() or (places[:, 2:] < 0).any():
        return "coordinates outside the picture, expected fractions from 0 to 1"
    return ""


def _checked_shape(path: Path) -> tuple[int, int]:
    from PIL import Image

    try:
        with Image.open(path) as image:
            width, height = image.size
            image.verify()
        if path.suffix.lower() in {".jpg", ".jpeg"} and not _ends_well(path):
            with Image.open(path) as image:
                image.load()  # fails for a cut-off file, not for extra bytes at the end
    except ImportError as error:  # Ultralytics makes Pillow search for a HEIF plugin
        raise PictureError(f"{path} can't be decoded: its format is unknown") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise PictureError(f"{path} can't be decoded: {error}") from error
    if min(width, height) < _MIN_SIDE:
        raise PictureError(f"{path} has {width}x{height} pixels, expected at least {_MIN_SIDE}")
    return height, width


def _ends_well(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-2, os.SEEK_END)
        return file.read() == _JPEG_END
