# SPDX-License-Identifier: AGPL-3.0-or-later
"""Scores on a holdout: Ultralytics' own figures, every time the same."""

from __future__ import annotations

import logging
import random
import shutil
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from support.arrays import to_arrays
from support.lively import SIDE, plain_validation

from fl_app.client.data_yaml import load_data_spec
from fl_models.holdout import Holdout
from fl_models.pictures import DataSpec, PictureError, read_boxes
from fl_models.yolo import YoloModel, from_arrays, get_model


@pytest.mark.usefixtures("no_fonts")
def test_scores_are_those_of_ultralytics(
    lively_model: YoloModel, labelled_by_model: DataSpec, tmp_path: Path
) -> None:
    holdout = Holdout(labelled_by_model, image_size=SIDE, batch_size=3)
    scores = holdout(lively_model)
    copied = shutil.copytree(labelled_by_model.root, tmp_path / "set")  # it writes a cache there
    plain = plain_validation(lively_model, copied / "data.yaml", tmp_path).metrics

    assert set(scores) == {"mAP50", "mAP50-95", "precision", "recall"}
    assert scores["mAP50"] > 0.1
    for name, value in scores.items():
        assert value == pytest.approx(plain.results_dict[f"metrics/{name}(B)"], abs=5e-5), name
    assert list(holdout.per_class().values()) == pytest.approx(list(plain.box.ap50), abs=5e-5)
    assert set(holdout.per_class()) <= set(labelled_by_model.names)


def test_the_next_weights_of_a_module_have_scores_of_their_own(
    lively_model: YoloModel, labelled_by_model: DataSpec
) -> None:
    holdout, given = Holdout(labelled_by_model, image_size=SIDE), to_arrays(lively_model)
    other = get_model("n", lively_model.nc, names=list(lively_model.names.values()), seed=99)
    scores = holdout(lively_model)
    with torch.no_grad():
        for weight in lively_model.parameters():
            weight.zero_()
    assert holdout(lively_model) != scores
    from_arrays(lively_model, given)
    assert holdout(lively_model) == scores
    assert holdout(other) == Holdout(labelled_by_model, image_size=SIDE)(other)
    assert holdout(lively_model) == scores


def test_a_module_whose_layers_were_exchanged_is_copied_anew(
    lively_model: YoloModel, labelled_by_model: DataSpec
) -> None:
    holdout = Holdout(labelled_by_model, image_size=SIDE)
    holdout(lively_model)
    lively_model.model[0].conv = torch.nn.Conv2d(3, 16, 5, 2, 2, bias=False)
    assert holdout(lively_model) == Holdout(labelled_by_model, image_size=SIDE)(lively_model)


@pytest.mark.parametrize("cached", [True, False])
def test_pictures_are_decoded_once_where_they_fit_into_memory(
    lively_model: YoloModel,
    labelled_by_model: DataSpec,
    tmp_path: Path,
    *,
    cached: bool,
) -> None:
    own = load_data_spec(
        Path(shutil.copytree(labelled_by_model.root, tmp_path / "own")) / "data.yaml", None
    )
    holdout = Holdout(own, image_size=SIDE, cache_bytes=1 << 20 if cached else 1000)
    scores = holdout(lively_model)
    shutil.rmtree(own.root)
    if cached:
        assert holdout(lively_model) == scores
    else:
        with pytest.raises(PictureError, match="none of the holdout pictures"):
            holdout(lively_model)


