# SPDX-License-Identifier: AGPL-3.0-or-later
"""Weights to start from: what is taken of them, what starts anew, and what is refused."""

from __future__ import annotations

import logging
import re
import shutil
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.arrays import to_arrays
from support.lively import SIDE
from support.pretrained import checkpoint

from fl_app.client.data_yaml import load_data_spec
from fl_app.client.generated_shapes import shapes_data
from fl_app.config import ConfigError, ServerConfig
from fl_app.starting_weights import read_starting_weights
from fl_app.yolo import YoloOnServer
from fl_models.pictures import DataSpec
from fl_models.yolo import ModelMismatchError, described_model, get_model, take_weights
from fl_registry import InMemoryModelStore, ModelManager
from fl_registry.files.weights import read_description, save_weights

ROOT = Path(__file__).parents[2]
DEFAULTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["flwr"]["app"]["config"]
BIAS = "model.22.cv3.0.2.bias"
STEM = "model.0.conv.weight"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> DataSpec:
    home = tmp_path_factory.mktemp("shapes")
    return load_data_spec(shapes_data(home, train=1, val=2, image_size=SIDE), 7)


@pytest.fixture
def store(tmp_path: Path) -> InMemoryModelStore:
    return InMemoryModelStore(tmp_path / "store")


def config(**changes: Any) -> ServerConfig:
    given = {name.replace("_", "-"): value for name, value in changes.items()}
    return ServerConfig.from_run_config({**DEFAULTS, "image-size": SIDE, **given})


def started(weights: str, store: InMemoryModelStore, data: DataSpec, **more: Any) -> YoloOnServer:
    return YoloOnServer(
        config(weights=weights, **more), data, read_starting_weights(weights, store)
    )


def saved(folder: Path, **how: Any) -> Path:
    model = get_model(how.pop("model", "n"), how.pop("classes", 7), seed=9, **how)
    save_weights(to_arrays(model), folder / "w.safetensors", model=model.description)
    return folder / "w.safetensors"


def test_a_genuine_checkpoint_gives_all_but_the_class_layers(
    store: InMemoryModelStore, data: DataSpec, caplog: pytest.LogCaptureFixture
) -> None:
    best = checkpoint()
    with caplog.at_level(logging.INFO):
        server = started(str(best), store, data)
    # As Ultralytics' own "Transferred 349/355 items".
    assert "349 of 355 arrays taken from best.pt" in caplog.text
    first = server.first_arrays()
    assert {array.dtype for array in first.values()} == {"float32", "int64"}
    version = store.save_model_version(best)
    theirs = store.load_arrays(version)
    assert np.array_equal(first[STEM].numpy(), theirs[STEM])
    assert first[BIAS].numpy().shape == (7,)
    described = read_description(store.weights_path(version))
    assert described["names"] == ["Animal", "Car", "Person", "Rock", "Trash", "Tree"]
    assert (described["model"], described["image_size"]) == ("yolov8n", 640)
    described_model(described).load_state_dict(
        {name: torch.from_numpy(array) for name, array in theirs.items()}, strict=True
    )
    store.promote_to_staging(version)
    store.promote_to_production(version)
    loaded = store.load_production_model(lambda: get_model("n", 6))
    assert loaded.names[5] == "Tree"
    assert loaded.image_size == 640


def test_a_genuine_checkpoint_is_read_as_ultralytics_reads_it(store: InMemoryModelStore) -> None:
    from ultralytics.nn.tasks import torch_safe_load

    content, _ = torch_safe_load(checkpoint(), safe_only=True)
    theirs = (content.get("ema") or content["model"]).float().state_dict()
    ours = store.load_arrays(store.save_model_version(checkpoint()))
    assert list(ours) == list(theirs)
    assert all(np.array_equal(array, theirs[name].numpy()) for name, array in ours.items())


