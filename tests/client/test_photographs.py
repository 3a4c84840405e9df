# SPDX-License-Identifier: AGPL-3.0-or-later
"""Real photographs, where they are at hand: the layout, the labels and the scores."""

from __future__ import annotations

import base64
from dataclasses import replace
from pathlib import Path

import pytest
from support.arrays import to_arrays
from support.lively import enlivened
from ultralytics.models.yolo.detect import DetectionValidator

from fl_app.client.data import partition
from fl_app.client.data_yaml import load_data_spec
from fl_app.client.train_args import TrainArgs, read_train_args
from fl_app.client.training import train_locally
from fl_models import serving
from fl_models.decoding import read_pictures
from fl_models.holdout import Holdout
from fl_models.pictures import DataSpec, label_file
from fl_models.yolo import YoloModel, get_model
from fl_registry.files.weights import save_weights

DATA = Path(__file__).parents[2] / ".." / "shared" / "data" / "aquarium" / "data.yaml"

pytestmark = pytest.mark.skipif(
    not DATA.is_file(), reason="the aquarium photographs (638 pictures, CC BY 4.0) are not here"
)


@pytest.fixture(scope="module")
def aquarium() -> DataSpec:
    return load_data_spec(DATA, 7)


def test_the_data_set_is_read_as_it_is(aquarium: DataSpec) -> None:
    assert aquarium.names[0] == "fish"
    assert (len(aquarium.train), len(aquarium.val)) == (448, 127)
    pictures = read_pictures(aquarium.train[:40], range(7))
    assert len(pictures) == 40
    assert sum(len(picture.boxes) for picture in pictures) > 40


def test_dirichlet_partitions_of_imbalanced_classes_cover_it(aquarium: DataSpec) -> None:
    shares = [
        partition(aquarium, num_partitions=3, partition_id=i, kind="dirichlet", alpha=0.3)
        for i in range(3)
    ]
    assert all(shares)
    assert sorted(path for share in shares for path in share) == list(aquarium.train)


def test_a_round_on_photographs_and_scores_as_plain_ultralytics_has_them(
    aquarium: DataSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ultralytics.data.utils.check_font", lambda font: None)
    model = get_model("n", 7, names=aquarium.names, seed=0)
    few = replace(aquarium, val=aquarium.val[:6])
    train_locally(
        model,
        read_pictures(few.val, range(7)),
        names=aquarium.names,
        image_size=160,
        batch_size=3,
        # After twenty epochs it depends on the processor's rounding whether a box is right.
        epochs=60,
        args=TrainArgs(read_train_args("{lr0: 0.003, lrf: 1, nbs: 3, optimizer: AdamW}")),
        seed=1,
    )
    ours = Holdout(few, image_size=160, batch_size=4)(model)
    plain = _plain_scores(model, few, tmp_path)
    assert ours["mAP50"] > 0.01
    for name, value in ours.items():
        assert value == pytest.approx(plain[f"metrics/{name}(B)"], abs=5e-5), name


def _plain_scores(model: YoloModel, spec: DataSpec, folder: Path) -> dict[str, float]:
    # Links in a folder of its own, since plain Ultralytics writes a cache beside the labels.
    for path in spec.val:
        for source, kind in [(path, "images"), (label_file(path), "labels")]:
            place = folder / kind / "val" / source.name
            place.parent.mkdir(parents=True, exist_ok=True)
            place.symlink_to(source)
    text = f"path: {folder}\ntrain: images/val\nval: images/val\nnames: {list(spec.names)}\n"
    (folder / "data.yaml").write_text(text)
    settings = {
        "task": "detect",
        "mode": "val",
        "data": str(folder / "data.yaml"),
        "imgsz": 160,
        "batch": 4,
        "rect": False,
        "plots": False,
        "device": "cpu",
    }
    validator = DetectionValidator(save_dir=folder / "runs", args=settings)
    validator(model=model)
    return dict(validator.metrics.results_dict)


def test_served_and_local_boxes_are_equal_on_all_photographs(
    aquarium: DataSpec, tmp_path: Path
) -> None:
    """Neither is told a size: both take that of training."""
    model = enlivened(get_model("n", 7, names=aquarium.names, seed=0, image_size=96))
    save_weights(to_arrays(model), tmp_path / "w.safetensors", model=model.description)
    served = serving.load(
        tmp_path / "w.safetensors", {"model": model.description}, {"device": "cpu"}
    )
    loaded = get_model("n", 7)
    loaded.load_description(model.description)
    loaded.load_state_dict(model.state_dict())
    found = 0
    for path in aquarium.val:
        local = loaded.predict(path, conf=0.05)[0].boxes
        text = base64.b64encode(path.read_bytes()).decode()
        (boxes,) = served({"image": [text]}, {"conf": 0.05})
        found += len(boxes)
        assert [box["class"] for box in boxes] == local.cls.int().tolist()
        assert [box["xyxy"] for box in boxes] == local.xyxy.tolist()
        assert [box["confidence"] for box in boxes] == local.conf.tolist()
        assert [box["name"] for box in boxes] == [loaded.names[int(c)] for c in local.cls]
    assert found > len(aquarium.val)
