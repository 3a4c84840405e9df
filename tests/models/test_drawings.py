# SPDX-License-Identifier: AGPL-3.0-or-later
"""Pages of pictures: what is on them, which letters they need, and what they leave as it was."""

from __future__ import annotations

import random
import socket
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from fl_app.client.data_yaml import load_data_spec
from fl_app.client.generated_shapes import shapes_data
from fl_app.config import ServerConfig
from fl_app.strategy.records import SessionReport
from fl_app.yolo import YoloOnServer
from fl_models import drawings
from fl_models.drawings import draw_predictions, draw_training_batch
from fl_models.pictures import DataSpec, PictureError, label_file, read_boxes
from fl_models.yolo import YoloModel
from fl_registry.files.weights import save_weights

SIDE, CONF = 64, 0.02


@pytest.fixture
def page(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that are drawn."""
    drawn = list[Figure]()

    class Seen(Figure):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            drawn.append(self)

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a page needs no network")

    monkeypatch.setattr(drawings, "Figure", Seen)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    return drawn


def texts(figure: Figure, number: int) -> list[str]:
    return [text.get_text() for text in figure.axes[number].texts]


def boxes(figure: Figure, number: int) -> list[Rectangle]:
    return [each for each in figure.axes[number].patches if isinstance(each, Rectangle)]


@pytest.mark.parametrize("name", ["grid.png", "grid.jpg"])
def test_labels_and_detections_stand_beside_each_other(
    name: str,
    lively_model: YoloModel,
    labelled_by_model: DataSpec,
    tmp_path: Path,
    page: list[Figure],
) -> None:
    draw_predictions(
        lively_model, labelled_by_model, tmp_path / name, title="version 8", conf=CONF, imgsz=SIDE
    )
    (figure,) = page
    assert figure.get_suptitle() == "version 8, 8 of 8 holdout pictures, confidence from 0.02"
    assert len(figure.axes) == 16
    first = labelled_by_model.val[0]
    titles = [axes.get_title(loc="left") for axes in figure.axes[:2]]
    assert titles == [f"{first.name}: labels", f"{first.name}: detected"]
    true = read_boxes(first, labelled_by_model.numbers)
    assert len(boxes(figure, 0)) == len(true)
    found = lively_model.predict(first, conf=CONF, imgsz=SIDE)[0].boxes
    assert len(boxes(figure, 1)) == len(found)
    assert set(texts(figure, 0)) <= set(labelled_by_model.names)
    assert any("class " in text and "0.0" in text for text in texts(figure, 1))
    (legend,) = figure.legends
    assert all(" class " in text.get_text() for text in legend.get_texts())
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert cv2.imread(str(tmp_path / name)).std() > 10


def test_texts_do_not_lie_over_each_other(
    lively_model: YoloModel, labelled_by_model: DataSpec, tmp_path: Path, page: list[Figure]
) -> None:
    draw_predictions(lively_model, labelled_by_model, tmp_path / "a.png", conf=0.001, imgsz=SIDE)
    (figure,) = page
    shown = 0
    for axes in figure.axes:
        places = [text.get_window_extent() for text in axes.texts]
        shown += len(places)
        for number, place in enumerate(places):
            assert not any(place.overlaps(other) for other in places[:number])
            inside = axes.get_window_extent()
            assert place.y0 >= inside.y0 - 2
            assert place.x1 <= inside.x1 + 2
    assert shown > 30


def test_names_that_look_like_formulas_are_drawn_as_they_are(
    lively_model: YoloModel, labelled_by_model: DataSpec, tmp_path: Path, page: list[Figure]
) -> None:
    named = replace(labelled_by_model, names=tuple(f"$\\bad{n}$" for n in range(7)))
    draw_predictions(lively_model, named, tmp_path / "grid.png", title="$\\version$", imgsz=SIDE)
    assert texts(page[0], 0)[0].startswith("\\$\\bad")


def settings(**others: Any) -> dict[str, Any]:
    return {"imgsz": SIDE, "batch": 4, **others}


def test_a_training_batch_is_augmented_as_the_arguments_say(
    labelled_by_model: DataSpec, tmp_path: Path, page: list[Figure]
) -> None:
    plain = {"hsv_h": 0, "hsv_s": 0, "hsv_v": 0, "translate": 0, "scale": 0, "mosaic": 0}
    data = replace(labelled_by_model, train=labelled_by_model.val)
    draw_training_batch(data, settings(**plain, fliplr=0), tmp_path / "0.png")
    draw_training_batch(data, settings(**plain, fliplr=1), tmp_path / "1.png")
    draw_training_batch(data, settings(), tmp_path / "2.png")
    as_is, mirrored, mosaics = (
        [axes.images[0].get_array() for axes in figure.axes] for figure in page
    )
    decoded = cv2.imread(str(data.train[0]))[..., ::-1]
    np.testing.assert_array_equal(as_is[0], decoded)
    np.testing.assert_array_equal(mirrored[0], decoded[:, ::-1])
    assert not np.array_equal(mosaics[0], decoded)
    assert page[0].get_suptitle() == "8 training pictures as augmented in the first epoch"
    true = read_boxes(data.train[0], data.numbers)
    assert len(boxes(page[0], 0)) == len(true)


def test_a_training_batch_leaves_the_random_states_as_they_were(
    labelled_by_model: DataSpec, tmp_path: Path
) -> None:
    data = replace(labelled_by_model, train=labelled_by_model.val)

    def states() -> tuple[str, str, list[int]]:
        return str(random.getstate()), str(np.random.get_state()), torch.get_rng_state().tolist()

    before = states()
    draw_training_batch(data, settings(), tmp_path / "a.png", seed=1)
    draw_training_batch(data, settings(), tmp_path / "b.png", seed=1)
    draw_training_batch(data, settings(), tmp_path / "c.png", seed=2)
    assert states() == before
    a, b, c = ((tmp_path / f"{name}.png").read_bytes() for name in "abc")
    assert a == b != c


def test_pictures_that_are_gone_are_named(lively_model: YoloModel, tmp_path: Path) -> None:
    gone = DataSpec(tmp_path, (), (tmp_path / "gone.jpg",), tuple("0123456"))
    with pytest.raises(PictureError, match="none of 1 pictures can be drawn"):
        draw_predictions(lively_model, gone, tmp_path / "grid.png")
    assert not label_file(gone.val[0]).exists()


def test_a_session_with_the_default_settings_draws_all_of_its_pictures(
    home: Path, tmp_path: Path
) -> None:
    settings = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    config = ServerConfig.from_run_config(settings["tool"]["flwr"]["app"]["config"])
    spec = load_data_spec(shapes_data(home, train=24, val=6, image_size=96), None)
    yolo = YoloOnServer(config, spec)
    arrays = {name: array.numpy() for name, array in yolo.first_arrays().items()}
    save_weights(arrays, tmp_path / "w.safetensors", model=yolo.description)
    report = SessionReport((), "r", {}, "8", tmp_path / "w.safetensors")
    made = {path.name for make in yolo.artifacts for path in make(report, tmp_path)}
    assert {"predictions.png", "train_batch.png", "per_class.csv", "BoxPR_curve.png"} <= made
