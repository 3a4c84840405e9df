# SPDX-License-Identifier: AGPL-3.0-or-later
"""A version as a file for Ultralytics: what it holds, who can use it, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.ultralytics_alone import use_alone
from ultralytics import YOLO
from ultralytics.nn.tasks import DetectionModel, torch_safe_load

from fl_app.api import create_trigger_api
from fl_app.retraining import MonitorStore, RetrainingManager
from fl_app.yolo_versions import write_export
from fl_models import export as module
from fl_models.export import ExportError, arguments_of, export, suffixes
from fl_models.holdout import Holdout
from fl_models.pictures import DataSpec
from fl_models.yolo import YoloModel
from fl_registry import InMemoryModelStore
from fl_registry.files.weights import save_weights

SIDE, CONF = 64, 0.02


@pytest.fixture(scope="module")
def description(lively_model: YoloModel) -> dict[str, Any]:
    return {**lively_model.description, "image_size": SIDE}


@pytest.fixture(scope="module")
def weights(
    lively_model: YoloModel, description: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    path = tmp_path_factory.mktemp("version") / "weights.safetensors"
    arrays = {name: array.numpy() for name, array in lively_model.state_dict().items()}
    save_weights(arrays, path, model=description)
    return path


def test_a_checkpoint_has_every_digit_and_none_of_our_classes(
    weights: Path, description: dict[str, Any], lively_model: YoloModel, tmp_path: Path
) -> None:
    export(weights, description, tmp_path / "best.pt")
    found, _ = torch_safe_load(tmp_path / "best.pt", safe_only=True)  # runs no code
    model = found["model"]
    assert type(model) is DetectionModel
    assert model.names == lively_model.names
    assert found["train_args"]["imgsz"] == SIDE
    assert found["train_args"]["task"] == "detect"
    state = lively_model.state_dict()
    assert model.state_dict().keys() == state.keys()
    assert all(torch.equal(array, state[name]) for name, array in model.state_dict().items())


def test_half_precision_is_asked_for(
    weights: Path, description: dict[str, Any], tmp_path: Path
) -> None:
    export(weights, description, tmp_path / "best.pt", half=True)
    found, _ = torch_safe_load(tmp_path / "best.pt", safe_only=True)
    assert {weight.dtype for weight in found["model"].parameters()} == {torch.float16}


@pytest.mark.parametrize("format", ["onnx", "torchscript"])
def test_other_formats_detect_the_same_and_leave_no_other_file(
    format: str,
    *,
    weights: Path,
    description: dict[str, Any],
    lively_model: YoloModel,
    labelled_by_model: DataSpec,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    file = tmp_path / f"best{suffixes()[format]}"
    export(weights, description, file)
    assert {path.name for path in tmp_path.iterdir()} == {"here", file.name}
    assert not list(here.iterdir())
    picture = labelled_by_model.val[0]
    ours = lively_model.predict(picture, imgsz=SIDE, conf=CONF)[0].boxes.data.numpy()
    theirs = YOLO(file, task="detect").predict(
        picture, imgsz=SIDE, conf=CONF, verbose=False, device="cpu"
    )
    assert len(ours) > 3
    assert theirs[0].names == lively_model.names
    np.testing.assert_allclose(theirs[0].boxes.data.numpy(), ours, atol=2e-2)


@pytest.mark.slow
def test_ultralytics_alone_scores_detects_and_trains_with_it(
    weights: Path,
    description: dict[str, Any],
    lively_model: YoloModel,
    labelled_by_model: DataSpec,
    tmp_path: Path,
) -> None:
    for file in ("best.pt", "best.onnx"):
        export(weights, description, tmp_path / file)
    held_out = labelled_by_model.root / "images" / "val"
    names = description["names"]
    (tmp_path / "data.yaml").write_text(f"train: {held_out}\nval: {held_out}\nnames: {names}\n")
    picture = labelled_by_model.val[0]
    found = use_alone(tmp_path, picture, side=SIDE, conf=CONF)
    ours = Holdout(labelled_by_model, image_size=SIDE)(lively_model)
    assert ours["mAP50"] > 0.01
    for name, value in ours.items():
        assert round(found["scores"][f"metrics/{name}(B)"], 4) == round(value, 4), name
    boxes = lively_model.predict(picture, imgsz=SIDE, conf=CONF)[0].boxes.data.numpy()
    np.testing.assert_allclose(found["boxes"]["best.pt"], boxes, atol=1e-3)
    np.testing.assert_allclose(found["boxes"]["best.onnx"], found["boxes"]["squares"], atol=2e-2)


def test_the_api_hands_out_what_ultralytics_reads(
    weights: Path, lively_model: YoloModel, tmp_path: Path
) -> None:
    store = InMemoryModelStore()
    store.save_model_version(weights, metrics={"mAP50": 0.5})
    save_weights({"w": np.ones(3, np.float32)}, tmp_path / "other.safetensors")
    store.save_model_version(tmp_path / "other.safetensors", metrics={"mAP50": 0.5})
    monitor = RetrainingManager(store=MonitorStore(f"sqlite:///{tmp_path / 'monitor.db'}"))
    client = create_trigger_api(monitor, store=store, checkpoint=write_export).test_client()
    got = client.get("/versions/1/weights?format=pt")
    assert got.status_code == 200
    (tmp_path / "best.pt").write_bytes(got.data)
    assert YOLO(tmp_path / "best.pt").names == lively_model.names
    other = client.get("/versions/2/weights?format=pt")
    assert other.status_code == 409
    assert other.json is not None
    assert other.json["detail"].startswith("Nothing was exported: the weights are of an unknown")


@pytest.mark.parametrize(
    ("file", "options", "why"),
    [
        ("there.pt", {}, "there.pt exists; choose another name, or replace it with --force"),
        ("nowhere/best.pt", {}, "nowhere does not exist; make it first"),
        ("best.weights", {}, "best.weights ends as no format does; name it best.pt or best.onnx"),
        ("best.pt", {"format": "onnx"}, "best.pt must end in .onnx to be read as onnx"),
        ("best.onnx", {"format": "onxx"}, "the format 'onxx' is unknown, expected one of pt, "),
        ("best.pt", {"dynamic": True}, "the format pt takes no dynamic, expected none"),
        ("best.onnx", {"dynamik": True}, "Similar arguments are i.e. ['dynamic=False']"),
        (
            "best.onnx",
            {"workspace": 4},
            "the format onnx takes no workspace, expected agnostic_nms",
        ),
        ("best.onnx", {"quantize": 8}, "name them with data=/path/data.yaml"),
        ("best.mnn", {}, "the format mnn needs MNN, which is not installed; install it"),
        ("best_saved_model", {}, "export to best.pt, then use `yolo export model=best.pt format=s"),
        ("best.torchscript", {"half": True}, "Ultralytics cannot export to torchscript here: FP16"),
    ],
)
def test_what_cannot_be_done_is_refused_and_nothing_is_written(
    file: str,
    options: dict[str, Any],
    why: str,
    *,
    weights: Path,
    description: dict[str, Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "there.pt").write_text("mine")
    with pytest.raises(ExportError) as refused:
        export(weights, description, tmp_path / file, **options)
    assert why in str(refused.value)
    assert "\n" not in str(refused.value)
    assert [path.name for path in tmp_path.iterdir()] == ["there.pt"]
    assert (tmp_path / "there.pt").read_text() == "mine"
    assert capsys.readouterr().out == ""


def test_a_file_is_replaced_where_that_is_asked_for(
    weights: Path, description: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "best.pt").write_text("old")
    export(weights, description, tmp_path / "best.pt", force=True)
    assert (tmp_path / "best.pt").stat().st_size > 1e6


@pytest.mark.parametrize("described", [{}, {"family": "forest"}])
def test_weights_of_another_model_are_refused_by_name(
    described: dict[str, Any], weights: Path, tmp_path: Path
) -> None:
    with pytest.raises(
        ExportError, match=rf"of {described.get('family', 'an unknown model')}, exp"
    ):
        export(weights, described, tmp_path / "best.pt")
    assert not list(tmp_path.iterdir())


def test_a_package_that_is_missing_is_named_with_its_extra(
    weights: Path, description: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(ExportError, match=r"needs onnx and onnxslim, .* install fl-app\[export\]"):
        export(weights, description, tmp_path / "best.onnx")
    assert not list(tmp_path.iterdir())


def test_what_ultralytics_warns_of_is_logged(
    weights: Path, description: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    export(weights, description, tmp_path / "best.onnx", dynamic=True, nms=True)
    assert "Ultralytics: 'dynamic=True' export requires a maximum batch size" in caplog.text


def test_each_format_of_ultralytics_is_known_with_its_arguments() -> None:
    assert {"pt", "onnx", "torchscript", "openvino", "engine"} <= set(suffixes())
    assert {"imgsz", "opset", "simplify", "nms", "conf"} <= arguments_of("onnx")
    assert "opset" not in arguments_of("torchscript")
