# SPDX-License-Identifier: Apache-2.0
"""Reads a data.yaml in Ultralytics' layout and lists its pictures; none of them is opened."""

from __future__ import annotations

import codecs
import glob
import logging
import mimetypes
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from fl_app.client.clips import (
    GROUP_FILES,
    GroupsError,
    clips_of,
    held_out,
    known_clips,
    named_groups,
    read_groups,
)
from fl_models.classes import listed, repeated_names
from fl_models.pictures import SUFFIXES, DataSpec, PictureError
from fl_registry.redaction import printable

logger = logging.getLogger(__name__)

HOLDOUT_EVERY = 10
_CVAT = "data/"  # CVAT's lists have paths below a folder that its export lacks
_MARKS = {  # of UTF-16 and UTF-8; Windows' editors write them
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
    codecs.BOM_UTF8: "utf-8-sig",
}


class DataError(PictureError):
    """A node's data can't be used; the text is one printable line that says what to do."""

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


def load_data_spec(
    data_yaml: str | Path, num_classes: int | None, *, holdout_every: int = HOLDOUT_EVERY
) -> DataSpec:
    """Read a `data.yaml` in Ultralytics' layout and list its pictures.

    `path` in the file is relative to the file's folder; `train` and `val` (or `validation`) are
    each a folder, a text file with one picture a line, a pattern such as ``images/*.jpg``, or a
    list of these. Entries of a text file are relative to `path` or to the text file's folder.
    Folders behind links are listed, hidden ones are not.

    Without `val`, or if its pictures are not there, some of the training pictures are held out
    (see `held_out`). Which belong to one clip or site is in the file that `groups` names, or in
    groups.csv or groups.txt beside the data.yaml; otherwise their names say it (see `clip_of`).
    Pictures in both splits are left out of training; if all of train is in val, of val instead.

    Parameters
    ----------
    data_yaml : str | Path
        The file.
    num_classes : int | None
        How many classes it must have; None: any number.
    holdout_every : int
        One in so many training pictures is held out.

    Raises
    ------
    DataError
        The file or a split is missing, malformed or empty, or the class count differs.
    """
    content, names, listing = _opened(data_yaml)
    file, root = listing.file, listing.root
    if num_classes is not None and len(names) != num_classes:
        raise DataError(
            f"data set {file} has {len(names)} classes, expected {num_classes}: "
            f"set num-classes to {len(names)} or use another data set"
        )
    train = listing.pictures("train", content.get("train"))
    val_key = "validation" if content.get("val") is None else "val"
    val = listing.pictures(val_key, content.get(val_key), may_lack=True)
    both = set(train) & set(val)
    if both and len(both) == len(train):
        val = tuple(path for path in val if path not in both)
        listing.note(f"all {len(both)} pictures of train are in val too, and are not evaluated on")
    elif both:
        train = tuple(path for path in train if path not in both)
        listing.note(f"{len(both)} pictures are in train and in val, and are not trained on")
    groups = _groups(content, root, file)
    clips = clips_of(train, groups)
    if groups and not set(clips) & set(groups.values()):
        raise DataError(
            f"groups of data set file {file} list no training picture, expected paths relative to "
            f"{root}, or file names, such as {train[0].name}"
        )
    if not val:
        if len(train) < 2:
            raise DataError(
                f"data set file {file} has no val, and {len(train)} training pictures are too few "
                "to hold one out: expected val, a folder or a list file"
            )
        held = set(held_out(clips, holdout_every))
        listing.note(_split_note(clips, held, holdout_every))
        val = tuple(path for index, path in enumerate(train) if index in held)
        train = tuple(path for index, path in enumerate(train) if index not in held)
        clips = tuple(clip for index, clip in enumerate(clips) if index not in held)
    elif shared := set(clips) & set(clips_of(val, groups)):
        listing.note(
            f"{sum(clip in shared for clip in clips)} training pictures are of the same clips as "
            f"some of val ({len(shared)} clips), so scores on val are too high"
        )
    for note in listing.notes:
        _warn_once(note)
    return DataSpec(
        root,
        train,
        val,
        names,
        keypoints=_keypoints(content, file),
        clips=clips,
        val_clips=known_clips(val, groups),
        notes=tuple(listing.notes),
    )


