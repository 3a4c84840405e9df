# SPDX-License-Identifier: AGPL-3.0-or-later
"""A checkpoint of Ultralytics goes in, is trained in a federation, and comes out as one."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from support.flower import ROOT, Flower
from support.pretrained import checkpoint
from support.ultralytics_alone import use_alone

from fl_app.yolo_versions import evaluate_version, export_version
from fl_models.yolo import described_model, from_arrays
from fl_registry import ModelManager
from fl_registry.files.weights import load_weights, read_description

AQUARIUM = ROOT.parent / "shared" / "data" / "aquarium"
SIDE, PICTURES = 160, 24

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not AQUARIUM.is_dir(), reason=f"no photographs at {AQUARIUM}"),
]


def photographs(folder: Path) -> Path:
    """A few photographs to train on and to score; returns the data.yaml."""
    for kind, ending in (("images", "jpg"), ("labels", "txt")):
        (folder / kind / "train").mkdir(parents=True)
        for path in sorted((AQUARIUM / kind / "train").glob(f"*.{ending}"))[:PICTURES]:
            shutil.copy(path, folder / kind / "train")
        shutil.copytree(folder / kind / "train", folder / kind / "val")
    content = yaml.safe_load((AQUARIUM / "data.yaml").read_text())
    content.update(path=str(folder), train="images/train", val="images/val")
    (folder / "data.yaml").write_text(yaml.safe_dump(content))
    return folder / "data.yaml"


def test_a_checkpoint_goes_in_and_comes_out(flower: Flower, app: Path, tmp_path: Path) -> None:
    home, data = tmp_path / "home", photographs(tmp_path / "photographs")
    flower.run(
        app,
        f'home="{home}" data="{data}" weights="{checkpoint()}" image-size={SIDE} batch-size=4 '
        "num-server-rounds=1 local-epochs=15",
    )
    manager = ModelManager(home=home)
    version = manager.get_version("1")
    assert version.metrics["mAP50"] > 0.01

    out = tmp_path / "out"
    out.mkdir()
    shutil.copy(data, out)
    for file in ("best.pt", "best.onnx"):
        export_version(manager, "1", out / file)
    picture = next((data.parent / "images" / "val").iterdir())
    found = use_alone(out, picture, side=SIDE, conf=0.05)
    again = evaluate_version(manager, "1", data)
    for name in ("mAP50", "mAP50-95", "precision", "recall"):
        registered = round(version.metrics[name], 4)
        assert round(found["scores"][f"metrics/{name}(B)"], 4) == registered, name
        assert round(again.scores[name], 4) == registered, name
    weights = manager.weights_path("1")
    model = described_model(read_description(weights))
    from_arrays(model, load_weights(weights))
    boxes = model.predict(picture, conf=0.05)[0].boxes.data.numpy()
    assert len(boxes)
    np.testing.assert_allclose(found["boxes"]["best.pt"], boxes, atol=1e-2)
    np.testing.assert_allclose(found["boxes"]["best.onnx"], found["boxes"]["squares"], atol=5e-2)
