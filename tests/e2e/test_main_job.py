# SPDX-License-Identifier: Apache-2.0
"""The main job by the real `flwr run`: eight rounds on generated shapes, and life afterwards."""

from __future__ import annotations

import base64
from pathlib import Path

import numpy as np
import pytest
from support.flower import ROOT, Flower

from fl_registry import FederatedLearningTracker, ModelManager
from fl_registry.files.digests import file_digest
from fl_registry.files.weights import load_weights

pytestmark = pytest.mark.slow


def test_eight_rounds_leave_eight_versions_and_a_curve_that_rises(
    trained: tuple[Flower, str],
) -> None:
    flower, printed = trained
    manager = ModelManager(home=flower.fl_app_home)
    rows = manager.list_all_versions()
    assert [row["tags"]["round"] for row in rows] == ["8", "7", "6", "5", "4", "3", "2", "1"]
    assert {row["stage"] for row in rows} >= {"Staging", "None"}
    assert rows[0]["tags"]["stage"] == rows[0]["stage"]

    curve = [m.value for m in manager.client.get_metric_history(rows[0]["run_id"], "mAP50")]
    assert len(curve) == 9
    assert curve[-1] >= 0.8
    assert curve[-1] >= curve[0] + 0.3
    assert curve[0] < 0.05
    logged = {item.path for item in manager.client.list_artifacts(rows[0]["run_id"])}
    assert logged == {
        *("metrics.png", "predictions.png", "train_batch.png", "per_class.csv"),
        *(f"Box{curve}_curve.png" for curve in ("F1", "P", "PR", "R")),
        *("confusion_matrix.png", "confusion_matrix_normalized.png"),
    }

    assert "8/8" in printed
    assert "left)" in printed
    (waiting,) = (row["version"] for row in rows if row["tags"].get("approval") == "pending")
    assert f"fl-app approve {waiting}" in printed
    assert (flower.fl_app_home / "mlflow.db").is_file()


def test_the_version_s_metrics_are_what_ultralytics_finds_for_its_weights(
    trained: tuple[Flower, str],
) -> None:
    from fl_app.client.data_yaml import load_data_spec
    from fl_models.holdout import Holdout
    from fl_models.yolo import from_arrays, get_model

    flower, _ = trained
    manager = ModelManager(home=flower.fl_app_home)
    version = manager.get_version("8")
    spec = load_data_spec(next((flower.fl_app_home / "data").glob("*/data.yaml")), 7)
    model = get_model("n", 7)
    from_arrays(model, load_weights(manager.weights_path("8")))
    scores = Holdout(spec, image_size=96)(model)
    assert scores == pytest.approx({k: version.metrics[k] for k in scores}, abs=1e-4)


def test_mlflow_itself_serves_what_was_trained(trained: tuple[Flower, str]) -> None:
    from mlflow.pyfunc import load_model

    from fl_app.client.data import data_digest
    from fl_app.client.data_yaml import load_data_spec

    flower, _ = trained
    manager = ModelManager(home=flower.fl_app_home)
    spec = load_data_spec(next((flower.fl_app_home / "data").glob("*/data.yaml")), 7)
    served = load_model(str(manager.weights_path("8").parent))
    pictures = [base64.b64encode(path.read_bytes()).decode() for path in spec.val[:4]]
    found = served.predict({"image": pictures})
    assert len(found) == 4
    names = {box["name"] for boxes in found for box in boxes}
    assert names
    assert names <= set(spec.names)
    run = manager.client.get_run(manager.get_version("8").run_id)
    assert run.data.tags["dataset.holdout"] == data_digest(spec.val, spec)


def test_provenance_names_both_nodes_and_their_data(trained: tuple[Flower, str]) -> None:
    import json

    flower, _ = trained
    tags = ModelManager(home=flower.fl_app_home).get_version("8").tags
    nodes = json.loads(tags["nodes"])
    assert len({node["node_id"] for node in nodes}) == 2
    assert len({node["data_digest"] for node in nodes}) == 2
    assert all(node["num_examples"] > 100 for node in nodes)
    assert tags["flower_run_id"].isdigit()


def test_promoted_weights_are_the_round_s_and_find_shapes(
    trained: tuple[Flower, str], tmp_path: Path
) -> None:
    from support.arrays import to_arrays

    from fl_models.yolo import get_model

    flower, _ = trained
    said = flower.command("fl-app", "promote", "8", "--note", "it sees well", cwd=tmp_path)
    assert "Version 8 of fl-global-model is in Production now." in said.stdout

    manager = ModelManager(home=flower.fl_app_home)
    aliased = manager.client.get_model_version_by_alias("fl-global-model", "production")
    assert str(aliased.version) == "8"
    model = manager.load_production_model(lambda: get_model("n", 7))
    assert model is not None
    path = manager.weights_path("8")
    assert file_digest(path) == manager.get_version("8").sha256
    loaded = to_arrays(model)
    for name, values in load_weights(path).items():
        np.testing.assert_array_equal(loaded[name], values)
    picture = sorted((flower.fl_app_home / "data").glob("*/images/val/*"))[0]
    boxes = model.predict(picture)[0].boxes
    assert len(boxes) >= 1


def test_the_readme_s_python_finds_shapes_too(trained: tuple[Flower, str], tmp_path: Path) -> None:
    flower, _ = trained
    blocks = (ROOT / "README.md").read_text().split("```python\n")[1:]
    (snippet,) = (b.split("```")[0] for b in blocks if "load_production_model" in b)
    picture = sorted((flower.fl_app_home / "data").glob("*/images/val/*"))[0]
    script = snippet.replace("picture.jpg", str(picture)) + "print(len(results[0].boxes))\n"
    said = flower.command("python", "-c", script, cwd=tmp_path).stdout
    assert int(said.split()[-1]) >= 1


def test_a_second_run_from_another_folder_goes_on_from_production(
    trained: tuple[Flower, str], flower: Flower, app: Path, tmp_path: Path
) -> None:
    home = trained[0].fl_app_home
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    trained[0].command("fl-app", "promote", "8", cwd=elsewhere)
    printed = flower.run(app, f'home="{home}" num-server-rounds=1', cwd=elsewhere)
    manager = ModelManager(home=home)
    newest = manager.get_version("9")
    assert newest.tags["parent_version"] == "8"
    assert "starting from version 8 (Production)" in printed
    assert newest.metrics["mAP50"] > 0.7
    assert list(elsewhere.iterdir()) == []
    assert not list(ROOT.glob("mlflow.db")) + list(ROOT.glob("mlruns")) + list(ROOT.glob("runs"))


def test_the_tracker_has_one_run_a_session(trained: tuple[Flower, str]) -> None:
    flower, _ = trained
    tracker = FederatedLearningTracker(home=flower.fl_app_home)
    client = ModelManager(home=flower.fl_app_home).client
    experiment = client.get_experiment_by_name(tracker.experiment_name)
    runs = client.search_runs([experiment.experiment_id])
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert runs[-1].data.params["num-server-rounds"] == "8"
    assert runs[-1].data.params["strategy"] == "StreamingFedAvg"
    assert runs[-1].data.params["train-args.lr0"] == "0.002"