def load_split(data_yaml: str | Path, split: str) -> DataSpec:
    """Read one split of a `data.yaml` as `val`, without the others; see `load_data_spec`.

    Raises
    ------
    DataError
        The file or the split is missing, malformed or empty.
    """
    content, names, listing = _opened(data_yaml)
    key = "validation" if split == "val" and content.get("val") is None else split
    pictures = listing.pictures(key if key in content else split, content.get(key))
    return DataSpec(listing.root, (), pictures, names, notes=tuple(listing.notes))


def _opened(
    data_yaml: str | Path,
) -> tuple[Mapping[str, object], tuple[str, ...], _Listing]:
    """Return what a data.yaml says, its class names, and what lists its pictures."""
    with usable(f"{str(data_yaml)[:300]} is not a path of a data.yaml"):
        file = Path(data_yaml).expanduser().resolve()
    content = _read_yaml(file)
    names = _class_names(content, file)
    with usable(f"data set file {file} has a path that cannot be used"):
        root = (file.parent / str(content.get("path") or ".")).resolve()
    return content, names, _Listing(file, root)


@contextmanager
def usable(fault: str, advice: str = "") -> Iterator[None]:
    """Raise a DataError with these texts if the block uses what is no path, or a bad file."""
    try:
        yield
    except DataError:
        raise
    except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: a loop of links
        reason = (error.strerror or error) if isinstance(error, OSError) else type(error).__name__
        raise DataError(f"{fault}: {reason}{advice}") from error


@lru_cache(maxsize=64)
def _warn_once(note: str) -> None:
    # A node lists its pictures for each message.
    logger.warning("%s", printable(note))


def _split_note(clips: Sequence[str], held: set[int], every: int) -> str:
    whole = len(set(clips))
    how = f"one in {every}"
    if whole == 1:
        how = "the last ones, since all are of one clip"
    elif whole < len(clips):
        how += f", and whole clips only, of {whole}"
    return (
        f"there are no pictures for val, so {len(held)} of {len(clips)} training pictures are held "
        f"out ({how})"
    )


