# SPDX-License-Identifier: Apache-2.0
"""Pictures and their label files in Ultralytics' layout; nothing on disk is changed.

What is read from them can be cached while the files are unchanged. Pictures themselves are decoded
in `fl_models.decoding`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache, wraps
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from fl_models.classes import IGNORED, match_names

SUFFIXES = frozenset(
    f".{name}"
    for name in (
        *("avif", "bmp", "dng", "heic", "heif", "jp2", "jpeg"),
        *("jpg", "mpo", "png", "tif", "tiff", "webp"),
    )
)
"""Those that Ultralytics reads, in lower case."""
_REASONS = 3  # that a note names
_CACHED = 4  # results; one process of a simulation may run several nodes in turn
_GRAIN = 2.0  # seconds; the coarsest time stamps of a file system

_Result = TypeVar("_Result")
_FileStates = tuple[tuple[int, ...] | None, ...]


def shown(text: object) -> str:
    """Return a text that any log takes: what is no UTF-8 in the names of files is escaped."""
    return str(text).encode(errors="backslashreplace").decode()


class PictureError(ValueError):
    """Pictures or their label files can't be used; the text names the file and the reason.

    Parameters
    ----------
    message : str
        The text.
    reason : str
        The same without names of files, to follow "because of".
    """

    def __init__(self, message: str, reason: str = "a file that can't be used") -> None:
        super().__init__(shown(message))
        self.reason = reason


class NoBoxesError(PictureError):
    """Pictures are readable, and all of them are background."""


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


@dataclass(frozen=True, eq=False)
class Pictures(Sequence[Picture]):
    """The usable pictures among those that were read.

    Parameters
    ----------
    usable : tuple[Picture, ...]
        The pictures.
    left_out : Mapping[str, int]
        By reason how many others there are.
    num_classes : int
        Classes of the data set.
    numbered : tuple[int, int] | None
        Lowest and highest class number in all label files; None without boxes.
    unlabelled : tuple[Path, ...]
        Where label files of usable pictures were looked for, and are not.
    only_backgrounds : bool
        Whether there are labels, and no picture with a label file is usable.
    """

    usable: tuple[Picture, ...]
    left_out: Mapping[str, int] = field(default_factory=dict)
    num_classes: int = 0
    numbered: tuple[int, int] | None = None
    unlabelled: tuple[Path, ...] = ()
    only_backgrounds: bool = False

    def __len__(self) -> int:
        return len(self.usable)

    def __getitem__(self, index: Any) -> Any:
        return self.usable[index]

    @property
    def note(self) -> str:
        """How many pictures were left out and why, and whether most have no label file."""
        total, many, parts = sum(self.left_out.values()), len(self.usable), list[str]()
        if total:
            worst = sorted(self.left_out.items(), key=lambda each: -each[1])[:_REASONS]
            reasons = "; ".join(f"{count} because of {reason}" for reason, count in worst)
            parts.append(f"{total} of {total + many} pictures are left out: {reasons}")
        if 2 * len(self.unlabelled) > many:
            parts.append(
                f"{len(self.unlabelled)} of {many} pictures have no label file and count as "
                "background"
            )
        return "; ".join(parts)

    def require_usable(self, what: str, *, backgrounds: bool = False) -> None:
        """Check that there are pictures with boxes, numbered as their classes are.

        Parameters
        ----------
        what : str
            What the pictures are, for the error: "training pictures".
        backgrounds : bool
            Accept that no picture has a box.

        Raises
        ------
        PictureError
            No picture or no label is usable, or the labels are numbered from 1.
        NoBoxesError
            There are no boxes.
        """
        count = len(self) + sum(self.left_out.values())
        last = self.num_classes - 1
        if self.numbered and self.numbered[0] > 0 and self.numbered[1] == self.num_classes:
            # The others would be trained as the class after their own.
            raise PictureError(
                f"the labels of the {count} {what} are numbered {self.numbered[0]} to "
                f"{self.numbered[1]}, expected 0 to {last}: number the classes from 0"
            )
        if not self.usable or self.only_backgrounds:
            none = "no label" if self.only_backgrounds else "none"
            raise PictureError(
                f"{none} of the {count} {what} can be used ({self.note}): "
                "correct them, or use another data set"
            )
        if backgrounds or any(len(picture.boxes) for picture in self.usable):
            return
        if len(self.unlabelled) == len(self.usable):
            raise NoBoxesError(
                f"none of the {count} {what} has a label file: they were looked for in "
                f"{self.unlabelled[0].parent}, such as {self.unlabelled[0].name}; put them there"
            )
        raise NoBoxesError(
            f"the label files of the {count} {what} have no box of a class that is trained, such "
            f"as that of {self.usable[0].path}; correct them"
        )


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
        Class names by class number of the model.
    numbers : tuple[int, ...]
        By class number in the label files the number in ``names``, or `IGNORED`; by default the
        same number.
    keypoints : int
        Numbers in a label row after those of the box, which are left out; 0: none.
    clips : tuple[str, ...]
        The clip or site of each picture of ``train``; by default each has its own.
    val_clips : tuple[str, ...]
        The clip or site of each picture of ``val``; empty if that is not known.
    notes : tuple[str, ...]
        What was left out or held out when the data set was listed.
    """

    root: Path
    train: tuple[Path, ...]
    val: tuple[Path, ...]
    names: tuple[str, ...]
    numbers: tuple[int, ...] = ()
    keypoints: int = 0
    clips: tuple[str, ...] = ()
    val_clips: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.numbers:
            object.__setattr__(self, "numbers", tuple(range(len(self.names))))
        if len(self.clips) != len(self.train):
            object.__setattr__(self, "clips", tuple(map(str, self.train)))
        if len(self.val_clips) != len(self.val):  # those of other pictures, before a `replace`
            object.__setattr__(self, "val_clips", ())

    @property
    def nc(self) -> int:
        """Number of classes of the model."""
        return len(self.names)

    def for_model(self, names: Sequence[str], *, ignore_others: bool = False) -> DataSpec:
        """Return the data set with the classes of a model, which are matched by their names.

        Boxes of classes that the model lacks are left out. See `match_names` for what it raises.
        """
        place = (*match_names(self.names, names, ignore_others=ignore_others), IGNORED)
        return replace(self, names=tuple(names), numbers=tuple(place[n] for n in self.numbers))


