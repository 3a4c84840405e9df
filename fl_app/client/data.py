# SPDX-License-Identifier: Apache-2.0
"""The pictures of a node: the data set file, the partitions and their digests.

Nothing is written to the user's data folder.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from fl_app.client.file_memory import FileMemory, memory_of
from fl_app.client.generated_shapes import shapes_data
from fl_app.config import ClientConfig, Partitioning, ServerConfig, absolute_data
from fl_models.classes import ClassError, listed, name_differences, repeated_names
from fl_models.pictures import (
    SUFFIXES,
    DataSpec,
    PictureError,
    cached_while_unchanged,
    label_file,
    main_class,
    usable_boxes,
)
from fl_registry import app_home
from fl_registry.redaction import printable

HELD_OUT_EVERY = 10
_NO_LABEL = hashlib.sha256(b"none").hexdigest()


class DataError(PictureError):
    """A node's data can't be used; the text is one printable line that says what to do."""

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


@dataclass(frozen=True)
class NodeData:
    """The pictures of one node.

    Parameters
    ----------
    spec : DataSpec
        Pictures to train on and pictures to evaluate on; no picture is in both.
    digest : str
        SHA-256 over all of them, their labels and the names of their classes.
    note : str
        What training does without, since only some classes are the server's; empty if nothing.
    """

    spec: DataSpec
    digest: str
    note: str = ""


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
    with _usable(f"{str(data_yaml)[:300]} is not a path of a data.yaml"):
        file = Path(data_yaml).expanduser().resolve()
    content = _read_yaml(file)
    names = _class_names(content, file)
    if num_classes is not None and len(names) != num_classes:
        raise DataError(
            f"data set {file} has {len(names)} classes, expected {num_classes}: "
            f"set num-classes to {len(names)} or use another data set"
        )
    with _usable(f"data set file {file} has a path that cannot be used"):
        root = (file.parent / str(content.get("path") or ".")).resolve()
    train, val = (_list_pictures(content, split, root, file) for split in ("train", "val"))
    return DataSpec(root, train, val, names)


def generated_data(home: Path, num_classes: int | None = None) -> DataSpec:
    """Return the generated data set below the app's folder; generate it if it does not exist.

    Raises
    ------
    DataError
        The disk is full, or the class count differs.
    """
    advice = "; make room there, or set data to a data.yaml of your own"
    with _usable(f"the generated data set can't be written below {home}", advice):
        return load_data_spec(shapes_data(home), num_classes)


def run_data(
    config: ServerConfig | ClientConfig, home: Path, num_classes: int | None = None
) -> DataSpec:
    """Return the data set that the settings name, by default the generated one.

    Raises
    ------
    ConfigError, DataError
        It can't be used.
    """
    if config.data is not None:
        return load_data_spec(absolute_data(config.data), num_classes)
    return generated_data(home, num_classes)


def load_node_data(config: ClientConfig, names: Sequence[str]) -> NodeData:
    """Return this node's pictures: its partition, or all of its own data set.

    A simulated node has a partition and holds out every tenth picture of it for evaluation. A
    node with data of its own trains on the `train` split and evaluates on `val`. Its labels get
    the server's class numbers, by name.

    Parameters
    ----------
    config : ClientConfig
        The settings of the node.
    names : Sequence[str]
        Names of the server's classes, in their order.

    Raises
    ------
    DataError
        The data can't be used, their classes are not the server's, or a node that is not simulated
        names none.
    """
    if config.data is None and config.partition_id is None:
        raise DataError(
            "this node has no pictures, expected a data.yaml of its own: start its SuperNode with "
            """--node-config 'data="/absolute/path/data.yaml"'"""
        )
    home = app_home(config.home)
    own = run_data(config, home)
    if config.partition_id is not None and config.num_partitions is not None:
        share = partition(
            own,
            num_partitions=config.num_partitions,
            partition_id=config.partition_id,
            kind=config.partitioning,
            alpha=config.alpha,
            seed=config.seed,
        )
        train, holdout = split_holdout(share)
        own = replace(own, train=train, val=holdout)
    ignore = config.unknown_classes == "ignore-others"
    try:
        spec = own.for_model(names, ignore_others=ignore)
    except ClassError as error:
        advice = (
            ""
            if ignore
            else (", or set unknown-classes='ignore-others' to train the classes that both have")
        )
        raise DataError(
            f"the classes of this node are not the server's: {error}; correct the names in its "
            f"data.yaml{advice}"
        ) from None
    store = memory_of(home, "digests", own.root)
    digest = _digest((*own.train, *own.val), own.names, store)
    return NodeData(spec, digest, _unmatched(own.names, names))


def _unmatched(own: Sequence[str], names: Sequence[str]) -> str:
    """Return what a node with other classes than the server's trains without; else empty."""
    difference = name_differences(own, names)
    return difference and (
        f"its classes are not all the server's: {difference}; it leaves out the boxes of the "
        "former, and objects of the latter are background in its pictures"
    )


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
        There is no such partition, or it is empty.
    """
    if not 0 <= partition_id < num_partitions:
        raise DataError(
            f"partition {partition_id} does not exist, expected 0 to {num_partitions - 1}"
        )
    if kind == "iid":
        order = np.random.default_rng(seed).permutation(len(spec.train))
        shares = [list(share) for share in np.array_split(order, num_partitions)]
    else:
        classes = _main_classes(spec.train, spec.numbers)
        shares = _dirichlet_shares(classes, num_partitions, alpha=alpha, seed=seed)
    if not shares[partition_id]:
        raise DataError(
            f"partition {partition_id} of {num_partitions} is empty: the data set has "
            f"{len(spec.train)} training pictures, use fewer partitions or more data"
        )
    return [spec.train[index] for index in sorted(shares[partition_id])]


def split_holdout(paths: Sequence[Path]) -> tuple[tuple[Path, ...], tuple[Path, ...]]:
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
    train = tuple(path for index, path in enumerate(paths) if index % HELD_OUT_EVERY)
    return train, tuple(paths[::HELD_OUT_EVERY])


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def data_digest(
    paths: Iterable[Path],
    names: Sequence[str],
    digest_of: Callable[[Path], str] = file_digest,
) -> str:
    """Return a SHA-256 of the names and contents of pictures and labels, in any order.

    Folders are not included, so the same data has the same digest on every machine. The names of
    the classes are, in their order: they say what the numbers in the labels mean.

    Parameters
    ----------
    digest_of : Callable[[Path], str]
        Returns the SHA-256 of a file, in hexadecimal.
    """
    rows = [json.dumps(list(names)).encode()]
    for path in paths:
        label = label_file(path)
        text = digest_of(label) if label.is_file() else _NO_LABEL
        digests = bytes.fromhex(digest_of(path)) + bytes.fromhex(text)
        rows.append(path.name.encode("utf-8", "surrogateescape") + b"\0" + digests)
    return hashlib.sha256(b"".join(sorted(rows))).hexdigest()


@cached_while_unchanged
def _digest(paths: Sequence[Path], names: tuple[str, ...], store: Path) -> str:
    with FileMemory(store) as memory:
        return data_digest(paths, names, lambda path: memory.of(path, file_digest))


@contextmanager
def _usable(fault: str, advice: str = "") -> Iterator[None]:
    """Raise a DataError with these texts if the block uses what is no path, or a bad file."""
    try:
        yield
    except DataError:
        raise
    except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: a loop of links
        reason = (error.strerror or error) if isinstance(error, OSError) else type(error).__name__
        raise DataError(f"{fault}: {reason}{advice}") from error


def _read_yaml(file: Path) -> Mapping[str, object]:
    import yaml

    with _usable(f"data set file {file} can't be read", "; set data to the path of a data.yaml"):
        text = file.read_text("utf-8")
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
    if isinstance(names, dict):
        if sorted(names, key=str) != sorted(range(len(names)), key=str):
            raise DataError(
                f"data set file {file} numbers its classes {list(names)}, "
                f"expected 0 to {len(names) - 1}"
            )
        names = [names[number] for number in range(len(names))]
    if names is None and isinstance(count, int):
        names = list(range(count))
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


def _list_pictures(
    content: Mapping[str, object], split: str, root: Path, file: Path
) -> tuple[Path, ...]:
    value = content.get(split)
    given = value if isinstance(value, list) else [value]
    entries = [entry for entry in given if isinstance(entry, str) and entry]
    if not entries or len(entries) < len(given):
        raise DataError(f"data set file {file} has no {split}, expected a folder or a list file")
    pictures: list[Path] = []
    whose = f"{split} pictures of data set {file}"
    for entry in entries:
        with _usable(f"{whose} can't be found: {entry[:300]} is not a path"):
            pictures += _pictures_at(root, entry, whose)
    if not pictures:
        raise DataError(f"{split} split of data set {file} is empty: no pictures in {value}")
    return tuple(sorted(set(pictures)))


def _pictures_at(root: Path, entry: str, whose: str) -> list[Path]:
    place = (root / entry).resolve()
    # Exports of some label tools count from a sub-folder: "../train/images".
    if not place.exists() and entry.startswith("../"):
        place = (root / entry[3:]).resolve()
    if place.is_dir():
        return [path for path in place.rglob("*") if path.suffix.lower() in SUFFIXES]
    if not place.is_file():
        raise DataError(f"{whose} are missing: {place} does not exist")
    if place.suffix.lower() != ".txt":  # the error would show the content of any other file
        raise DataError(f"{whose} are {place}, expected a folder or a .txt file")
    with _usable(f"list file {place} can't be read"):
        lines = [line.strip() for line in place.read_text("utf-8-sig").splitlines()]
        paths = [(place.parent / line).resolve() for line in lines if line]
    missing = next((path for path in paths if not path.is_file()), None)
    if missing is not None:
        raise DataError(f"list file {place} names {missing}, which does not exist")
    return [path for path in paths if path.suffix.lower() in SUFFIXES]


@cached_while_unchanged
def _main_classes(paths: Sequence[Path], numbers: Sequence[int]) -> np.ndarray:
    # Labels that can't be used are reported once, where the pictures are loaded.
    return np.array([main_class(usable_boxes(path, numbers)) for path in paths], int)


def _dirichlet_shares(
    classes: np.ndarray, num_partitions: int, *, alpha: float, seed: int
) -> list[list[int]]:
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
