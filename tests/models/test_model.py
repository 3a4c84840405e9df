# SPDX-License-Identifier: AGPL-3.0-or-later
"""Building the model, predicting with it, and moving its arrays."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from support.arrays import to_arrays
from ultralytics.engine.results import Results
from ultralytics.models.yolo.detect import DetectionPredictor
from ultralytics.nn.tasks import DetectionModel

from fl_models.pictures import DataSpec
from fl_models.yolo import ModelMismatchError, YoloModel, from_arrays, get_model

SIDE = 64


@pytest.fixture(scope="module")
def model() -> YoloModel:
    return get_model("n", 7, seed=0)


def test_the_state_dict_is_that_of_ultralytics(model: YoloModel) -> None:
    plain = DetectionModel("yolov8n.yaml", nc=7, verbose=False)
    state = model.state_dict()
    assert len(state) == 355
    assert list(state) == list(plain.state_dict())
    plain.load_state_dict(state, strict=True)
    model.load_state_dict(plain.state_dict(), strict=True)


def test_batch_norm_follows_short_rounds(model: YoloModel) -> None:
    momenta = {m.momentum for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)}
    assert momenta == {0.1}


def test_a_seed_gives_the_same_weights_and_leaves_torch_alone() -> None:
    before = torch.random.get_rng_state()
    first, second = to_arrays(get_model(seed=4)), to_arrays(get_model(seed=4))
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(np.array_equal(first[name], second[name]) for name in first)
    other = to_arrays(get_model(seed=5))
    assert not np.array_equal(first["model.0.conv.weight"], other["model.0.conv.weight"])


def test_names_and_classes() -> None:
    model = get_model("n", 2, names=["cat", "dog"])
    assert model.names == {0: "cat", 1: "dog"}
    with pytest.raises(ValueError, match="2 names were given for 3 classes"):
        get_model("n", 3, names=["cat", "dog"])
    with pytest.raises(ValueError, match="model 'z' is unknown: known are yolov8n"):
        get_model("z")
    with pytest.raises(ValueError, match="at least 1"):
        get_model("n", 0)


def test_pretrained_weights_of_another_class_count_fit_but_for_the_class_branch() -> None:
    donor = to_arrays(get_model("n", 80, seed=1))
    model = get_model("n", 7, weights=donor, seed=2)
    same = [name for name, array in to_arrays(model).items() if np.array_equal(array, donor[name])]
    assert len(to_arrays(model)) == 355
    assert len(same) >= 319
    with pytest.raises(ValueError, match="of 355 arrays don't fit yolov8n"):
        get_model(weights={"other": np.zeros(3)})


def test_predict_takes_an_array_a_path_or_a_list(
    lively_model: YoloModel, labelled_by_model: DataSpec, tmp_path: Path
) -> None:
    import cv2

    paths = list(labelled_by_model.val[:2])
    pixels = cv2.imread(str(paths[0]))
    by_path = lively_model.predict(paths[0], conf=0.01)
    by_text = lively_model.predict(str(paths[0]), conf=0.01)
    by_array = lively_model.predict(pixels, conf=0.01)
    by_list = lively_model.predict([pixels, paths[1]], conf=0.01)
    assert isinstance(by_path[0], Results)
    assert len(by_path[0].boxes) > 0
    assert by_path[0].path == str(paths[0])
    for same in (by_text, by_array, by_list):
        assert torch.equal(same[0].boxes.data, by_path[0].boxes.data)
    assert len(by_list) == 2
    assert not by_path[0].boxes.data.requires_grad
    assert not [path for path in tmp_path.iterdir() if path.is_file()]


def test_predictions_are_those_of_ultralytics(
    lively_model: YoloModel, labelled_by_model: DataSpec, tmp_path: Path
) -> None:
    path = labelled_by_model.val[0]
    settings = {"imgsz": SIDE, "rect": False, "conf": 0.01, "save": False, "verbose": False}
    predictor = DetectionPredictor(overrides={**settings, "device": "cpu", "save_dir": tmp_path})
    plain = predictor(str(path), model=copy.deepcopy(lively_model))[0]
    ours = lively_model.predict(path, conf=0.01, imgsz=SIDE)[0]
    assert ours.boxes.data.numpy() == pytest.approx(plain.boxes.data.numpy(), abs=1e-2)


def test_pictures_of_any_shape_get_boxes_inside_of_them(lively_model: YoloModel) -> None:
    rng = np.random.default_rng(0)
    for shape in [(40, 90, 3), (200, 30, 3), (64, 64, 3), (1, 1, 3)]:
        picture = rng.integers(0, 256, shape).astype(np.uint8)
        boxes = lively_model.predict(picture, conf=0.01, imgsz=SIDE)[0].boxes.xyxy.numpy()
        assert (boxes >= 0).all()
        assert (boxes[:, [0, 2]] <= shape[1]).all()
        assert (boxes[:, [1, 3]] <= shape[0]).all()


@pytest.mark.parametrize("bad", [np.zeros((8, 8), np.uint8), np.zeros((8, 8, 3), np.float32)])
def test_other_arrays_than_pictures_are_refused(model: YoloModel, bad: np.ndarray) -> None:
    with pytest.raises(ValueError, match="expected whole numbers and"):
        model.predict(bad)


def test_a_missing_picture_is_named(model: YoloModel, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"none\.jpg is missing"):
        model.predict(tmp_path / "none.jpg")


def test_tensors_take_the_ordinary_way_and_training_mode_stays(model: YoloModel) -> None:
    model.train()
    model.predict(np.zeros((SIDE, SIDE, 3), np.uint8))
    assert model.training
    model.eval()
    batch = torch.rand(2, 3, SIDE, SIDE)
    with torch.no_grad():
        assert torch.equal(model(batch)[0], DetectionModel.forward(model, batch)[0])
        assert model.predict(batch)[0].shape == (2, 11, 84)


def test_arrays_go_out_and_in(model: YoloModel) -> None:
    arrays = to_arrays(model)
    other = get_model("n", 7, seed=9)
    from_arrays(other, arrays)
    back = to_arrays(other)
    assert list(back) == list(arrays)
    for name, array in arrays.items():
        assert back[name].dtype == array.dtype
        assert back[name].shape == array.shape
        assert np.array_equal(back[name], array)
    arrays["model.0.conv.weight"][:] = 7
    assert not (to_arrays(model)["model.0.conv.weight"] == 7).any()


def test_averaged_counters_become_whole_numbers_again(model: YoloModel) -> None:
    name = "model.0.bn.num_batches_tracked"
    arrays = to_arrays(model) | {name: np.array(11.0)}
    from_arrays(model, arrays)
    assert to_arrays(model)[name] == 11
    assert to_arrays(model)[name].dtype == np.int64


def test_arrays_of_another_model_change_nothing(model: YoloModel) -> None:
    before = to_arrays(model)
    with pytest.raises(ModelMismatchError, match=r"36 of 355 arrays don't fit .*has shape"):
        from_arrays(model, to_arrays(get_model("n", 80)))
    lacking = {k: v for k, v in before.items() if k != "model.0.conv.weight"}
    with pytest.raises(ModelMismatchError, match=r"model\.0\.conv\.weight is missing"):
        from_arrays(model, lacking)
    with pytest.raises(ModelMismatchError, match="stray is unknown"):
        from_arrays(model, before | {"stray": np.zeros(1)})
    assert all(np.array_equal(before[k], v) for k, v in to_arrays(model).items())


def test_predict_takes_ultralytics_arguments_and_refuses_others(
    lively_model: YoloModel, labelled_by_model: DataSpec
) -> None:
    path = labelled_by_model.val[0]
    settings = {"imgsz": SIDE, "conf": 0.01, "iou": 0.3, "classes": [1, 2], "max_det": 4}
    plain = DetectionPredictor(
        overrides={**settings, "save": False, "verbose": False, "device": "cpu"}
    )(str(path), model=copy.deepcopy(lively_model))[0]
    ours = lively_model.predict(path, half=False, device="cpu", **settings)[0]
    assert 0 < len(ours.boxes) <= 4
    assert set(ours.boxes.cls.int().tolist()) <= {1, 2}
    assert ours.boxes.data.numpy() == pytest.approx(plain.boxes.data.numpy(), abs=1e-2)
    with pytest.raises(TypeError, match=r"does not know image_size; its arguments are conf, iou"):
        lively_model.predict(path, image_size=SIDE)
    with pytest.raises(TypeError, match="does not know stream"):
        lively_model.predict(path, stream=True)
    with pytest.raises(TypeError, match="conf can't be applied to a tensor"):
        lively_model.predict(torch.rand(1, 3, SIDE, SIDE), conf=0.5)
    for wrong in ({"conf": 2}, {"iou": -1}, {"classes": [7]}):
        with pytest.raises(ValueError, match="expected numbers from 0 to"):
            lively_model.predict(path, **wrong)
    with pytest.raises(ValueError, match="device 'cuda:99' can't be used here"):
        lively_model.predict(path, device="cuda:99")


def test_pillow_s_pictures_have_the_boxes_of_their_files(
    lively_model: YoloModel, labelled_by_model: DataSpec
) -> None:
    from PIL import Image

    path = labelled_by_model.val[0]
    by_path = lively_model.predict(path, conf=0.01)[0]
    by_pillow = lively_model.predict(Image.open(path), conf=0.01)[0]
    assert len(by_path.boxes) > 0
    assert torch.equal(by_pillow.boxes.data, by_path.boxes.data)


def test_the_side_of_training_is_the_default(labelled_by_model: DataSpec) -> None:
    model = get_model("n", 7, seed=0, image_size=96)
    path = labelled_by_model.val[0]
    by_default = model.predict(path, conf=0.0001)[0].boxes.data
    assert torch.equal(by_default, model.predict(path, conf=0.0001, imgsz=96)[0].boxes.data)
    assert not torch.equal(by_default, model.predict(path, conf=0.0001, imgsz=64)[0].boxes.data)
