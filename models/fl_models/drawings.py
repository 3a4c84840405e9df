# SPDX-License-Identifier: AGPL-3.0-or-later
"""Pages of pictures with their boxes: what a model detects, and what it is trained on.

They are drawn by matplotlib, which brings its letters: Ultralytics' own pages download a font, and
have letters of ten pixels without it.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from matplotlib.patheffects import withStroke
from ultralytics.utils.ops import xywhn2xyxy
from ultralytics.utils.plotting import colors

from fl_models.dataset import PictureDataset
from fl_models.decoding import read_pictures
from fl_models.pictures import DataSpec, Picture, PictureError
from fl_models.yolo import YoloModel

_PICTURES = 8
_AUGMENTED = 24  # of which the last are drawn: a mosaic is made of the pictures before it
_COLUMNS = 4  # tiles in a row
_SIDE, _DPI, _POINTS = 4.0, 110, 7.0  # inches of a tile, pixels an inch, and size of the letters
_LETTER = (0.62, 1.5)  # width and height of a letter with its background, by the size of letters
_NAMED = 24  # classes that a legend names

Label = tuple[int, np.ndarray, tuple[str, ...]]
"""A class, a box (x1, y1, x2, y2) in pixels, and its texts: the first for which there is room."""
Tile = tuple[str, np.ndarray, list[Label]]
"""What a picture is called, its pixels (height, width, 3) in RGB order, and its labels."""


def draw_predictions(
    model: YoloModel,
    data: DataSpec,
    path: Path,
    *,
    title: str = "",
    conf: float = 0.25,
    imgsz: int | None = None,
) -> None:
    """Draw some holdout pictures, each with its true boxes and, beside, with what is detected.

    Parameters
    ----------
    model : YoloModel
        The model.
    data : DataSpec
        Some of its `val` pictures are drawn, evenly chosen.
    path : Path
        File to write; its ending (.png or .jpg) sets the format.
    title : str
        Which model it is.
    conf : float
        Boxes with less confidence are left out.
    imgsz : int | None
        As in `YoloModel.predict`.

    Raises
    ------
    PictureError
        None of the pictures can be used.
    """
    pictures = _some_of(data.val, data, _PICTURES)
    tiles = list[Tile]()
    for picture in pictures:
        result = model.predict(picture.path, conf=conf, imgsz=imgsz)[0]
        pixels = result.orig_img[..., ::-1]
        found = result.boxes.cpu().numpy()
        detected: list[Label] = [
            (int(number), box, (f"{data.names[int(number)]} {sure:.2f}", f"{sure:.2f}"))
            for number, sure, box in zip(found.cls, found.conf, found.xyxy, strict=True)
        ]
        name = picture.path.name
        tiles += [(f"{name}: labels", pixels, _true(picture, pixels, data.names))]
        tiles += [(f"{name}: detected", pixels, detected)]
    what = f"{len(pictures)} of {len(data.val)} holdout pictures, confidence from {conf:g}"
    _draw_page(tiles, data.names, path, title=f"{title}{', ' if title else ''}{what}")


def draw_training_batch(
    data: DataSpec, settings: dict[str, Any], path: Path, *, seed: int = 0, title: str = ""
) -> None:
    """Draw some training pictures as a round is trained on them, changed by augmentation.

    The random states of Python, NumPy and torch are afterwards as they were.

    Parameters
    ----------
    data : DataSpec
        Some of its `train` pictures are drawn, evenly chosen.
    settings : dict[str, Any]
        Ultralytics' settings of training, such as ``imgsz``, ``mosaic`` and ``fliplr``.
    path : Path
        File to write; its ending (.png or .jpg) sets the format.
    seed : int
        Seed of the augmentation.
    title : str
        Goes before what the page has.

    Raises
    ------
    PictureError
        None of the pictures can be used.
    """
    pictures = _some_of(data.train, data, _AUGMENTED)
    with _seeded(seed):
        dataset = PictureDataset(pictures, data.names, settings=settings, augment=True)
        items: list[Any] = [dataset[number] for number in range(len(pictures))][-_PICTURES:]
    tiles = list[Tile]()
    for item in items:
        pixels = item["img"].numpy().transpose(1, 2, 0)
        numbers, places = item["cls"].numpy().ravel().astype(int), item["bboxes"].numpy()
        boxes = _boxes(places, pixels)
        labels: list[Label] = [
            (n, box, (data.names[n],)) for n, box in zip(numbers, boxes, strict=True)
        ]
        tiles.append((Path(item["im_file"]).name, pixels, labels))
    what = f"{len(tiles)} training pictures as augmented in the first epoch"
    _draw_page(tiles, data.names, path, title=f"{title}{', ' if title else ''}{what}")


def _some_of(paths: Sequence[Path], data: DataSpec, count: int) -> Sequence[Picture]:
    chosen = paths[:: max(1, len(paths) // count)][:count]
    pictures: Sequence[Picture] = read_pictures(chosen, data.numbers, data.keypoints)
    if not pictures:
        raise PictureError(f"none of {len(chosen)} pictures can be drawn")
    return pictures


def _true(picture: Picture, pixels: np.ndarray, names: Sequence[str]) -> list[Label]:
    boxes = _boxes(picture.boxes[:, 1:], pixels)
    numbers = picture.boxes[:, 0].astype(int)
    return [(n, box, (names[n],)) for n, box in zip(numbers, boxes, strict=True)]


def _boxes(places: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """Return boxes in pixels, shape (n, 4), of fractions of a picture."""
    height, width = pixels.shape[:2]
    return np.asarray(xywhn2xyxy(places, w=width, h=height))


def _draw_page(
    tiles: Sequence[Tile],
    names: Sequence[str],
    path: Path,
    *,
    title: str,
) -> None:
    """Draw pictures with a name and labels below a title, and name the classes by colour."""
    columns = min(_COLUMNS, len(tiles))
    rows = -(-len(tiles) // columns)
    tallest = max(pixels.shape[0] / pixels.shape[1] for _, pixels, _ in tiles)
    size = (columns * _SIDE, rows * _SIDE * min(1.0, tallest) + 1.2)
    figure = Figure(figsize=size, dpi=_DPI, layout="constrained")
    figure.suptitle(_plain(title), fontsize=11)
    places = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in places:
        axes.axis("off")
    for axes, (name, pixels, labels) in zip(places, tiles, strict=False):
        axes.imshow(pixels)
        axes.set_title(_plain(name), fontsize=8, loc="left")
        _draw_labels(axes, labels, scale=_SIDE * _DPI / max(pixels.shape[:2]))
    used = sorted({number for *_, labels in tiles for number, *_ in labels})
    patches = [Patch(color=_colour(n), label=_plain(f"{n} {names[n]}")) for n in used[:_NAMED]]
    if patches:
        more = f" and {len(used) - _NAMED} more" if len(used) > _NAMED else ""
        figure.legend(
            handles=patches,
            loc="outside lower center",
            ncols=min(8, len(patches)),
            fontsize=8,
            title=f"class{more}",
        )
    figure.savefig(path, dpi=_DPI)


def _draw_labels(axes: Axes, labels: list[Label], *, scale: float) -> None:
    """Draw boxes and, as far as there is room for them, their texts.

    Parameters
    ----------
    scale : float
        Pixels of the page for a pixel of the picture.
    """
    taken = list[np.ndarray]()
    right, bottom = axes.get_xlim()[1], axes.get_ylim()[0]
    letter = np.array(_LETTER) * _POINTS * _DPI / 72 / scale
    for number, (x1, y1, x2, y2), _ in labels:
        box = Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=_colour(number))
        box.set_linewidth(1.2)
        box.set_path_effects([withStroke(linewidth=2.2, foreground=_contrast(number))])
        axes.add_patch(box)
    for number, (x1, y1, x2, y2), texts in labels:
        sized = [(text, letter * (len(text), 1)) for text in texts]
        corners = [
            (text, np.array([left, top, left + width, top + height]))
            for text, (width, height) in sized
            # Above the box, in it, below it, and the same on its right.
            for left in (x1, x2 - width)
            for top in (y1 - height, y1, y2 - height, y2)
        ]
        free = (
            (text, place)
            for text, place in corners
            if (place[:2] >= 0).all() and place[2] <= right and place[3] <= bottom
            if not any((place[:2] < t[2:]).all() and (t[:2] < place[2:]).all() for t in taken)
        )
        text, place = next(free, ("", np.zeros(4)))
        if text:
            taken.append(place)
            axes.text(
                place[0],
                place[3],
                _plain(text),
                fontsize=_POINTS,
                color=_contrast(number),
                verticalalignment="bottom",
                bbox={"facecolor": _colour(number), "linewidth": 0, "pad": 1},
            )


def _colour(number: int) -> tuple[float, float, float]:
    red, green, blue = colors(number)
    return red / 255, green / 255, blue / 255


def _contrast(number: int) -> str:
    """Return black or white, whichever is seen on, and beside, a class's colour."""
    bright = np.dot(_colour(number), (0.299, 0.587, 0.114)) > 0.6
    return "black" if bright else "white"


def _plain(text: str) -> str:
    return text.replace("$", r"\$")  # matplotlib reads formulas between dollar signs


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed the states from which augmentation draws, and put them back afterwards."""
    before = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(before[0])
            np.random.set_state(before[1])