def test_a_picture_that_breaks_between_two_rounds_keeps_its_place(
    lively_model: YoloModel,
    labelled_by_model: DataSpec,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    own = load_data_spec(
        Path(shutil.copytree(labelled_by_model.root, tmp_path / "own")) / "data.yaml", None
    )
    clips = tuple(f"clip {number // 2}" for number in range(len(own.val)))
    own = replace(own, val_clips=clips)
    holdout = Holdout(own, image_size=SIDE, batch_size=2, cache_bytes=0)
    holdout(lively_model)
    whole = holdout.matches
    own.val[0].unlink()
    own.val[1].write_bytes(b"no picture")
    own.val[4].write_bytes(own.val[4].read_bytes()[:-300])
    scores, again = holdout(lively_model), [holdout(lively_model), len(holdout)]
    assert again == [scores, len(own.val) - 3]
    left, gone = holdout.matches, [0, 1, 4]
    assert len(left) == len(whole)
    assert left.groups == [*clips]
    for name in ("picture", "true_picture"):
        there = getattr(whole, name)
        assert getattr(left, name).tolist() == there[~np.isin(there, gone)].tolist()
    lines = [r.getMessage() for r in caplog.records if "can't be read any more" in r.getMessage()]
    assert len(lines) == 3
    rest = replace(own, val=tuple(p for i, p in enumerate(own.val) if i not in gone))
    assert Holdout(rest, image_size=SIDE, batch_size=2)(lively_model) == pytest.approx(scores)


def test_scores_are_repeatable_and_leave_the_model_alone(
    lively_model: YoloModel, labelled_by_model: DataSpec
) -> None:
    holdout = Holdout(labelled_by_model, image_size=SIDE)
    before = to_arrays(lively_model)
    lively_model.train()
    first, second = holdout(lively_model), holdout(lively_model)
    assert first == second
    assert lively_model.training
    assert all((before[k] == v).all() for k, v in to_arrays(lively_model).items())
    loss, _ = lively_model_loss(lively_model)
    loss.backward()  # an inference tensor left behind would raise here
    lively_model.zero_grad()
    lively_model.eval()


def test_scores_and_pictures_draw_nothing_from_the_global_generators(
    lively_model: YoloModel, labelled_by_model: DataSpec, tmp_path: Path
) -> None:
    before = global_states()
    holdout = Holdout(labelled_by_model, image_size=SIDE)
    holdout(lively_model)
    holdout.plot(lively_model, tmp_path)
    get_model("n", 2, seed=1)
    assert global_states() == before


def global_states() -> tuple[str, str, str]:
    found = random.getstate(), np.random.get_state(), torch.get_rng_state().tolist()
    return str(found[0]), str(found[1]), str(found[2])


def lively_model_loss(model: YoloModel) -> tuple[torch.Tensor, object]:
    from ultralytics.cfg import get_cfg

    model.args = get_cfg()
    batch = {
        "img": torch.rand(2, 3, SIDE, SIDE),
        "cls": torch.tensor([[1.0]]),
        "bboxes": torch.tensor([[0.5, 0.5, 0.2, 0.2]]),
        "batch_idx": torch.tensor([0.0]),
    }
    loss, parts = model(batch)
    return loss.sum(), parts


def test_a_slow_machine_gets_the_same_scores(
    lively_model: YoloModel, labelled_by_model: DataSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    holdout = Holdout(labelled_by_model, image_size=SIDE)
    expected, seconds = holdout(lively_model), iter(range(0, 10**9, 3600))
    monkeypatch.setattr("ultralytics.utils.nms.time.time", lambda: float(next(seconds)))
    assert holdout(lively_model) == expected


def test_an_untrained_model_scores_near_zero(labelled_by_model: DataSpec) -> None:
    scores = Holdout(labelled_by_model, image_size=SIDE)(get_model("n", 7, seed=0))
    assert scores["mAP50"] < 0.05


def test_broken_pictures_are_left_out_and_named(
    lively_model: YoloModel,
    labelled_by_model: DataSpec,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no picture")
    spec = replace(labelled_by_model, val=(*labelled_by_model.val, broken))
    with caplog.at_level(logging.WARNING):
        holdout = Holdout(spec, image_size=SIDE)
    assert len(holdout) == len(labelled_by_model.val)
    assert [record.message for record in caplog.records if "broken.jpg" in record.message]
    with pytest.raises(ValueError, match="none of the 1 holdout pictures"):
        Holdout(replace(spec, val=(broken,)), image_size=SIDE)


def test_nothing_is_written_beside_the_labels(
    lively_model: YoloModel, labelled_by_model: DataSpec
) -> None:
    before = sorted(labelled_by_model.root.rglob("*"))  # other tests have Ultralytics score it
    Holdout(labelled_by_model, image_size=SIDE)(lively_model)
    assert sorted(labelled_by_model.root.rglob("*")) == before


def test_curves_and_confusion_matrices_are_ultralytics_own(
    lively_model: YoloModel, labelled_by_model: DataSpec, tmp_path: Path
) -> None:
    holdout = Holdout(labelled_by_model, image_size=SIDE)
    scores = holdout(lively_model)
    drawn = holdout.plot(lively_model, tmp_path)
    names = [*(f"Box{kind}_curve.png" for kind in ("F1", "PR", "P", "R"))]
    names += ["confusion_matrix.png", "confusion_matrix_normalized.png"]
    assert {path.name for path in drawn} == set(names)
    assert all(cv2.imread(str(path)).std() > 1 for path in drawn)
    assert {path.name for path in tmp_path.iterdir()} == set(names)
    rows = holdout.table()
    for metric in ("precision", "recall", "mAP50", "mAP50-95"):
        values = [row[metric] for row in rows]
        assert np.mean(values) == pytest.approx(scores[metric], abs=1e-4)  # five digits each
    boxes = [read_boxes(path, labelled_by_model.numbers) for path in labelled_by_model.val]
    assert sum(row["instances"] for row in rows) == sum(map(len, boxes))
    assert all(type(value) in (str, int, float) for row in rows for value in row.values())
    assert holdout(lively_model) == scores  # and nothing is drawn
    assert {path.name for path in tmp_path.iterdir()} == set(names)
