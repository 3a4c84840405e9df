# SPDX-License-Identifier: Apache-2.0
"""Data set files, partitions and digests."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_app.client.data import data_digest, partition, split_holdout
from fl_app.client.data_yaml import DataError, load_data_spec
from fl_app.config import Partitioning
from fl_models.pictures import DataSpec, label_file, read_boxes

NAMES = "names: [circle, square, triangle, star, cross, ring, diamond]\n"


def test_a_data_set_is_listed(shapes: DataSpec, shapes_yaml: Path) -> None:
    assert shapes.root == shapes_yaml.parent
    assert shapes.names[0] == "circle"
    assert (shapes.nc, len(shapes.train), len(shapes.val)) == (7, 24, 6)
    assert all(path.is_absolute() for path in shapes.train)
    assert list(shapes.train) == sorted(shapes.train)


@pytest.mark.parametrize(
    "text",
    [
        "path: .\ntrain: images/train\nval: images/val\n",
        "train: [images/train]\nval: [images/val]\n",
        "train: ../images/train\nval: ../images/val\n",
        "train: train.txt\nval: images/val\n",
        "path: {root}\ntrain: images/train\nval: {root}/images/val\n",
    ],
)
def test_splits_are_folders_or_lists(own_yaml: Path, shapes: DataSpec, text: str) -> None:
    listed = "".join(f"./images/train/{path.name}\n" for path in shapes.train)
    own_yaml.with_name("train.txt").write_text(listed)
    own_yaml.write_text(text.format(root=own_yaml.parent) + NAMES)
    spec = load_data_spec(own_yaml, 7)
    assert [path.name for path in spec.train] == [path.name for path in shapes.train]
    assert len(spec.val) == 6


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("train: images/train\nval: images/val\nnames: [a, b]\n", "has 2 classes, expected 7"),
        ("train: images/train\nval: images/val\nnc: 7\nnames: [a]\n", "says nc: 7, but has 1"),
        ("train: images/train\nval: images/val\n", "has no class names"),
        ("train: images/train\nval: images/val\nnames: {1: a, 2: b}\n", "numbers its classes"),
        (
            "train: images/train\nval: images/val\nnames: [a, b, a, c, b]\n",
            "several classes of the name 'a', 'b', expected a name of its own",
        ),
        ("train: nowhere\nval: images/val\n" + NAMES, "train pictures .* are missing: .*nowhere"),
        ("train: images/train\nval: 3\n" + NAMES, "has no val"),
        ("train: 3\nval: images/val\n" + NAMES, "has no train"),
        ("train: labels/train\nval: images/val\n" + NAMES, "train split of .* is empty"),
        ("train: list.txt\nval: images/val\n" + NAMES, "names .*gone.jpg, which does not exist"),
        ("- a\n- b\n", "holds no keys"),
        ("train: [\n", "is no valid YAML"),
    ],
)
def test_a_bad_data_set_is_one_sentence(own_yaml: Path, text: str, sentence: str) -> None:
    own_yaml.write_text(text)
    own_yaml.with_name("list.txt").write_text("images/train/gone.jpg\n")
    with pytest.raises(DataError, match=sentence) as caught:
        load_data_spec(own_yaml, 7)
    assert "\n" not in str(caught.value)


def test_a_missing_data_set_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere\.yaml can't be read: No such file"):
        load_data_spec(tmp_path / "nowhere.yaml", 7)


kinds = st.sampled_from(["iid", "dirichlet"])


@settings(max_examples=60, deadline=None)
@given(
    num_partitions=st.integers(1, 24),
    kind=kinds,
    alpha=st.floats(0.01, 100),
    seed=st.integers(0, 2**31),
)
def test_partitions_cover_the_training_split_without_overlap(
    shapes: DataSpec, num_partitions: int, kind: Partitioning, alpha: float, seed: int
) -> None:
    def share(number: int) -> list[Path]:
        return partition(
            shapes,
            num_partitions=num_partitions,
            partition_id=number,
            kind=kind,
            alpha=alpha,
            seed=seed,
        )

    shares = [share(number) for number in range(num_partitions)]
    assert all(shares)
    assert sorted(path for paths in shares for path in paths) == list(shapes.train)
    assert shares[-1] == share(num_partitions - 1)
    if kind == "iid":
        sizes = [len(paths) for paths in shares]
        assert max(sizes) - min(sizes) <= 1


def test_a_small_alpha_is_skewed_and_a_large_one_is_not(tmp_path: Path) -> None:
    spec = _labelled(tmp_path, [number % 7 for number in range(140)])

    def largest_share_of_a_class(alpha: float) -> float:
        shares = [
            partition(spec, num_partitions=4, partition_id=i, kind="dirichlet", alpha=alpha)
            for i in range(4)
        ]
        counts = [Counter(int(read_boxes(p, range(7))[0, 0]) for p in share) for share in shares]
        return float(np.mean([max(c[k] for c in counts) / 20 for k in range(7)]))

    assert largest_share_of_a_class(0.05) > 0.6
    assert largest_share_of_a_class(1000) < 0.35


def test_background_pictures_are_shared_out_too(tmp_path: Path) -> None:
    spec = _labelled(tmp_path, [0, 1, None, None, None])
    shares = [
        partition(spec, num_partitions=2, partition_id=i, kind="dirichlet", alpha=0.1)
        for i in range(2)
    ]
    assert sorted(shares[0] + shares[1]) == list(spec.train)


def _labelled(folder: Path, classes: list[int | None]) -> DataSpec:
    (folder / "labels").mkdir()
    paths = [folder / "images" / f"{number:03d}.jpg" for number in range(len(classes))]
    for path, number in zip(paths, classes, strict=True):
        if number is not None:
            label_file(path).write_text(f"{number} 0.5 0.5 0.2 0.2\n")
    return DataSpec(folder, tuple(paths), (), tuple("abcdefg"))


@pytest.mark.parametrize("kind", ["iid", "dirichlet"])
def test_more_partitions_than_pictures_leave_some_empty(
    shapes: DataSpec, kind: Partitioning
) -> None:
    few = replace(shapes, train=shapes.train[:3])
    sizes, reasons = [], []
    for number in range(5):
        try:
            sizes.append(len(partition(few, num_partitions=5, partition_id=number, kind=kind)))
        except DataError as error:
            reasons.append(str(error))
    assert sizes == [1, 1, 1]
    assert all("is empty: the data set has 3 training pictures" in text for text in reasons)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"partition_id": 2}, "partition 2 does not exist, expected 0 to 1"),
        ({"partition_id": -1}, "partition -1 does not exist"),
    ],
)
def test_bad_partition_arguments(
    shapes: DataSpec, change: dict[str, object], sentence: str
) -> None:
    arguments: dict[str, object] = {"num_partitions": 2, "partition_id": 0, **change}
    with pytest.raises(DataError, match=sentence):
        partition(shapes, **arguments)  # type: ignore[arg-type]


@given(size=st.integers(2, 300))
def test_every_tenth_picture_is_held_out(size: int) -> None:
    paths = [Path(f"{number}.jpg") for number in range(size)]
    train, holdout = split_holdout(paths)
    assert sorted([*train, *holdout]) == sorted(paths)
    assert not set(train) & set(holdout)
    assert len(holdout) == -(-size // 10)
    assert train


def test_a_share_of_one_picture_cannot_be_split() -> None:
    with pytest.raises(DataError, match="share of 1 pictures can't be split"):
        split_holdout([Path("a.jpg")])


def test_the_digest_sees_pictures_labels_and_names_but_no_folders_and_no_order(
    own_yaml: Path, shapes: DataSpec
) -> None:
    own = load_data_spec(own_yaml, 7).train
    digest = data_digest(own, shapes)
    assert digest == data_digest(shapes.train, shapes) == data_digest(reversed(own), shapes)
    assert digest != data_digest(own[1:], shapes)
    assert digest != data_digest(own, replace(shapes, names=shapes.names[::-1]))
    label_file(own[0]).write_text("")
    emptied = data_digest(own, shapes)
    label_file(own[0]).unlink()
    assert len({digest, emptied, data_digest(own, shapes)}) == 3
    own[1].write_bytes(own[1].read_bytes() + b"\0")
    assert data_digest(own[1:2], shapes) != data_digest(shapes.train[1:2], shapes)


def test_a_file_that_is_no_list_is_not_read(tmp_path: Path) -> None:
    """What is in it would be told in the error, and sent to the server."""
    (tmp_path / "passwords").write_text("hunter2")
    (tmp_path / "data.yaml").write_text("train: passwords\nval: passwords\nnames: [a]")
    with pytest.raises(DataError, match=r"expected a folder or a \.txt file") as caught:
        load_data_spec(tmp_path / "data.yaml", 1)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("place", ["a\\0b", "x" * 300, "\\ud800"])
def test_what_is_no_path_is_told(tmp_path: Path, place: str) -> None:
    (tmp_path / "data.yaml").write_text(f'train: "{place}"\nval: "{place}"\nnames: [a]')
    with pytest.raises(DataError) as caught:
        load_data_spec(tmp_path / "data.yaml", 1)
    assert str(caught.value).isprintable()
