# SPDX-License-Identifier: Apache-2.0
"""Pictures as columns: what a camera does to them shows, and what can't be read costs nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from flwr.app import Context, RecordDict
from PIL import Image, ImageEnhance, ImageFilter

from fl_app.client.summary.pictures import (
    PIXEL_STATISTICS,
    _reference_folder,
    box_statistics,
    file_key,
    pixel_statistics,
)
from fl_app.config import ClientConfig
from fl_models.pictures import DataSpec


@pytest.fixture
def picture(shapes: DataSpec) -> Image.Image:
    with Image.open(shapes.train[0]) as file:
        return file.convert("RGB")


def statistics(picture: Image.Image, folder: Path) -> dict[str, float]:
    picture.save(folder / "picture.png")
    return {k: float(v[0]) for k, v in pixel_statistics([folder / "picture.png"]).items()}


def test_blur_darkness_and_colour_move_their_own_statistic(
    picture: Image.Image, tmp_path: Path
) -> None:
    plain = statistics(picture, tmp_path)
    assert tuple(plain) == PIXEL_STATISTICS
    assert plain["red share"] + plain["green share"] + plain["blue share"] == pytest.approx(1)
    blurred = statistics(picture.filter(ImageFilter.GaussianBlur(3)), tmp_path)
    assert blurred["sharpness"] < plain["sharpness"] - 1
    assert blurred["edge share"] < plain["edge share"]
    dark = statistics(ImageEnhance.Brightness(picture).enhance(0.5), tmp_path)
    assert dark["brightness"] == pytest.approx(plain["brightness"] / 2, rel=0.05)
    grey = statistics(picture.convert("L"), tmp_path)
    assert grey["saturation"] == pytest.approx(0, abs=1e-3)


def test_a_picture_that_cannot_be_read_is_missing(tmp_path: Path, shapes: DataSpec) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    columns = pixel_statistics([tmp_path / "broken.jpg", shapes.train[0], tmp_path / "none.jpg"])
    for values in columns.values():
        assert np.isnan(values).tolist() == [True, False, True]


def test_boxes_are_counted_named_and_measured() -> None:
    boxes = np.array([[1, 0.5, 0.5, 0.4, 0.1], [1, 0.5, 0.5, 0.2, 0.2], [0, 0.5, 0.5, 0.3, 0.3]])
    columns = box_statistics([boxes, boxes[:0]], ["cat", "dog"])
    assert columns["boxes"].tolist() == [3, 0]
    assert columns["main class"].tolist() == ["dog", None]
    assert columns["box size"] == pytest.approx([0.2, np.nan], nan_ok=True)


@pytest.mark.parametrize("named", [False, True])
def test_a_reference_is_of_what_the_labels_mean(
    shapes: DataSpec, tmp_path: Path, *, named: bool
) -> None:
    """Counts of main classes under other names are never compared."""
    config = ClientConfig.from_run_config({"home": str(tmp_path)})
    node = {"data-summaries": str(tmp_path / "own")} if named else {}
    context = Context(7, 1, node, RecordDict(), {})

    def folder(spec: DataSpec) -> Path:
        return _reference_folder(context, config, spec)

    first, turned = shapes.names, shapes.names[::-1]
    assert folder(shapes) == folder(shapes.for_model(turned))  # another order of the server
    other = replace(shapes, names=turned)
    assert folder(shapes) != folder(other.for_model(first))  # the same labels mean something else
    assert folder(shapes).is_relative_to(tmp_path / ("own" if named else "summaries"))


def test_a_key_changes_with_the_file_and_not_otherwise(tmp_path: Path) -> None:
    file, label = tmp_path / "a.jpg", tmp_path / "a.txt"
    file.write_bytes(b"1")
    before = file_key(file, label)
    assert file_key(file, label) == before
    label.write_text("0 0.5 0.5 0.1 0.1\n")
    assert file_key(file, label) != before


@pytest.mark.parametrize("depth", ["png", "tif", "float", "float 0 to 1"])
def test_deeper_pictures_are_measured_as_they_are(
    picture: Image.Image, tmp_path: Path, depth: str
) -> None:
    grey = np.asarray(picture.convert("L"))
    scale = {"float": 1.0, "float 0 to 1": 1 / 255}.get(depth, 257)
    deep = grey.astype(np.float32 if depth.startswith("float") else np.uint16) * scale
    path = tmp_path / ("deep.png" if depth == "png" else "deep.tif")
    assert cv2.imwrite(str(path), deep)
    plain = statistics(picture.convert("L"), tmp_path)
    measured = {name: float(values[0]) for name, values in pixel_statistics([path]).items()}
    assert measured == pytest.approx(plain, rel=0.02, abs=0.02)
