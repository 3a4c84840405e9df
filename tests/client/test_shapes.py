# SPDX-License-Identifier: Apache-2.0
"""The generated set: the same everywhere, drawn once."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest

from fl_app.client.data import data_digest
from fl_app.client.data_yaml import load_data_spec
from fl_app.client.generated_shapes import NAMES, shapes_data
from fl_models.decoding import read_pictures


def draw(home: Path) -> Path:
    return shapes_data(home, train=10, val=2, image_size=32, seed=3)


def test_it_is_a_data_set_with_all_classes(shapes_yaml: Path) -> None:
    spec = load_data_spec(shapes_yaml, 7)
    pictures = read_pictures((*spec.train, *spec.val), range(7))
    assert spec.names == NAMES
    assert len(pictures) == 30
    assert {p.shape for p in pictures} == {(64, 64)}
    assert all(1 <= len(p.boxes) <= 3 for p in pictures)
    assert set(np.concatenate([p.boxes[:, 0] for p in pictures])) == set(range(7))


def test_boxes_lie_around_the_shapes(shapes_yaml: Path) -> None:
    from PIL import Image

    for picture in read_pictures(load_data_spec(shapes_yaml, 7).val, range(7)):
        pixels = np.asarray(Image.open(picture.path), float)
        ground = np.median(pixels.reshape(-1, 3), axis=0)
        outside = np.ones((64, 64), bool)
        for _, x, y, w, h in picture.boxes * 64:
            rows = slice(max(0, int(y - h / 2)), int(y + h / 2) + 1)
            columns = slice(max(0, int(x - w / 2)), int(x + w / 2) + 1)
            outside[rows, columns] = False
        assert np.abs(pixels[outside].mean(axis=0) - ground).max() < 6


def test_a_seed_gives_the_same_pictures_and_another_seed_others(tmp_path: Path) -> None:
    digests = []
    for home, seed in [("a", 3), ("b", 3), ("c", 4)]:
        file = shapes_data(tmp_path / home, train=4, val=2, image_size=32, seed=seed)
        spec = load_data_spec(file, 7)
        digests.append(data_digest([*spec.train, *spec.val], spec))
    assert digests[0] == digests[1] != digests[2]


def test_it_is_drawn_once(tmp_path: Path) -> None:
    file = draw(tmp_path)
    times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert draw(tmp_path) == file
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == times


def test_several_processes_may_ask_at_once(tmp_path: Path) -> None:
    with ProcessPoolExecutor(4, mp_context=get_context("spawn")) as pool:
        files = set(pool.map(draw, [tmp_path] * 4))
    assert len(files) == 1
    assert [p.name for p in (tmp_path / "data").iterdir()] == [files.pop().parent.name]


def test_an_interrupted_draft_is_not_taken_for_the_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full_disk(*args: object, **kwargs: object) -> None:
        raise OSError("no space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("PIL.Image.Image.save", full_disk)
        with pytest.raises(OSError, match="no space"):
            draw(tmp_path)
    assert not list((tmp_path / "data").iterdir())
    assert len(load_data_spec(draw(tmp_path), 7).train) == 10
