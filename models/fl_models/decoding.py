# SPDX-License-Identifier: AGPL-3.0-or-later
"""Which pictures can be used: each is decoded as in training, since a header does not tell."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image
from ultralytics.data.utils import exif_size
from ultralytics.utils.patches import imread

from fl_models.pictures import (
    Picture,
    PictureError,
    Pictures,
    checked_boxes,
    label_file,
    label_rows,
    shown,
)

logger = logging.getLogger(__name__)

_MIN_SIDE = 10  # pixels, as in Ultralytics
_DECODERS = {".heic": "pi-heif", ".heif": "pi-heif"}
"""Packages that Ultralytics decodes with, and does not require."""


class DecoderMissingError(PictureError):
    """A picture's format has no decoder on this machine."""


def read_pictures(
    paths: Iterable[Path],
    numbers: Sequence[int],
    keypoints: int = 0,
    *,
    shape_of: Callable[[Path], tuple[int, int]] | None = None,
) -> Pictures:
    """Read labels and decode pictures once; unusable ones are left out, one warning line each.

    Pictures of a format without a decoder are counted in one warning for each format. A picture
    without a label file counts as background, as in Ultralytics; their number is logged in one
    warning, with the place of the first.

    Parameters
    ----------
    paths : Iterable[Path]
        The pictures.
    numbers : Sequence[int]
        `DataSpec.numbers` of their data set.
    keypoints : int
        `DataSpec.keypoints` of their data set.
    shape_of : Callable[[Path], tuple[int, int]] | None
        Returns what `picture_shape` returned while a picture was the same; None: that itself.
    """
    shape_of = shape_of or picture_shape
    usable, unlabelled, classes = list[Picture](), list[Path](), set[int]()
    left_out, no_decoder, labelled = Counter[str](), Counter[str](), 0
    for path in paths:
        try:
            shape, rows = shape_of(path), label_rows(path, keypoints)
            # Before the check, since what it leaves out tells how the labels are numbered.
            classes.update(rows[np.isfinite(rows[:, 0]), 0].astype(int).tolist())
            labelled += label_file(path).is_file()
            picture = Picture(path, shape, checked_boxes(path, rows, numbers))
        except DecoderMissingError as error:
            no_decoder[str(error)] += 1
        except PictureError as error:
            logger.warning("skipped a picture: %s", error)
            left_out[error.reason] += 1
        else:
            usable.append(picture)
            unlabelled += [] if label_file(path).is_file() else [label_file(path)]
    for reason, count in no_decoder.items():
        logger.warning("skipped %d pictures: %s", count, reason)
    if unlabelled:
        logger.warning(
            "%d of %d pictures have no label file and count as background; the first would be %s",
            len(unlabelled),
            len(usable),
            shown(unlabelled[0]),
        )
    return Pictures(
        tuple(usable),
        dict(left_out + no_decoder),
        num_classes=len(numbers),
        numbered=(min(classes), max(classes)) if classes else None,
        unlabelled=tuple(unlabelled),
        only_backgrounds=bool(labelled) and len(usable) == len(unlabelled),
    )


def picture_shape(path: Path) -> tuple[int, int]:
    """Return height and width in pixels of the upright picture, after decoding it.

    Raises
    ------
    PictureError
        It can't be decoded, or not to 8 bits a colour, or it is smaller than 10 pixels.
    DecoderMissingError
        No decoder for its format is installed.
    """
    reason = "a picture that can't be decoded"
    try:
        with Image.open(path) as image:
            width, height = exif_size(image)
            # The whole file of a JPEG is read for an eighth of the pixels too, in less time.
            small = image.format in {"JPEG", "MPO"}
        pixels = imread(path, cv2.IMREAD_REDUCED_COLOR_8 if small else cv2.IMREAD_COLOR)
    except ImportError as error:  # Ultralytics makes Pillow search for a HEIF plugin
        suffix = path.suffix.lower()
        if suffix in _DECODERS:
            raise DecoderMissingError(
                f"no decoder for {suffix} is installed, install {_DECODERS[suffix]}"
            ) from error
        raise PictureError(f"{path} can't be decoded: its format is unknown", reason) from error
    except Exception as error:
        raise PictureError(f"{path} can't be decoded: {error}", reason) from error
    if pixels is None:
        raise PictureError(
            f"{path} can't be decoded: it is damaged, or its kind of {path.suffix} is not "
            "supported",
            reason,
        )
    if pixels.dtype != np.uint8:
        fault = f"{pixels.dtype} pixels, expected integers of 8 or 16 bits"
        raise PictureError(f"{path} has {fault}", fault)
    if min(width, height) < _MIN_SIDE:
        fault = f"{width}x{height} pixels, expected at least {_MIN_SIDE}"
        raise PictureError(f"{path} has {fault}", fault)
    return height, width
