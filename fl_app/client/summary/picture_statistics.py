# SPDX-License-Identifier: Apache-2.0
"""Statistics of pictures and boxes as columns for the data summary.

Eight statistics of the pixels detect blur, darkness, haze, noise and colour casts about as well as
tests on embeddings, in a few milliseconds a picture.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

SIZE = (192, 144)
"""Width and height in pixels to which pictures are scaled before statistics are taken."""
EDGE = 20.0
"""Least second difference of brightness, from 0 to 255, at which a pixel counts as an edge."""
UNREADABLE = (OSError, SyntaxError, ValueError, ImportError)
"""Raised by Pillow on a damaged file; the last if Ultralytics made it search for a plugin."""
PIXEL_STATISTICS = (
    "brightness",
    "contrast",
    "red share",
    "green share",
    "blue share",
    "saturation",
    "sharpness",
    "edge share",
)


def pixel_statistics(paths: Iterable[Path]) -> dict[str, np.ndarray]:
    """Return eight statistics of each picture; NaN for one that can't be read.

    Mean and standard deviation of the brightness, shares of red, green and blue, mean saturation,
    logarithm of the variance of the Laplacian, and the share of pixels with an edge.
    """
    rows = np.array([_statistics(path) for path in paths]).reshape(-1, len(PIXEL_STATISTICS))
    return dict(zip(PIXEL_STATISTICS, rows.T, strict=True))


def box_statistics(
    boxes: Sequence[np.ndarray],
    names: Sequence[str],
    scores: Sequence[np.ndarray] | None = None,
) -> dict[str, np.ndarray]:
    """Return for each picture the number of boxes, their main class, size and confidence.

    The boxes are labels or a model's detections. Detections change with the model, so they are
    comparable only if the same model made all of them.

    Parameters
    ----------
    boxes : Sequence[np.ndarray]
        One array for each picture, shape (n, 5): class, centre x, centre y, width and height as
        fractions of the picture.
    names : Sequence[str]
        Class names by class number.
    scores : Sequence[np.ndarray] | None
        Confidences of a model's detections, shape (n,) for each picture.
    """
    classes = [_main_class(b[:, 0], names) if len(b) else None for b in boxes]
    columns: dict[str, np.ndarray] = {
        "boxes": np.array([len(b) for b in boxes], np.float64),
        "main class": np.array(classes, np.object_),
        "box size": np.array([_median(np.sqrt(b[:, 3] * b[:, 4])) for b in boxes]),
    }
    if scores is not None:
        columns["top score"] = np.array([s.max() if len(s) else np.nan for s in scores])
        columns["median score"] = np.array([_median(s) for s in scores])
    return columns


def file_key(*paths: Path) -> str:
    """Return a text that changes with the files, by name, size and time; none is read."""
    stats = [(path, path.stat()) for path in paths if path.is_file()]
    return "|".join(f"{path}:{stat.st_size}:{stat.st_mtime_ns}" for path, stat in stats)


def _statistics(path: Path) -> Sequence[float]:
    from PIL import Image

    try:
        with Image.open(path) as image:
            image.draft("RGB", SIZE)  # a large JPEG is decoded small
            pixels = np.asarray(image.convert("RGB").resize(SIZE), np.float32)
    except (*UNREADABLE, Image.DecompressionBombError):
        return [np.nan] * len(PIXEL_STATISTICS)
    grey, total = pixels.mean(axis=2), pixels.sum(dtype=np.float64) + 1e-9
    greatest, least = pixels.max(axis=2), pixels.min(axis=2)
    laplacian = (
        grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:] - 4 * grey[1:-1, 1:-1]
    )
    return [
        float(grey.mean()),
        float(grey.std()),
        *(float(pixels[..., channel].sum(dtype=np.float64) / total) for channel in range(3)),
        float(((greatest - least) / (greatest + 1)).mean()),
        float(np.log1p(laplacian.var())),
        float((np.abs(laplacian) > EDGE).mean()),
    ]


def _main_class(classes: np.ndarray, names: Sequence[str]) -> str:
    return names[int(np.bincount(classes.astype(int)).argmax())]


def _median(values: np.ndarray) -> float:
    return float(np.median(values)) if len(values) else float("nan")
