# SPDX-License-Identifier: Apache-2.0
"""What the server does with a falling score, with bad settings, and with real photographs."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from support.flower import ROOT, Flower
from support.shipped_app import shipped_app

from fl_app.client.generated_shapes import shapes_data
from fl_registry import ModelManager
from fl_registry.files.weights import load_weights, save_weights

pytestmark = pytest.mark.slow

AQUARIUM = ROOT.parent / "shared" / "data" / "aquarium" / "data.yaml"
SIDE = 160


def test_a_falling_score_starts_a_session_from_production_that_names_the_reason(
    trained: tuple[Flower, str], flower: Flower, tmp_path: Path
) -> None:
    home, name = trained[0].fl_app_home, "poisoned"
    good = ModelManager(home=home).weights_path("8")
    manager = ModelManager(None, name, home=home)
    champion = manager.save_model_version(good, metrics={"mAP50": 0.9}, tags={"round": "8"})
    manager.promote_to_production(champion, actor="test")

    few = shapes_data(tmp_path, train=96)  # with the pictures to score that the champion knows
    printed = flower.run(
        shipped_app(tmp_path / "poisoned", "poisoned_client"),
        f'home="{home}" data="{few}" registered-model-name="{name}" num-server-rounds=3 '
        "local-epochs=1 max-retrains=1",
    )
    assert printed.count("retraining is requested") == 1
    rows = manager.list_all_versions()
    assert [row["tags"]["session"] for row in rows[:6]] == ["2", "2", "2", "1", "1", "1"]
    second, first = rows[0]["tags"], rows[3]["tags"]
    assert first["trigger"] == ""
    assert "below its baseline" in second["trigger"]
    assert second["parent_version"] == first["parent_version"] == champion
    assert rows[0]["run_id"] != rows[3]["run_id"]
    run = manager.client.get_run(rows[0]["run_id"])
    assert run.data.tags["trigger"] == second["trigger"]
    assert run.data.tags["request_id"]
    assert manager.get_latest_version("Production") == champion


@pytest.mark.skipif(not AQUARIUM.is_file(), reason=f"no photographs at {AQUARIUM}")
def test_photographs_on_four_skewed_nodes_score_as_plain_ultralytics_scores_them(
    flower: Flower, app: Path, tmp_path: Path
) -> None:
    home, data = tmp_path / "aquarium", few_to_score(tmp_path)
    manager = ModelManager(home=home)
    parent = manager.save_model_version(learnt_by_heart(data), tags={"round": "0"})
    printed = flower.run(
        app,
        f'home="{home}" data="{data}" image-size={SIDE} num-server-rounds=1 local-epochs=1 '
        'partitioning="dirichlet" alpha=0.5 train-args="{optimizer: AdamW, lr0: 0.0001}" '
        'workers=1 cache="ram"',
        "--federation-config",
        "num-supernodes=4",
    )
    assert "Received 4 results and 0 failures" in printed
    run = manager.get_version("2").run_id
    served = {m.step: m.value for m in manager.client.get_metric_history(run, "mAP50")}
    # The federation's score of a model that has seen something, and of the round's own.
    assert served[0] > 0.1
    for step, version in ((0, parent), (1, "2")):
        plain = plain_ultralytics(manager.weights_path(version), tmp_path / f"plain-{step}")
        assert served[step] == pytest.approx(plain, abs=5e-5)


def few_to_score(folder: Path) -> Path:
    """A data.yaml with all photographs to train on and a dozen to score."""
    few = sorted((AQUARIUM.parent / "images" / "valid").iterdir())[:12]
    (folder / "few.txt").write_text("".join(f"{path}\n" for path in few))
    content = yaml.safe_load(AQUARIUM.read_text())
    content.update(path=str(AQUARIUM.parent), val=str(folder / "few.txt"))
    (folder / "data.yaml").write_text(yaml.safe_dump(content))
    return folder / "data.yaml"


BY_HEART = "{lr0: 0.003, lrf: 1, mosaic: 0, scale: 0.2, optimizer: AdamW, warmup_epochs: 0}"


def learnt_by_heart(data: Path) -> Path:
    """Weights that know the dozen, so that their score is far from zero."""
    from support.arrays import to_arrays

    from fl_app.client.data_yaml import load_data_spec
    from fl_app.client.train_args import TrainArgs, read_train_args
    from fl_app.client.training import train_locally
    from fl_models.decoding import read_pictures
    from fl_models.yolo import get_model

    spec = load_data_spec(data, 7)
    model = get_model("n", 7, names=spec.names, seed=0)
    train_locally(
        model,
        read_pictures(spec.val, range(7)),
        names=spec.names,
        image_size=SIDE,
        batch_size=4,
        epochs=80,
        args=TrainArgs(read_train_args(BY_HEART)),
        seed=2,
    )
    path = data.with_name("by-heart.safetensors")
    save_weights(to_arrays(model), path)
    return path


def plain_ultralytics(weights: Path, folder: Path) -> float:
    """mAP50 by Ultralytics' own validator and data loader, nothing of this project in between."""
    import torch
    from ultralytics.models.yolo.detect import DetectionValidator
    from ultralytics.nn.tasks import DetectionModel

    model = DetectionModel("yolov8n.yaml", nc=7, verbose=False)
    model.load_state_dict({k: torch.from_numpy(v) for k, v in load_weights(weights).items()})
    # Ultralytics writes a cache beside the labels, so it gets links in a folder of its own, and a
    # font, so that it looks for none on the network.
    (folder / "images").mkdir(parents=True)
    (folder / "labels").mkdir()
    for line in (folder.parent / "few.txt").read_text().splitlines():
        picture, label = Path(line), AQUARIUM.parent / "labels" / "valid" / Path(line).stem
        (folder / "images" / picture.name).symlink_to(picture)
        (folder / "labels" / f"{label.name}.txt").symlink_to(f"{label}.txt")
    names = yaml.safe_load(AQUARIUM.read_text())["names"]
    data = folder / "data.yaml"
    text = {"path": str(folder), "train": "images", "val": "images", "names": names}
    data.write_text(yaml.safe_dump(text))
    settings = {"data": str(data), "imgsz": SIDE, "batch": 16, "rect": False, "device": "cpu"}
    quiet = {"plots": False, "verbose": False, "workers": 0}
    validator = DetectionValidator(save_dir=folder / "val", args={**settings, **quiet})
    return float(validator(model=model)["metrics/mAP50(B)"])


def test_bad_settings_end_the_run_with_one_sentence_and_status_one(
    flower: Flower, app: Path, tmp_path: Path
) -> None:
    config = f'home="{tmp_path}" num-server-rounds=0'
    done = flower.command("fl-app", "run", "--run-config", config, cwd=app, ok=False)
    assert done.returncode == 1
    sentence = "Run-config key 'num-server-rounds' is 0, expected 1 or more"
    assert sentence in done.stdout
    assert "ROUND 1" not in done.stdout
