# SPDX-License-Identifier: AGPL-3.0-or-later
"""mAP from what was found in each picture: Ultralytics' own, on the set and on any sample of it."""

from __future__ import annotations

import numpy as np
import pytest
from ultralytics.utils.metrics import ap_per_class

from fl_models.holdout import Holdout
from fl_models.map_results import Matches
from fl_models.pictures import DataSpec
from fl_models.yolo import YoloModel

SIDE, PICTURES = 64, 25


@pytest.fixture(scope="module")
def found() -> Matches:
    """Boxes in 7 classes, the last never true; some matched to true ones at rising IoUs."""
    random = np.random.default_rng(4)
    count, true = 900, 150
    picture, category = random.integers(0, PICTURES, count), random.integers(0, 7, count)
    true_picture, true_category = random.integers(0, PICTURES, true), random.integers(0, 6, true)
    right = np.zeros((count, 10), bool)
    left: dict[tuple[int, int], int] = {}
    for key in zip(true_picture.tolist(), true_category.tolist(), strict=True):
        left[key] = left.get(key, 0) + 1
    for box in range(count):
        key = (int(picture[box]), int(category[box]))
        if left.get(key, 0) and random.random() < 0.6:
            left[key] -= 1
            right[box, : random.integers(1, 11)] = True
    conf = random.random(count)
    names = [*"abcdefg"]
    return Matches(PICTURES, picture, category, conf, right, true_picture, true_category, names)


def expected(found: Matches, counts: np.ndarray) -> np.ndarray:
    """AP by class and IoU as Ultralytics has it, with each picture as often as it was drawn."""
    times = counts.astype(int)
    order = np.argsort(-found.conf, kind="stable")
    boxes = np.repeat(order, times[found.picture[order]])
    true = np.repeat(found.true_category, times[found.true_picture])
    conf = np.linspace(1, 0.5, len(boxes))  # copies of a box stay together
    ap: np.ndarray = ap_per_class(found.right[boxes], conf, found.category[boxes], true)[5]
    return ap


def test_any_sample_of_the_pictures_is_scored_as_ultralytics_would(found: Matches) -> None:
    random = np.random.default_rng(6)
    drawn = random.multinomial(PICTURES, np.full(PICTURES, 1 / PICTURES), 20)
    counts = np.vstack([np.ones(PICTURES), drawn]).astype(np.float32)
    ap = [expected(found, row) for row in counts]
    map50, map50_95 = (found.resampled(name, counts) for name in ("mAP50", "mAP50-95"))
    assert map50 == pytest.approx([each[:, 0].mean() for each in ap], abs=1e-5)
    assert map50_95 == pytest.approx([each.mean() for each in ap], abs=1e-5)
    one = found.resampled("mAP50/b", counts)
    assert one is not None
    assert one[0] == pytest.approx(ap[0][1, 0], abs=1e-5)


def test_what_it_cannot_score_is_none(found: Matches) -> None:
    counts = np.ones((1, PICTURES))
    for name in ("precision", "mAP50/g", "mAP50/whale", "precision/a"):
        assert found.resampled(name, counts) is None


def test_pictures_without_boxes_score_nothing_and_break_nothing() -> None:
    none, box = np.zeros(0, int), np.zeros(1, int)
    blank = Matches(3, none, none, none, np.zeros((0, 10), bool), box, box, ["a"])
    counts = np.array([[1, 1, 1], [0, 3, 0]], np.float32)
    scored = blank.resampled("mAP50", counts)
    assert scored is not None
    assert scored[0] == 0
    assert np.isnan(scored[1])  # no true box was drawn


def test_the_holdout_keeps_what_each_model_found(
    lively_model: YoloModel, labelled_by_model: DataSpec
) -> None:
    holdout = Holdout(labelled_by_model, image_size=SIDE, batch_size=3)
    scores = holdout(lively_model)
    first, ones = holdout.matches, np.ones((1, len(holdout)))
    for name in ("mAP50", "mAP50-95"):
        assert first.resampled(name, ones) == pytest.approx(scores[name], abs=1e-5)
    for name, score in holdout.per_class().items():
        assert first.resampled(f"mAP50/{name}", ones) == pytest.approx(score, abs=1e-5)
    assert holdout.per_class("loss") == {}
    holdout(lively_model)
    assert first.resampled("mAP50", ones) == pytest.approx(scores["mAP50"], abs=1e-5)