@dataclass
class _Listing:
    """The pictures of one data set, and notes on what is left out of them.

    Attributes
    ----------
    file, root : Path
        The data.yaml, and the folder to which its entries are relative.
    notes : list[str]
        One sentence for each kind of files that are left out.
    """

    file: Path
    root: Path
    notes: list[str] = field(default_factory=list)

    def note(self, text: str) -> None:
        self.notes.append(printable(f"data set {self.file.parent.name}/{self.file.name}: {text}"))

    def pictures(self, split: str, value: object, *, may_lack: bool = False) -> tuple[Path, ...]:
        """Return the pictures of a split, sorted; none if it may lack and is missing or empty."""
        given = value if isinstance(value, list) else [value]
        entries = [entry for entry in given if isinstance(entry, str) and entry]
        if may_lack and (value is None or value in ("", [])):
            return ()
        if not entries or len(entries) < len(given):
            raise DataError(
                f"data set file {self.file} has no {split}, expected a folder or a list file"
            )
        whose = f"{split} pictures of data set {self.file}"
        places: dict[str, list[Path]] = {}
        for entry in entries:
            with usable(f"{whose} can't be found: {entry[:300]} is not a path"):
                places[entry] = self._places(entry)
        missing = [entry for entry in entries if not places[entry]]
        if may_lack and len(missing) == len(entries):
            self.note(f"{split} names {missing[0]}, which does not exist")
        elif missing:
            raise DataError(
                f"{whose} are missing: {self.root / missing[0]} does not exist, expected a folder "
                f"or a list file; correct path or {split} in the data set file"
            )
        found: list[Path] = []
        for place in (place for entry in entries for place in places[entry]):
            with usable(f"{whose} can't be listed in {place}"):
                found += self._pictures_at(place, split, whose)
        if not found and not may_lack:
            raise DataError(
                f"{split} split of data set {self.file} is empty: no pictures in {value}"
            )
        return tuple(sorted(set(found)))

    def _places(self, entry: str) -> list[Path]:
        """Return the files and folders that an entry of the data.yaml names."""
        # Exports of some label tools count from a sub-folder: "../train/images".
        for text in (entry, entry.removeprefix("../"), entry.replace("\\", "/")):
            if (self.root / text).exists():
                return [(self.root / text).resolve()]
        if not glob.has_magic(entry):
            return []
        # Unlike Path.glob it takes absolute patterns.
        found = glob.glob(entry, root_dir=self.root, recursive=True)  # noqa: PTH207
        return [self.root / path for path in found]

    def _pictures_at(self, place: Path, split: str, whose: str) -> list[Path]:
        if place.is_dir():
            return self._in_folder(place, split)
        suffix = place.suffix.lower()
        if suffix in SUFFIXES:
            return [place]
        if suffix != ".txt":  # the error would show the content of any other file
            raise DataError(f"{whose} are {place}, expected a folder or a .txt file")
        return self._in_list(place, split)

    def _in_folder(self, folder: Path, split: str) -> list[Path]:
        """Return the pictures below a folder as Ultralytics does, with those behind links."""
        found, left_out, seen = list[Path](), Counter[str](), set[str]()
        unreadable = list[OSError]()
        for place, folders, files in os.walk(folder, onerror=unreadable.append, followlinks=True):
            real = os.path.realpath(place)
            if real in seen:  # a link to a folder above
                folders.clear()
                continue
            seen.add(real)
            folders[:] = [name for name in folders if not name.startswith(".")]
            for name in files:
                path = Path(place, name)
                suffix = path.suffix.lower()
                if name.startswith("."):
                    continue
                if suffix in SUFFIXES:
                    found.append(path)
                elif (mimetypes.guess_type(name)[0] or "").startswith("image/"):
                    left_out[suffix] += 1
        if unreadable:
            self.note(
                f"{len(unreadable)} folders of {split} can't be read, such as "
                f"{unreadable[0].filename}: {unreadable[0].strerror}"
            )
        for suffix, count in left_out.items():
            self.note(f"{count} {suffix} files of {split} are left out: Ultralytics reads none")
        return found

    def _in_list(self, file: Path, split: str) -> list[Path]:
        with usable(f"list file {file} can't be read"):
            # File names need not be UTF-8.
            lines = [line.strip() for line in _decoded(file, errors="surrogateescape").splitlines()]
        entries = [line for line in lines if line]
        placed = {entry: self._placed(entry, file.parent) for entry in entries}
        missing = [entry for entry, path in placed.items() if path is None]
        if missing and len(missing) == len(placed):
            raise DataError(
                f"list file {file} names {missing[0]}, which does not exist, nor any of the "
                f"others: expected paths relative to {self.root} or to the list's own folder"
            )
        if missing:
            self.note(
                f"{len(missing)} of {len(placed)} pictures that {file.name} names do not exist, "
                f"such as {missing[0]}"
            )
        found = [path for path in placed.values() if path is not None]
        others = [path for path in found if path.suffix.lower() not in SUFFIXES]
        if others:
            self.note(
                f"{len(others)} files that {file.name} names are left out: Ultralytics reads no "
                f"{others[0].suffix or 'file without an ending'}"
            )
        return [path for path in found if path.suffix.lower() in SUFFIXES]

    def _placed(self, entry: str, folder: Path) -> Path | None:
        """Return the file that an entry of a list in a folder names; None if there is none."""
        # Ultralytics replaces "./" by the list's folder, and takes others from where it is started.
        places = [folder, self.root] if entry.startswith("./") else [self.root, folder]
        for text in (entry, entry.replace("\\", "/"), entry.removeprefix(_CVAT)):
            for place in places:
                # Not resolved, so that labels are found beside links, as in Ultralytics.
                path = Path(os.path.abspath(place / text))  # noqa: PTH100
                if path.is_file():
                    return path
        return None


