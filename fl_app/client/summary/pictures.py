# SPDX-License-Identifier: Apache-2.0
"""The data summary of the shipped app: statistics of a node's pictures and labels as rows.

Eight statistics of the pixels detect blur, darkness, haze, noise and colour casts about as well as
tests on embeddings, in a few milliseconds a picture.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from flwr.app import Context

from fl_app.client.mods.data_summary import NODE_KEY, KeyedRows, data_summary_mod, node_folder
from fl_app.config import ClientConfig
from fl_app.flower_internals import Mod
from fl_models.classes import IGNORED
from fl_models.pictures import DataSpec, label_file, main_class, usable_boxes
from fl_registry import app_home

SIZE = (192, 144)
"""Width and height in pixels to which pictures are scaled before statistics are taken."""
EDGE = 20.0
"""Least second difference of brightness, from 0 to 255, at which a pixel counts as an edge."""
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


def picture_summaries(config: ClientConfig, spec: DataSpec) -> Mod:
    """Return the mod that adds counts of this node's new pictures to a train reply.

    A picture is a row: eight statistics of the pixels, and three of the labels.
    """
    paths = [*spec.train, *spec.val]

    def read(which: Sequence[int]) -> dict[str, np.ndarray]:
        some = [paths[index] for index in which]
        # Labels and not detections: a model that is trained detects other things each round, which
        # is no drift.
        boxes = [usable_boxes(path, spec.numbers, spec.keypoints) for path in some]
        return {**pixel_statistics(some), **box_statistics(boxes, spec.names)}

    rows = KeyedRows([file_key(path, label_file(path)) for path in paths], read)
    return data_summary_mod(
        lambda message, context: rows,
        folder=lambda context: _reference_folder(context, config, spec),
        epsilon=config.summary_epsilon or None,
    )


def _reference_folder(context: Context, config: ClientConfig, spec: DataSpec) -> Path:
    """Return the folder of this node's reference: one for each model, data set and partition.

    Where the labels mean other classes another reference begins: counts of the old one have other
    names.
    """
    names = [spec.names[number] if number != IGNORED else "" for number in spec.numbers]
    if NODE_KEY in context.node_config:
        key = hashlib.sha256(repr(names).encode()).hexdigest()[:16]
        return node_folder(context) / key
    share = (config.data, config.partitioning, config.alpha, config.seed)
    node = (config.partition_id, config.num_partitions)
    about = repr((*share, *node, names, context.run_config.get("registered-model-name")))
    key = hashlib.sha256(about.encode()).hexdigest()[:16]
    return app_home(config.home) / "summaries" / key


def pixel_statistics(paths: Iterable[Path]) -> dict[str, np.ndarray]:
    """Return eight statistics of each picture; NaN for one that can't be read.

    Mean and standard deviation of the brightness, shares of red, green and blue, mean saturation,
    logarithm of the variance of the Laplacian, and the share of pixels with an edge.
    """
    rows = np.array([_statistics(path) for path in paths]).reshape(-1, len(PIXEL_STATISTICS))
    return dict(zip(PIXEL_STATISTICS, rows.T, strict=True))


def box_statistics(boxes: Sequence[np.ndarray], names: Sequence[str]) -> dict[str, np.ndarray]:
    """Return for each picture the number of boxes, their main class and their median size.

    Parameters
    ----------
    boxes : Sequence[np.ndarray]
        One array for each picture, shape (n, 5): class, centre x, centre y, width and height as
        fractions of the picture.
    names : Sequence[str]
        Class names by class number.
    """
    classes = [names[main_class(b)] if len(b) else None for b in boxes]
    sizes = [np.median(np.sqrt(b[:, 3] * b[:, 4])) if len(b) else np.nan for b in boxes]
    return {
        "boxes": np.array([len(b) for b in boxes], np.float64),
        "main class": np.array(classes, np.object_),
        "box size": np.array(sizes, np.float64),
    }


def file_key(*paths: Path) -> str:
    """Return a text that changes with the files, by name, size and time; none is read."""
    stats = [(path, path.stat()) for path in paths if path.is_file()]
    return "|".join(f"{path}:{stat.st_size}:{stat.st_mtime_ns}" for path, stat in stats)


def _scaled(path: Path) -> np.ndarray:
    """Return a picture as float32 RGB of `SIZE`; 8 and 16 bits from 0 to 255, as in training."""
    from PIL import Image

    with Image.open(path) as image:
        if image.mode not in {"I", "F"} and not image.mode.startswith("I;16"):
            image.draft("RGB", SIZE)  # a large JPEG is decoded small
            return np.asarray(image.convert("RGB").resize(SIZE), np.float32)
        # Pillow would cut these off at 255.
        levels = np.asarray(image, np.float32)
        if image.mode != "F":
            levels = levels / np.float32(257)
        elif levels.min() >= 0 and levels.max() <= 1:
            levels = levels * np.float32(255)
        grey = Image.fromarray(levels).resize(SIZE)
        return np.repeat(np.asarray(grey)[..., None], 3, axis=2)


def _statistics(path: Path) -> Sequence[float]:
    try:
        pixels = _scaled(path)
    except Exception:  # noqa: BLE001 - a damaged file raises a dozen types
        return [np.nan] * len(PIXEL_STATISTICS)
    if not np.isfinite(pixels).all():
        return [np.nan] * len(PIXEL_STATISTICS)
    grey, total = pixels.mean(axis=2), pixels.sum(dtype=np.float64) + 1e-9
    greatest, least = pixels.max(axis=2), pixels.min(axis=2)
    laplacian = (
        grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:] - 4 * grey[1:-1, 1:-1]
    )
    return [
        grey.mean(),
        grey.std(),
        *(pixels.sum(axis=(0, 1), dtype=np.float64) / total),
        ((greatest - least) / (greatest + 1)).mean(),
        np.log1p(laplacian.var()),
        (np.abs(laplacian) > EDGE).mean(),
    ]
