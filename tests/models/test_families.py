# SPDX-License-Identifier: AGPL-3.0-or-later
"""Each family of Ultralytics' detectors, held to plain Ultralytics: loss, scores and boxes."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path

import pytest
import torch
from support.lively import SIDE, enlivened, labelled_by, plain_validation
from ultralytics.cfg import get_cfg
from ultralytics.models.yolo.detect import DetectionPredictor
from ultralytics.nn.tasks import DetectionModel
from ultralytics.utils import ROOT

from fl_models.architecture import read_architecture
from fl_models.dataset import PictureDataset
from fl_models.decoding import read_pictures
from fl_models.holdout import Holdout
from fl_models.pictures import DataSpec
from fl_models.yolo import ModelMismatchError, YoloModel, described_model, get_model

NAMES = [f"class {number}" for number in range(7)]
FAMILIES = [
    *("yolov5nu", "yolov8n", "yolov8n-p2", "yolov9t", "yolov10n", "yolo11n", "yolo12n", "yolo26n"),
]


def plain_model(name: str) -> DetectionModel:
    """What Ultralytics itself makes of a name."""
    return DetectionModel(f"{name}.yaml", nc=7, verbose=False)


@pytest.mark.usefixtures("no_fonts")
@pytest.mark.parametrize("name", FAMILIES)
def test_loss_scores_and_boxes_are_those_of_ultralytics(name: str, tmp_path: Path) -> None:
    model = enlivened(get_model(name, 7, names=NAMES, seed=3))
    data = labelled_by(model, tmp_path)
    scores = Holdout(data, image_size=SIDE, batch_size=3)(model)
    plain = plain_model(name)
    plain.load_state_dict(model.state_dict(), strict=True)
    plain.names = dict(enumerate(NAMES))
    copied = shutil.copytree(data.root, tmp_path / "set")  # it writes a cache there
    theirs = plain_validation(plain, copied / "data.yaml", tmp_path / "runs").metrics
    assert scores["mAP50"] > 0.1
    for metric, value in scores.items():
        assert value == pytest.approx(theirs.results_dict[f"metrics/{metric}(B)"], abs=5e-5), metric
    assert_same_boxes(model, plain, data.val[0], tmp_path)
    assert_same_step(model, plain, data)


def assert_same_boxes(model: YoloModel, plain: DetectionModel, path: Path, folder: Path) -> None:
    settings = {"imgsz": SIDE, "conf": 0.01, "save": False, "verbose": False, "device": "cpu"}
    predictor = DetectionPredictor(overrides={**settings, "save_dir": folder})
    theirs = predictor(str(path), model=copy.deepcopy(plain))[0].boxes.data
    ours = model.predict(path, conf=0.01, imgsz=SIDE)[0].boxes.data
    assert len(ours) > 0
    assert ours.numpy() == pytest.approx(theirs.numpy(), abs=1e-2)


def assert_same_step(model: YoloModel, plain: DetectionModel, data: DataSpec) -> None:
    """The loss of a batch and each gradient."""
    settings = {"imgsz": SIDE, "batch": 4}
    pictures = read_pictures(data.val, data.numbers)
    batch = next(
        iter(PictureDataset(pictures, NAMES, settings=settings, augment=False).loader("cpu"))
    )
    batch["img"] = batch["img"].float() / 255
    losses = []
    for module in (model, plain):
        module.train()
        module.args = get_cfg(overrides=settings)
        loss = module(batch)[0].sum()
        loss.backward()
        losses.append(loss.item())
    assert losses[0] == losses[1] > 0
    theirs = dict(plain.named_parameters())
    for weight, value in model.named_parameters():
        if value.grad is not None:
            assert torch.equal(value.grad, theirs[weight].grad), weight


@pytest.mark.usefixtures("no_fonts")
@pytest.mark.parametrize("name", ["yolov10n", "yolo26n"])
def test_heads_without_suppression_are_scored_and_drawn_as_ultralytics_has_them(
    name: str, tmp_path: Path
) -> None:
    model = enlivened(get_model(name, 7, names=NAMES, seed=3))
    data = labelled_by(model, tmp_path)
    model.end2end = True
    scores = Holdout(data, image_size=SIDE, batch_size=3)(model)
    plain = copy.deepcopy(model)
    copied = shutil.copytree(data.root, tmp_path / "set")
    theirs = plain_validation(plain, copied / "data.yaml", tmp_path / "runs", nms=False).metrics
    for metric, value in scores.items():
        assert value == pytest.approx(theirs.results_dict[f"metrics/{metric}(B)"], abs=5e-5), metric
    found = model.predict(data.val[0], conf=0.01, imgsz=SIDE)[0].boxes
    assert 0 < len(found) <= 300


def test_a_file_of_one_s_own_is_a_model_too(tmp_path: Path) -> None:
    text = (ROOT / "cfg" / "models" / "v8" / "yolov8.yaml").read_text()
    own = tmp_path / "small-yolov8s.yaml"
    own.write_text(text.replace("s: [0.33, 0.50, 1024]", "s: [0.33, 0.125, 1024]"))
    model = get_model(own, 3, seed=1)
    assert model.state_dict()["model.0.conv.weight"].shape == (8, 3, 3, 3)
    described = json.loads(json.dumps(model.description))
    assert described["model"] == "small-yolov8s"
    assert str(tmp_path) not in json.dumps(described)
    own.unlink()
    described_model(described).load_state_dict(model.state_dict(), strict=True)
    with pytest.raises(ValueError, match=r"small-yolov8s\.yaml is missing"):
        get_model(own, 3)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_description_is_enough_to_build_the_model(name: str) -> None:
    model = get_model(name, 7, names=NAMES, seed=1, image_size=96)
    again = described_model(json.loads(json.dumps(model.description)))
    again.load_state_dict(model.state_dict(), strict=True)
    assert again.description == model.description
    assert again.names == dict(enumerate(NAMES))
    assert again.image_size == 96


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("yolov8", "did you mean yolov8l, yolov8m, yolov8n, yolov8s or yolov8x"),
        ("yolov11n", "did you mean yolo11n"),
        ("yolov8z", "did you mean yolov8"),
        ("https://host/model", "known are yolov8n"),
        ("", "known are yolov8n"),
        ("yolo11n-seg", "of the task 'segment', and only plain detectors"),
        ("yolo11n-pose", "of the task 'pose'"),
        ("yolov8n-obb", "of the task 'obb'"),
        ("yolov8n-cls", "of the task 'classify'"),
        ("rtdetr-l", "with the head RTDETRDecoder"),
        ("yolov8s-world", "with the head WorldDetect"),
        ("yoloe-26n", "with the head YOLOEDetect"),
        ("best.pt", "is a checkpoint.*weights"),
    ],
)
def test_another_model_is_refused_by_name(name: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        read_architecture(name)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"activation": "__import__('os').abort()"}, "activation is"),
        ({"head": [[-1, 1, "os.abort", []]]}, "unknown layer, 'os.abort'"),
        ({"head": [[-1, 1, "torch_load", ["file"]]]}, "unknown layer, 'torch_load'"),
        ({"head": [[-1, 1, "nn.Module.__class__", []]]}, "unknown layer"),
        ({"head": [7]}, "can't be read"),
        ({"head": [[-1, 1, "Conv", [None]]]}, "can't build the model"),
    ],
)
def test_nothing_but_layers_is_built_from_a_description(
    change: dict[str, object], says: str
) -> None:
    described = get_model("n", 7).description
    with pytest.raises(ValueError, match=says):
        described_model({**described, "yaml": {**described["yaml"], **change}})


def test_a_file_that_is_no_model_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "data.yaml"
    for text in ("names: [a, b]\n", "- 1\n", "{", ""):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"data\.yaml is no model of Ultralytics"):
            read_architecture(path)


def test_weights_bring_their_names_and_size_and_say_what_they_are_of() -> None:
    described = get_model("yolo11n", 7, names=NAMES, image_size=160).description
    model = get_model("yolo11n", 7)
    model.load_description(described)
    assert (model.names[0], model.image_size) == ("class 0", 160)
    with pytest.raises(ModelMismatchError, match=r"of yolo11n, .* is yolov8n: .*'yolo11n', 7\)"):
        get_model("n", 7).load_description(described)
    with pytest.raises(ModelMismatchError, match=r"of 7 classes and this model has 5: .*, 7\)"):
        get_model("yolo11n", 5).load_description(described)
    with pytest.raises(ModelMismatchError, match="an unknown model"):
        get_model("n", 7).load_description({"family": "other"})


def test_a_class_branch_of_coco_s_width_is_kept() -> None:
    wide = YoloModel(read_architecture("yolov8n"), NAMES, class_width=80)
    assert wide.model[-1].cv3[0][0].conv.out_channels == 80
    assert wide.model[-1].cv3[0][-1].out_channels == 7
    again = described_model(json.loads(json.dumps(wide.description)))
    again.load_state_dict(wide.state_dict(), strict=True)
    usual = get_model("n", 7)
    usual.load_description(wide.description)
    usual.load_state_dict(wide.state_dict(), strict=True)
    with pytest.raises(ValueError, match="can't be built"):
        YoloModel(read_architecture("yolov8n"), NAMES, class_width=7)