def _decoded(file: Path, errors: str = "strict") -> str:
    data = file.read_bytes()
    encoding = next((name for mark, name in _MARKS.items() if data.startswith(mark)), "utf-8")
    return data.decode(encoding, errors)


def _read_yaml(file: Path) -> Mapping[str, object]:
    import yaml

    with usable(f"data set file {file} can't be read", "; set data to the path of a data.yaml"):
        text = _decoded(file)
    try:
        content = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"data set file {file} is no valid YAML: {reason}") from error
    if not isinstance(content, dict):
        raise DataError(f"data set file {file} holds no keys, expected train, val and names")
    return content


def _class_names(content: Mapping[str, object], file: Path) -> tuple[str, ...]:
    names, count = content.get("names"), content.get("nc")
    if isinstance(count, float | str) and str(count).removesuffix(".0").isdigit():
        count = int(float(count))
    if count is not None and not isinstance(count, int):
        raise DataError(f"data set file {file} says nc: {count!r}, expected a number of classes")
    if isinstance(names, dict):
        numbered = {str(key): name for key, name in names.items()}
        if set(numbered) != {str(number) for number in range(len(names))}:
            raise DataError(
                f"data set file {file} numbers its classes {list(names)}, "
                f"expected 0 to {len(names) - 1}"
            )
        names = [numbered[str(number)] for number in range(len(names))]
    if names is None and count is not None:
        names = [f"class_{number}" for number in range(count)]
    if not isinstance(names, list) or not names:
        raise DataError(f"data set file {file} has no class names, expected a list under names")
    if not all(isinstance(name, str | int | float) for name in names):
        raise DataError(f"data set file {file} has class names that are not text")
    if count is not None and count != len(names):
        raise DataError(f"data set file {file} says nc: {count}, but has {len(names)} names")
    texts = tuple(map(str, names))
    if repeated := repeated_names(texts):
        raise DataError(
            f"data set file {file} has several classes of the name {listed(repeated)}, "
            "expected a name of its own for each class"
        )
    return texts


def _keypoints(content: Mapping[str, object], file: Path) -> int:
    """Return how many numbers of key points follow a box in a label row of a pose data set."""
    shape = content.get("kpt_shape")
    if shape is None:
        return 0
    if not (isinstance(shape, list) and len(shape) == 2 and all(type(n) is int for n in shape)):
        raise DataError(
            f"data set file {file} has kpt_shape: {shape!r}, expected the number of key points and "
            "of the numbers of each, such as [17, 3]"
        )
    return int(shape[0] * shape[1])


def _groups(content: Mapping[str, object], root: Path, file: Path) -> dict[str, str]:
    """Return the groups that a file beside the data.yaml, or named in it, lists."""
    named = content.get("groups")
    if isinstance(named, dict) and all(isinstance(value, str | int) for value in named.values()):
        return named_groups(file, ((str(key), str(value)) for key, value in named.items()), root)
    if named is not None and not (isinstance(named, str) and named):
        raise DataError(
            f"data set file {file} has groups: {str(named)[:100]}, expected a .csv or .txt file "
            "with a picture and its group in each row, or pictures and their groups"
        )
    names = (named,) if isinstance(named, str) else GROUP_FILES
    with usable(f"groups of data set file {file} can't be found"):
        places = [place / name for name in names for place in (root, file.parent)]
        found = next((place for place in places if place.is_file()), None)
    if found is None and named is not None:
        raise DataError(f"groups of data set file {file} are missing: {places[0]} does not exist")
    if found is None:
        return {}
    if found.suffix.lower() not in {".csv", ".txt"}:
        raise DataError(f"groups of data set file {file} are {found}, expected a .csv or .txt file")
    with usable(f"groups file {found} can't be read"):
        text = _decoded(found, errors="surrogateescape")
    try:
        return read_groups(found, text, root)
    except GroupsError as error:
        raise DataError(str(error)) from None