def test_a_version_and_a_file_start_a_session(
    store: InMemoryModelStore, data: DataSpec, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = saved(tmp_path, names=data.names)
    version = store.save_model_version(file)
    for weights in (f"version:{version}", str(file)):
        with caplog.at_level(logging.INFO):
            first = started(weights, store, data).first_arrays()
        expected = store.load_arrays(version)
        assert all(np.array_equal(first[name].numpy(), array) for name, array in expected.items())
    assert f"355 of 355 arrays taken from version {version}" in caplog.text
    assert read_starting_weights(f"version:{version}", store).version == version


def test_first_arrays_stay_what_they_were(store: InMemoryModelStore, data: DataSpec) -> None:
    server = YoloOnServer(config(), data)
    before = server.first_arrays()[STEM].numpy().copy()
    other = get_model("n", 7, names=data.names, seed=99)
    server.start_from("3", _record(other), other.description)
    assert np.array_equal(server.first_arrays()[STEM].numpy(), before)


def test_half_weights_become_the_model_s_own_dtype(data: DataSpec) -> None:
    other = get_model("n", 7, names=data.names, seed=99)
    arrays = YoloOnServer(config(), data).start_from("3", _record(other.half()), other.description)
    assert {array.dtype for array in arrays.values()} == {"float32", "int64"}


def _record(model: torch.nn.Module) -> Any:
    from flwr.app import ArrayRecord

    return ArrayRecord(model.state_dict())


def test_rows_of_equal_class_names_are_taken(tmp_path: Path) -> None:
    donor = get_model("n", 3, names=["cat", "dog", "cow"], seed=4)
    torch.nn.init.normal_(donor.state_dict()[BIAS])
    model = get_model("n", 2, names=["dog", "hen"], seed=5)
    own = model.state_dict()[BIAS].clone()
    said = take_weights(model, donor.state_dict(), donor.description)
    assert said == "349 of 355 arrays and 1 of 2 classes by name"
    assert model.state_dict()[BIAS][0] == donor.state_dict()[BIAS][1]
    assert model.state_dict()[BIAS][1] == own[1]
    assert model.names == {0: "dog", 1: "hen"}


def test_a_wide_class_branch_is_kept(store: InMemoryModelStore, data: DataSpec) -> None:
    coco = get_model("n", 80, seed=1)
    model = get_model("n", 7, names=data.names, weights=coco.state_dict(), seed=2)
    hidden = "model.22.cv3.0.0.conv.weight"
    assert torch.equal(model.state_dict()[hidden], coco.state_dict()[hidden])
    arrays = YoloOnServer(config(), data).start_from("3", _record(model), model.description)
    assert arrays[hidden].shape == (80, 64, 3, 3)


def test_weights_of_another_architecture_are_refused(
    store: InMemoryModelStore, data: DataSpec, tmp_path: Path
) -> None:
    file = saved(tmp_path, model="yolo11n", names=data.names)
    with pytest.raises(ConfigError, match=r"don't fit yolov8n, .* of yolo11n, so set model"):
        started(str(file), store, data)
    model = get_model("n", 7, seed=1)
    before = to_arrays(model)
    with pytest.raises(ModelMismatchError, match="another architecture"):
        take_weights(model, {"other": np.zeros(3)})
    assert all(np.array_equal(before[name], array) for name, array in to_arrays(model).items())


@pytest.mark.parametrize(
    ("weights", "says"),
    [
        ("best.pt", "no absolute path"),
        ("yolov8n", "no version such as 'version:8'; nothing is downloaded"),
        ("https://host/best.pt", "no absolute path"),
        ("/nowhere/best.pt", "There is no model file at /nowhere/best.pt"),
        ("/nowhere/best.onnx", "no absolute path of a .pt"),
        ("version:8", "version 8.*"),
    ],
)
def test_what_cannot_be_read_is_said_at_once(
    weights: str, says: str, store: InMemoryModelStore
) -> None:
    with pytest.raises(ConfigError, match=rf"(?i)weights=.*{says}"):
        read_starting_weights(weights, store)


def test_a_model_that_takes_larger_steps_wants_larger_pictures(data: DataSpec) -> None:
    with pytest.raises(ConfigError, match=r"image-size=96 is no multiple of 64.*set it to 128"):
        YoloOnServer(config(model="yolov8n-p6", image_size=96), data)
    with pytest.raises(ConfigError, match=r"Run-config key 'model': .*yolov8n"):
        YoloOnServer(config(model="yolov8"), data)
    with pytest.raises(ConfigError, match="relative path"):
        YoloOnServer(config(model="own.yaml"), data)


def test_a_path_with_a_quote_is_the_file_that_it_names(
    store: InMemoryModelStore, tmp_path: Path
) -> None:
    odd = tmp_path / "it's mine" / "yolov5n.pt"
    odd.parent.mkdir()
    shutil.copy(checkpoint(), odd)
    assert read_starting_weights(str(odd), store).source == "yolov5n.pt"


def test_the_page_s_snippets_load_a_version_and_take_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: DataSpec
) -> None:
    page = (ROOT / "docs" / "use-the-model.md").read_text()
    snippets = re.findall(r"^```python\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    loading = next(code for code in snippets if "model.image_size" in code)
    taking = next(code for code in snippets if "SERVING" in code and "best.pt" in code)
    manager = ModelManager()
    version = manager.save_model_version(saved(tmp_path, names=data.names, image_size=SIDE))
    manager.promote_to_staging(version)
    manager.promote_to_production(version)
    names: dict[str, Any] = {}
    exec(loading, names)  # noqa: S102 - that is the test
    assert names["model"].names == dict(enumerate(data.names))
    assert names["model"].image_size == SIDE
    shutil.copy(checkpoint(), tmp_path / "best.pt")
    monkeypatch.chdir(tmp_path)
    exec(taking, {})  # noqa: S102
    newest = manager.get_latest_version()
    assert newest != version
    assert (manager.weights_path(newest).parent / "MLmodel").is_file()
