# SPDX-License-Identifier: Apache-2.0
"""Pictures and labels as they lie on disk, good and bad."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fl_models.decoding import read_pictures
from fl_models.pictures import PictureError, label_file, read_boxes


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "images" / "a.jpg"
    path.parent.mkdir()
    (tmp_path / "labels").mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (20, 30, 3)).astype(np.uint8)
    Image.fromarray(noise).save(path)
    label_file(path).write_text("1 0.5 0.5 0.2 0.4\n")
    return path


def test_only_the_last_images_folder_becomes_labels() -> None:
    slashes = Path(os.sep, "images", "x", "images", "train", "a.b.jpg")
    assert label_file(slashes) == Path(os.sep, "images", "x", "labels", "train", "a.b.txt")


def test_boxes_and_shape_are_read(picture: Path) -> None:
    (read,) = read_pictures([picture], range(7))
    assert read.shape == (20, 30)
    assert read.boxes.dtype == np.float32
    assert read.boxes == pytest.approx(np.array([[1, 0.5, 0.5, 0.2, 0.4]]))


def test_polygons_become_boxes_and_repeated_rows_one(picture: Path) -> None:
    label_file(picture).write_text(
        "\ufeff2 0.1 0.1 0.3 0.1 0.3 0.5\n\n1 0.5 0.5 0.2 0.2\n1 0.5 0.5 0.2 0.2\n"
    )
    expected = np.array([[2, 0.2, 0.3, 0.2, 0.4], [1, 0.5, 0.5, 0.2, 0.2]])
    assert read_boxes(picture, range(7)) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("7 0.5 0.5 0.2 0.2", "class 7, expected 0 to 6"),
        ("-1 0.5 0.5 0.2 0.2", "class -1, expected 0 to 6"),
        ("1.5 0.5 0.5 0.2 0.2", "not a valid number"),
        ("nan 0.5 0.5 0.2 0.2", "not a valid number"),
        ("1 50 0.5 0.2 0.2", "coordinates outside the picture"),
        ("1 0.5 0.5 -0.2 0.2", "coordinates outside the picture"),
        ("1 0.5 0.5", "has 3 numbers"),
        ("1 0.5 0.5 0.2 0.2 0.9", "has 6 numbers"),
        ("cat 0.5 0.5 0.2 0.2", "can't be read"),
    ],
)
def test_a_bad_label_row_is_named(picture: Path, row: str, reason: str) -> None:
    label_file(picture).write_text(f"{row}\n")
    with pytest.raises(PictureError, match=reason):
        read_boxes(picture, range(7))


def test_bad_pictures_are_left_out_with_one_line_each(
    picture: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = picture.parent
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "text.png").write_text("no picture")
    (folder / "cut.jpg").write_bytes(picture.read_bytes()[:-300])
    Image.new("RGB", (5, 5)).save(folder / "tiny.png")
    bad = [folder / name for name in ("empty.jpg", "text.png", "cut.jpg", "tiny.png", "none.jpg")]
    with caplog.at_level(logging.WARNING):
        assert [p.path for p in read_pictures([*bad, picture], range(7))] == [picture]
    assert len(caplog.records) == len(bad)
    for path, record in zip(bad, caplog.records, strict=True):
        assert path.name in record.getMessage()
        assert "\n" not in record.getMessage()


def test_missing_labels_are_background_and_counted_in_one_line(
    picture: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other = picture.with_name("b.jpg")
    other.write_bytes(picture.read_bytes())
    with caplog.at_level(logging.WARNING):
        pictures = read_pictures([picture, other], range(7))
    assert [len(p.boxes) for p in pictures] == [1, 0]
    assert [r.getMessage() for r in caplog.records] == [
        "1 of 2 pictures have no label file and count as background; the first would be "
        f"{label_file(other)}"
    ]


def test_a_jpeg_with_bytes_after_its_end_is_used_as_it_is(picture: Path) -> None:
    longer = picture.read_bytes() + b"\0\0"
    picture.write_bytes(longer)
    assert len(read_pictures([picture], range(7))) == 1
    assert picture.read_bytes() == longer
