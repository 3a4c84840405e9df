# SPDX-License-Identifier: Apache-2.0
"""Pictures and their label files in Ultralytics' layout; nothing on disk is changed.

What is read from them can be cached while the files are unchanged. Pictures themselves are decoded
in `fl_models.decoding`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache, wraps
from pathlib import Path
from typing import TypeVar

import numpy as np

SUFFIXES = frozenset(
    f".{name}"
    for name in (
        *("avif", "bmp", "dng", "heic", "heif", "jp2", "jpeg"),
        *("jpg", "mpo", "png", "tif", "tiff", "webp"),
    )
)
"""Those that Ultralytics reads, in lower case."""
_CACHED = 4  # results; one process of a simulation may run several nodes in turn
_GRAIN = 2.0  # seconds; the coarsest time stamps of a file system

_Result = TypeVar("_Result")
_FileStates = tuple[tuple[int, ...] | None, ...]


class PictureError(ValueError):
    """Pictures or their label files can't be used; the text names the file and the reason."""


@dataclass(frozen=True, eq=False)
class Picture:
    """One readable picture with its true boxes.

    Parameters
    ----------
    path : Path
        The picture's file.
    shape : tuple[int, int]
        Height and width in pixels of the upright picture, as its EXIF tags turn it.
    boxes : np.ndarray
        float32, shape (n, 5): class, centre x, centre y, width, height; the last four as
        fractions of the picture. No rows for a background picture.
    """

    path: Path
    shape: tuple[int, int]
    boxes: np.ndarray


@dataclass(frozen=True)
class DataSpec:
    """A data set as its `data.yaml` describes it.

    Parameters
    ----------
    root : Path
        Folder to which the paths in the file are relative; absolute.
    train, val : tuple[Path, ...]
        Pictures of the two splits, sorted, absolute.
    names : tuple[str, ...]
        Class names by class number.
    """

    root: Path
    train: tuple[Path, ...]
    val: tuple[Path, ...]
    names: tuple[str, ...]

    @property
    def nc(self) -> int:
        """Number of classes."""
        return len(self.names)


def label_file(picture: Path) -> Path:
    """Return the label file of a picture: the last folder `images` becomes `labels`."""
    head, folder, tail = str(picture).rpartition(f"{os.sep}images{os.sep}")
    path = f"{head}{os.sep}labels{os.sep}{tail}" if folder else tail
    return Path(path).with_suffix(".txt")


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


def main_class(boxes: np.ndarray) -> int:
    """Return the most frequent class of boxes, shape (n, 5); -1 if there are none."""
    return int(np.bincount(boxes[:, 0].astype(int)).argmax()) if len(boxes) else -1


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
    unknown = classes[(classes < 0) | (classes >= num_classes)]
    if len(unknown):
        return f"class {int(unknown[0])}, expected 0 to {num_classes - 1}"
    # One hundredth of tolerance for rounding in label tools, the same as Ultralytics has.
    if (places > 1.01).any() or (places[:, :2] < -0.01).any() or (places[:, 2:] < 0).any():
        return "coordinates outside the picture, expected fractions from 0 to 1"
    return ""


def file_states(
    paths: Iterable[Path], *, clock: Callable[[], float] = time.time
) -> _FileStates | None:
    """Return number, size, modification and change time (ns) of each picture and its label file.

    None if one of them changed within the last two seconds: another change right after it could
    have the same time. The state of a missing file is None.
    """
    states = tuple(_state(file) for path in paths for file in (path, label_file(path)))
    return states if all(state is None or _is_settled(state, clock) for state in states) else None


def settled_state(file: Path, *, clock: Callable[[], float] = time.time) -> tuple[int, ...] | None:
    """Return the state of a file as in `file_states`; None if it is missing or has just changed."""
    state = _state(file)
    return state if state and _is_settled(state, clock) else None


def cached_while_unchanged(
    read: Callable[..., _Result], *, clock: Callable[[], float] = time.time
) -> Callable[..., _Result]:
    """Wrap a reader of pictures so that it reads again only if a file or an argument differs.

    Otherwise the result is the same object as before, which no caller may change. Errors are not
    cached.

    Parameters
    ----------
    read : Callable[..., object]
        Takes a sequence of pictures, and any hashable arguments by position.
    clock : Callable[[], float]
        Returns the time in seconds since the epoch.
    """

    @lru_cache(maxsize=_CACHED)
    def cached(states: _FileStates, paths: tuple[Path, ...], *more: Hashable) -> _Result:
        return read(paths, *more)

    @wraps(read)
    def reader(paths: Sequence[Path], *more: Hashable) -> _Result:
        states = file_states(paths, clock=clock)
        return read(paths, *more) if states is None else cached(states, tuple(paths), *more)

    return reader


def _is_settled(state: tuple[int, ...], clock: Callable[[], float]) -> bool:
    return max(state[2:]) <= (clock() - _GRAIN) * 1e9


def _state(file: Path) -> tuple[int, ...] | None:
    try:
        stat = file.stat()
    except OSError:
        return None
    return stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns
