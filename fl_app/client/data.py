# SPDX-License-Identifier: Apache-2.0
"""The pictures of a node: the data set file, the partitions and their digests.

Nothing is written to the user's data folder.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from fl_app.client.generated_shapes import shapes_data
from fl_app.config import ClientConfig, absolute_data
from fl_models.file_cache import cached_while_unchanged
from fl_models.pictures import SUFFIXES, PictureError, label_file, read_boxes
from fl_registry import app_home
from fl_registry.redaction import printable

Partitioning = Literal["iid", "dirichlet"]

HELD_OUT_EVERY = 10
_BACKGROUND = -1


class DataError(ValueError):
    """A node's data can't be used; the text is one printable line that says what to do."""

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


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


@dataclass(frozen=True)
class NodeData:
    """The pictures of one node.

    Parameters
    ----------
    spec : DataSpec
        The data set they come from.
    train, holdout : tuple[Path, ...]
        Pictures to train on and pictures to evaluate on; no picture is in both.
    digest : str
        SHA-256 over all of them and their labels.
    """

    spec: DataSpec
    train: tuple[Path, ...]
    holdout: tuple[Path, ...]
    digest: str


def load_data_spec(data_yaml: str | Path, num_classes: int | None) -> DataSpec:
    """Read a `data.yaml` in Ultralytics' layout and list its pictures.

    `path` in the file is relative to the file's folder; `train` and `val` are each a folder,
    a text file with one picture a line, or a list of these. If `num_classes` is None, any number
    of classes is accepted.

    Raises
    ------
    DataError
        The file or a split is missing, malformed or empty, or the class count differs.
    """
    try:
        file = Path(data_yaml).expanduser().resolve()
    except (OSError, ValueError, RuntimeError):
        raise DataError(f"{str(data_yaml)[:300]} is not a path of a data.yaml") from None
    content = _read_yaml(file)
    names = _class_names(content, file)
    if num_classes is not None and len(names) != num_classes:
        raise DataError(
            f"data set {file} has {len(names)} classes, expected {num_classes}: "
            f"set num-classes to {len(names)} or use another data set"
        )
    try:
        root = (file.parent / str(content.get("path") or ".")).resolve()
    except (OSError, ValueError, RuntimeError):
        raise DataError(f"data set file {file} has a path that cannot be used") from None
    train = _list_pictures(content, "train", root, file)
    val = _list_pictures(content, "val", root, file)
    return DataSpec(root, train, val, names)


def generated_data(home: Path, num_classes: int) -> DataSpec:
    """Return the generated data set below the app's folder; generate it if it does not exist.

    Raises
    ------
    DataError
        The disk is full, or the class count differs.
    """
    try:
        return load_data_spec(shapes_data(home), num_classes)
    except OSError as error:
        raise DataError(
            f"the generated data set can't be written below {home} ({error.strerror or error}): "
            "make room there, or set data to a data.yaml of your own"
        ) from error


def load_node_data(config: ClientConfig) -> NodeData:
    """Return this node's pictures: its partition, or all of its own data set.

    A simulated node has a partition and holds out every tenth picture of it for evaluation. A
    node with data of its own trains on the `train` split and evaluates on `val`.

    Raises
    ------
    DataError
        The data can't be used.
    """
    home = app_home(config.home or None)
    if config.data:
        spec = load_data_spec(absolute_data(config.data), config.num_classes)
    else:
        spec = generated_data(home, config.num_classes)
    train, holdout = spec.train, spec.val
    if config.partition_id is not None and config.num_partitions is not None:
        share = partition(
            spec,
            num_partitions=config.num_partitions,
            partition_id=config.partition_id,
            kind=config.partitioning,
            alpha=config.alpha,
            seed=config.seed,
        )
        train, holdout = map(tuple, split_holdout(share))
    return NodeData(spec, train, holdout, _digest([*train, *holdout]))


def partition(
    spec: DataSpec,
    *,
    num_partitions: int,
    partition_id: int,
    kind: Partitioning = "iid",
    alpha: float = 0.5,
    seed: int = 0,
) -> list[Path]:
    """Return one node's share of the training pictures, sorted.

    All shares together are the whole training split, and no two overlap. The same arguments give
    the same share on every node.

    Parameters
    ----------
    kind : "iid" | "dirichlet"
        Equal random shares, or shares whose mix of classes differs. A picture's class is the
        most frequent one among its boxes; pictures without boxes are a class of their own.
    alpha : float
        Concentration of the Dirichlet distribution: the smaller, the more skewed.
    seed : int
        Seed of the split.

    Raises
    ------
    DataError
        The arguments are out of range, or the share is empty.
    """
    if not 0 <= partition_id < num_partitions:
        raise DataError(
            f"partition {partition_id} does not exist, expected 0 to {num_partitions - 1}"
        )
    if kind == "iid":
        order = np.random.default_rng(seed).permutation(len(spec.train))
        shares = [list(share) for share in np.array_split(order, num_partitions)]
    elif kind == "dirichlet":
        shares = _dirichlet_shares(
            _main_classes(spec.train, spec.nc), num_partitions, alpha=alpha, seed=seed
        )
    else:
        raise DataError(f"partitioning '{kind}' is unknown, expected 'iid' or 'dirichlet'")
    if not shares[partition_id]:
        raise DataError(
            f"partition {partition_id} of {num_partitions} is empty: the data set has "
            f"{len(spec.train)} training pictures, use fewer partitions or more data"
        )
    return [spec.train[index] for index in sorted(shares[partition_id])]


def split_holdout(paths: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """Split a share into pictures to train on and pictures to evaluate on (every tenth).

    Raises
    ------
    DataError
        There are fewer than two pictures, so that one side would be empty.
    """
    if len(paths) < 2:
        raise DataError(
            f"a share of {len(paths)} pictures can't be split into training and evaluation, "
            "expected at least 2: use fewer partitions or more data"
        )
    return [p for i, p in enumerate(paths) if i % HELD_OUT_EVERY], list(paths[::HELD_OUT_EVERY])


def data_digest(paths: Iterable[Path]) -> str:
    """Return a SHA-256 of the names and contents of pictures and labels, in any order.

    Folders are not included, so the same data has the same digest on every machine.
    """
    rows = []
    for path in paths:
        label = label_file(path)
        text = label.read_bytes() if label.is_file() else b"none"
        digests = hashlib.sha256(path.read_bytes()).digest() + hashlib.sha256(text).digest()
        rows.append(path.name.encode("utf-8", "surrogateescape") + b"\0" + digests)
    return hashlib.sha256(b"".join(sorted(rows))).hexdigest()


_digest = cached_while_unchanged(data_digest)


def _read_yaml(file: Path) -> Mapping[str, object]:
    import yaml

    try:
        content = yaml.safe_load(file.read_text("utf-8"))
    except OSError as error:
        raise DataError(
            f"data set file {file} can't be read: {error.strerror}; "
            "set data to the path of a data.yaml"
        ) from error
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"data set file {file} is no valid YAML: {reason}") from error
    if not isinstance(content, dict):
        raise DataError(f"data set file {file} holds no keys, expected train, val and names")
    return content


def _class_names(content: Mapping[str, object], file: Path) -> tuple[str, ...]:
    names, count = content.get("names"), content.get("nc")
    if isinstance(names, dict):
        if sorted(names, key=str) != sorted(range(len(names)), key=str):
            raise DataError(
                f"data set file {file} numbers its classes {list(names)}, "
                f"expected 0 to {len(names) - 1}"
            )
        names = [names[number] for number in range(len(names))]
    if names is None and isinstance(count, int):
        names = [str(number) for number in range(count)]
    if not isinstance(names, list) or not names:
        raise DataError(f"data set file {file} has no class names, expected a list under names")
    if not all(isinstance(name, str | int | float) for name in names):
        raise DataError(f"data set file {file} has class names that are not text")
    if count is not None and count != len(names):
        raise DataError(f"data set file {file} says nc: {count}, but has {len(names)} names")
    return tuple(str(name) for name in names)


def _list_pictures(
    content: Mapping[str, object], split: str, root: Path, file: Path
) -> tuple[Path, ...]:
    value = content.get(split)
    given = value if isinstance(value, list) else [value]
    entries = [entry for entry in given if isinstance(entry, str) and entry]
    if not entries or len(entries) < len(given):
        raise DataError(f"data set file {file} has no {split}, expected a folder or a list file")
    pictures: list[Path] = []
    for entry in entries:
        try:
            pictures += _pictures_at(_resolve(root, entry), split, file)
        except DataError:
            raise
        except (OSError, ValueError, RuntimeError) as error:  # not a path, or a loop of links
            raise DataError(
                f"{split} pictures of data set {file} can't be found: {entry[:300]} is not a path"
            ) from error
    if not pictures:
        raise DataError(f"{split} split of data set {file} is empty: no pictures in {value}")
    return tuple(sorted(set(pictures)))


def _pictures_at(place: Path, split: str, file: Path) -> list[Path]:
    if place.is_dir():
        return [path for path in place.rglob("*") if path.suffix.lower() in SUFFIXES]
    if not place.is_file():
        raise DataError(f"{split} pictures of data set {file} are missing: {place} does not exist")
    if place.suffix.lower() != ".txt":  # the error would show the content of any other file
        raise DataError(
            f"{split} pictures of data set {file} are {place}, expected a folder or a .txt file"
        )
    return _read_list_file(place)


def _resolve(root: Path, entry: str) -> Path:
    place = (root / entry).resolve()
    # Exports of some label tools count from a sub-folder: "../train/images".
    if not place.exists() and entry.startswith("../"):
        return (root / entry[3:]).resolve()
    return place


def _read_list_file(file: Path) -> list[Path]:
    try:
        lines = [line.strip() for line in file.read_text("utf-8-sig").splitlines()]
        paths = [(file.parent / line).resolve() for line in lines if line]
    except (OSError, ValueError) as error:
        raise DataError(f"list file {file} can't be read: {type(error).__name__}") from error
    missing = next((path for path in paths if not path.is_file()), None)
    if missing is not None:
        raise DataError(f"list file {file} names {missing}, which does not exist")
    return [path for path in paths if path.suffix.lower() in SUFFIXES]


@cached_while_unchanged
def _main_classes(paths: Sequence[Path], num_classes: int) -> np.ndarray:
    classes = np.full(len(paths), _BACKGROUND)
    for index, path in enumerate(paths):
        try:
            boxes = read_boxes(path, num_classes)
        except PictureError:
            continue  # reported once, where the pictures are loaded
        if len(boxes):
            classes[index] = np.bincount(boxes[:, 0].astype(int)).argmax()
    return classes


def _dirichlet_shares(
    classes: np.ndarray, num_partitions: int, *, alpha: float, seed: int
) -> list[list[int]]:
    if not alpha > 0:
        raise DataError(f"alpha is {alpha}, expected a number above 0")
    rng = np.random.default_rng(seed)
    shares: list[list[int]] = [[] for _ in range(num_partitions)]
    for number in np.unique(classes):
        members = rng.permutation(np.flatnonzero(classes == number))
        weights = rng.dirichlet(np.full(num_partitions, alpha))
        cuts = np.round(np.cumsum(weights)[:-1] * len(members)).astype(int)
        for share, part in zip(shares, np.split(members, cuts), strict=True):
            share.extend(int(index) for index in part)
    # Small alpha may leave shares empty; each takes a picture from the largest share.
    for share in shares:
        largest = max(shares, key=len)
        if not share and len(largest) > 1:
            share.append(largest.pop())
    return shares
