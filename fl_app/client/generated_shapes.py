# SPDX-License-Identifier: Apache-2.0
"""A generated detection data set of seven coloured shapes, so that the app runs without user data.

It is generated once, with NumPy and Pillow, without a network.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np

from fl_registry.files.atomic import new_folder

NAMES = ("circle", "square", "triangle", "star", "cross", "ring", "diamond")
VERSION = 1
TRAIN_ARGS = "{optimizer: AdamW, lr0: 0.002, momentum: 0.9, mosaic: 0, scale: 0.2}"
"""Training arguments that suit it: eight rounds of two epochs are few for first weights."""

Point = tuple[float, float]

_HUES = ((60, 60, 230), (60, 190, 60), (230, 80, 60), (230, 190, 40), (190, 60, 220))
_COLOURS = (*_HUES, (50, 210, 220), (235, 235, 235))
_COLOUR_SPREAD = 22.0
_BRIGHTEST_GROUND = 220
_NOISE = 12.0
_RADII = (0.10, 0.21)  # as fractions of the picture
_MOST_SHAPES = 3
_FINER = 4  # shapes are drawn this much larger and scaled down, for smooth edges


def shapes_data(
    home: Path, *, train: int = 512, val: int = 128, image_size: int = 96, seed: int = 0
) -> Path:
    """Return the `data.yaml` of the generated set below `home`; generate it if it does not exist.

    Equal arguments give equal pictures on every machine. Several processes may call this at once:
    each generates into a folder of its own, and the first to finish renames its folder.

    Parameters
    ----------
    home : Path
        The app's folder; the set goes to `data/` in it.
    train, val : int
        Numbers of pictures.
    image_size : int
        Side of a picture in pixels.
    seed : int
        Seed of the pictures.

    Raises
    ------
    OSError
        The files cannot be written; none of them remain.
    """
    name = f"shapes7-v{VERSION}-{train}-{val}-{image_size}px-seed{seed}"
    folder = Path(home).absolute() / "data" / name
    if not folder.is_dir():
        with new_folder(folder) as draft:
            for number, (split, count) in enumerate({"train": train, "val": val}.items()):
                rng = np.random.default_rng([seed, number])
                _draw_split(draft, split, count, image_size=image_size, rng=rng)
            names = "".join(f"  {number}: {name}\n" for number, name in enumerate(NAMES))
            text = f"train: images/train\nval: images/val\nnc: {len(NAMES)}\nnames:\n{names}"
            (draft / "data.yaml").write_text(text, encoding="utf-8")
    return folder / "data.yaml"


def _draw_split(
    folder: Path, split: str, count: int, *, image_size: int, rng: np.random.Generator
) -> None:
    from PIL import Image

    images, labels = folder / "images" / split, folder / "labels" / split
    images.mkdir(parents=True)
    labels.mkdir(parents=True)
    for number in range(count):
        pixels, rows = _draw_picture(image_size, rng)
        Image.fromarray(pixels).save(images / f"{number:05d}.jpg", quality=95)
        (labels / f"{number:05d}.txt").write_text("".join(rows), encoding="utf-8")


def _draw_picture(size: int, rng: np.random.Generator) -> tuple[np.ndarray, list[str]]:
    """Return the pixels of a picture and the rows of its label file."""
    from PIL import Image, ImageDraw

    ground = tuple(int(value) for value in rng.integers(0, _BRIGHTEST_GROUND, 3))
    image = Image.new("RGB", (size * _FINER, size * _FINER), ground)
    draw = ImageDraw.Draw(image)
    rows = []
    for x, y, radius in _places(size, rng):
        kind = int(rng.integers(len(NAMES)))
        colour = np.clip(rng.normal(_COLOURS[kind], _COLOUR_SPREAD), 0, 255).astype(int)
        points = [(x + radius * px, y + radius * py) for px, py in _OUTLINES[kind]()]
        draw.polygon([(px * _FINER, py * _FINER) for px, py in points], fill=tuple(colour))
        low, high = np.min(points, axis=0), np.max(points, axis=0)
        box = [*((low + high) / 2 / size), *((high - low) / size)]
        rows.append(" ".join([str(kind), *(f"{value:.6f}" for value in box)]) + "\n")
    small = np.asarray(image.resize((size, size), Image.Resampling.BOX), np.float64)
    noisy = small + rng.normal(0, _NOISE, small.shape)
    return np.clip(np.rint(noisy), 0, 255).astype(np.uint8), rows


def _places(size: int, rng: np.random.Generator) -> list[tuple[float, float, float]]:
    wanted, places = int(rng.integers(1, _MOST_SHAPES + 1)), list[tuple[float, float, float]]()
    for _ in range(20 * wanted):
        radius = rng.uniform(*_RADII) * size
        x, y = rng.uniform(radius + 1, size - radius - 1, 2)
        if all(max(abs(x - px), abs(y - py)) > radius + pr for px, py, pr in places):
            places.append((float(x), float(y), float(radius)))
        if len(places) == wanted:
            break
    return places


def _corners(count: int, *, inner: float = 1.0) -> list[Point]:
    angles = [2 * math.pi * i / count - math.pi / 2 for i in range(count)]
    radii = [inner if i % 2 else 1.0 for i in range(count)]
    return [(r * math.cos(a), r * math.sin(a)) for a, r in zip(angles, radii, strict=True)]


def _ring() -> list[Point]:
    outer = _corners(48)
    inner = [(0.62 * x, 0.62 * y) for x, y in [*outer, outer[0]]]
    return [*outer, outer[0], *reversed(inner)]


def _cross() -> list[Point]:
    t = 0.35
    quarter = [(-t, -1.0), (t, -1.0), (t, -t)]
    turns = [(1, 0, 0, 1), (0, -1, 1, 0), (-1, 0, 0, -1), (0, 1, -1, 0)]
    return [(a * x + b * y, c * x + d * y) for a, b, c, d in turns for x, y in quarter]


# Outlines in units of the radius around (0, 0), in the order of NAMES.
_OUTLINES: tuple[Callable[[], list[Point]], ...] = (
    lambda: _corners(48),
    lambda: [(-1.0, -1.0), (1.0, -1.0), (1.0, 1.0), (-1.0, 1.0)],
    lambda: _corners(3),
    lambda: _corners(10, inner=0.42),
    _cross,
    _ring,
    lambda: _corners(4),
)