def label_file(picture: Path) -> Path:
    """Return the label file of a picture: the last folder `images` becomes `labels`."""
    head, folder, tail = str(picture).rpartition(f"{os.sep}images{os.sep}")
    path = f"{head}{os.sep}labels{os.sep}{tail}" if folder else tail
    return Path(path).with_suffix(".txt")


def read_boxes(picture: Path, numbers: Sequence[int], keypoints: int = 0) -> np.ndarray:
    """Return the true boxes of a picture, shape (n, 5), without repeated rows.

    Polygon rows (class, x1, y1, x2, y2, ...) become the boxes around them. Boxes of a class that
    the model lacks are left out.

    Parameters
    ----------
    picture : Path
        The picture, whose label file is read.
    numbers : Sequence[int]
        `DataSpec.numbers` of its data set.
    keypoints : int
        `DataSpec.keypoints` of its data set.

    Raises
    ------
    PictureError
        A row is no box or polygon in fractions of the picture, or has an unknown class.
    """
    return checked_boxes(picture, label_rows(picture, keypoints), numbers)


def label_rows(picture: Path, keypoints: int = 0) -> np.ndarray:
    """Return the rows of a picture's label file as boxes, unchecked, shape (n, 5).

    Raises
    ------
    PictureError
        A row is no box or polygon.
    """
    path = label_file(picture)
    if not path.is_file():
        return np.zeros((0, 5), np.float32)
    try:
        rows = [row.split() for row in path.read_text("utf-8-sig").splitlines() if row.strip()]
        return np.array([_to_box(row, keypoints) for row in rows], np.float32).reshape(-1, 5)
    except (OSError, ValueError) as error:
        reason = "a label file that can't be read"
        raise PictureError(
            f"{picture}: label file {path} can't be read: {error}", reason
        ) from error


def checked_boxes(picture: Path, rows: np.ndarray, numbers: Sequence[int]) -> np.ndarray:
    """Return the boxes of ``read_boxes``, of the rows of ``label_rows``."""
    fault = _fault(rows, len(numbers))
    if fault:
        raise PictureError(f"{picture}: label file {label_file(picture)} has {fault}", fault)
    _, first = np.unique(rows, axis=0, return_index=True)
    boxes = rows[np.sort(first)]
    boxes[:, 0] = np.asarray(numbers, np.float32)[boxes[:, 0].astype(int)]
    return np.asarray(boxes[boxes[:, 0] != IGNORED])


def usable_boxes(picture: Path, numbers: Sequence[int], keypoints: int = 0) -> np.ndarray:
    """Return the boxes of ``read_boxes``, or none if they can't be used."""
    try:
        return read_boxes(picture, numbers, keypoints)
    except PictureError:
        return np.zeros((0, 5), np.float32)


def main_class(boxes: np.ndarray) -> int:
    """Return the most frequent class of boxes, shape (n, 5); -1 if there are none."""
    return int(np.bincount(boxes[:, 0].astype(int)).argmax()) if len(boxes) else -1


def _to_box(row: Sequence[str], keypoints: int) -> list[float]:
    values = [float(value) for value in row]
    if len(values) in {5, 5 + keypoints}:
        return values[:5]
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
