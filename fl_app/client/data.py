# SPDX-License-Identifier: Apache-2.0
"""The pictures of a node: its own or a partition, what it holds out, and their digests.

Nothing is written to the user's data folder. A data.yaml is read in `fl_app.client.data_yaml`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from fl_app.client.clips import by_clip, clips_of, held_out
from fl_app.client.data_yaml import HOLDOUT_EVERY, DataError, load_data_spec, usable
from fl_app.client.file_memory import FileMemory, memory_of
from fl_app.client.generated_shapes import shapes_data
from fl_app.config import ClientConfig, Partitioning, ServerConfig, absolute_data
from fl_models.classes import ClassError, name_differences
from fl_models.pictures import (
    DataSpec,
    cached_while_unchanged,
    label_file,
    main_class,
    usable_boxes,
)
from fl_registry import app_home

_NOTHING = hashlib.sha256(b"none").hexdigest()


@dataclass(frozen=True)
class NodeData:
    """The pictures of one node.

    Parameters
    ----------
    spec : DataSpec
        Pictures to train on and pictures to evaluate on; no picture is in both.
    digest : str
        SHA-256 over all of them, their labels and the names of their classes.
    notes : tuple[str, ...]
        What was left out or held out, and what training does without.
    """

    spec: DataSpec
    digest: str
    notes: tuple[str, ...] = ()


def generated_data(home: Path, num_classes: int | None = None) -> DataSpec:
    """Return the generated data set below the app's folder; generate it if it does not exist.

    Raises
    ------
    DataError
        The disk is full, or the class count differs.
    """
    advice = "; make room there, or set data to a data.yaml of your own"
    with usable(f"the generated data set can't be written below {home}", advice):
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
        path = absolute_data(config.data)
        return load_data_spec(path, num_classes, holdout_every=config.holdout_every)
    return generated_data(home, num_classes)


def load_node_data(config: ClientConfig, names: Sequence[str]) -> NodeData:
    """Return this node's pictures: its partition, or all of its own data set.

    A simulated node has a partition and holds out one picture in ``holdout-every`` of it for
    evaluation. A node with data of its own trains on the `train` split and evaluates on `val`. Its
    labels get the server's class numbers, by name.

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
        train, holdout = split_holdout(
            share,
            clips=dict(zip(own.train, own.clips, strict=True)),
            every=config.holdout_every,
        )
        own = replace(own, train=train, val=holdout, val_clips=())
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
            f"its classes are not the server's: {error}; correct the names in its data.yaml{advice}"
        ) from None
    store = memory_of(home, "digests", own.root)
    digest = _digest((*own.train, *own.val), own, store)
    unmatched = _unmatched(own.names, names)
    return NodeData(spec, digest, (*own.notes, *([unmatched] if unmatched else [])))


def _unmatched(own: Sequence[str], names: Sequence[str]) -> str:
    """Return what a node with other classes than the server's trains without; else empty."""
    difference = name_differences(own, names)
    return difference and (
        f"its classes are not all the server's: {difference}; boxes of classes that the server "
        "lacks are left out, and objects of those that the node lacks are background"
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

    All shares together are the whole training split, and no two overlap. The pictures of one clip
    are in one share, if there are two clips at least for each. The same arguments give the same
    share on every node.

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
    units = by_clip(spec.clips)
    if len(units) < 2 * num_partitions:
        units = [[index] for index in range(len(spec.train))]
    if kind == "iid":
        shares = _equal_shares([len(unit) for unit in units], num_partitions, seed=seed)
    else:
        classes = _main_classes(spec.train, spec.numbers, spec.keypoints)
        most = [int(np.bincount(classes[unit] + 1).argmax()) for unit in units]
        shares = _dirichlet_shares(np.array(most), num_partitions, alpha=alpha, seed=seed)
    # Small shares take from the largest: clips are held out whole, so two are needed.
    least = 2 if len(units) < len(spec.train) else 1
    for share in shares:
        while len(share) < least < len(largest := max(shares, key=len)):
            share.append(largest.pop())
    if not shares[partition_id]:
        raise DataError(
            f"partition {partition_id} of {num_partitions} is empty: the data set has "
            f"{len(spec.train)} training pictures, use fewer partitions or more data"
        )
    chosen = [index for unit in shares[partition_id] for index in units[unit]]
    return [spec.train[index] for index in sorted(chosen)]


def split_holdout(
    paths: Sequence[Path], *, clips: Mapping[Path, str] | None = None, every: int = HOLDOUT_EVERY
) -> tuple[tuple[Path, ...], tuple[Path, ...]]:
    """Split a share into pictures to train on and pictures to evaluate on (one in ``every``).

    Parameters
    ----------
    paths : Sequence[Path]
        The share.
    clips : Mapping[Path, str] | None
        The clip of each picture, which is in one part as a whole; by default as its name says.
    every : int
        See `held_out`.

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
    of_each = [clips[path] for path in paths] if clips is not None else clips_of(paths, {})
    held = set(held_out(of_each, every))
    train = tuple(path for index, path in enumerate(paths) if index not in held)
    return train, tuple(paths[index] for index in sorted(held))


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def data_digest(
    paths: Iterable[Path],
    data: DataSpec,
    digest_of: Callable[[Path], str] = file_digest,
) -> str:
    """Return a SHA-256 of the names and contents of pictures and labels, in any order.

    Folders are not included, so the same data has the same digest on every machine. The classes of
    the data set that they belong to are: they say what the numbers in the labels mean.

    Parameters
    ----------
    digest_of : Callable[[Path], str]
        Returns the SHA-256 of a file, in hexadecimal.
    """
    rows = [json.dumps([data.names, data.numbers]).encode()]
    for path in paths:
        # What can't be read has a digest too: it is skipped where pictures are decoded.
        digests = b""
        for file in (path, label_file(path)):
            try:
                digests += bytes.fromhex(digest_of(file))
            except OSError:
                digests += bytes.fromhex(_NOTHING)
        rows.append(path.name.encode("utf-8", "surrogateescape") + b"\0" + digests)
    return hashlib.sha256(b"".join(sorted(rows))).hexdigest()


@cached_while_unchanged
def _digest(paths: Sequence[Path], data: DataSpec, store: Path) -> str:
    with FileMemory(store) as memory:
        return data_digest(paths, data, lambda path: memory.of(path, file_digest))


@cached_while_unchanged
def _main_classes(paths: Sequence[Path], numbers: Sequence[int], keypoints: int) -> np.ndarray:
    # Labels that can't be used are reported once, where the pictures are loaded.
    return np.array([main_class(usable_boxes(path, numbers, keypoints)) for path in paths], int)


def _equal_shares(sizes: Sequence[int], num_partitions: int, *, seed: int) -> list[list[int]]:
    """Return shares of units with these numbers of pictures, about equal in pictures."""
    order = np.random.default_rng(seed).permutation(len(sizes))
    ends = np.cumsum(np.array(sizes)[order])
    pictures, more = divmod(int(ends[-1]), num_partitions)
    cuts = [n * pictures + min(n, more) for n in range(1, num_partitions)]
    return [part.tolist() for part in np.split(order, np.searchsorted(ends, cuts, side="right"))]


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
    return shares
