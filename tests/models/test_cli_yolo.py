# SPDX-License-Identifier: AGPL-3.0-or-later
"""`fl-app export` and `evaluate`: their options, and what bad input gets."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from support.terminal import as_terminal
from ultralytics import YOLO

from fl_app.cli import main
from fl_models.holdout import Holdout
from fl_models.pictures import DataSpec, label_file
from fl_models.yolo import YoloModel, get_model
from fl_registry import ModelManager
from fl_registry.files.weights import save_weights

NAMES = ["fish", "shark"]
Said = tuple[int, str, str]
Command = Callable[..., Said]


@pytest.fixture
def fl_app(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """Run `fl-app WORDS` as its entry point does; return its status and what it printed."""
    as_terminal(monkeypatch, 200)

    def run(*words: object) -> Said:
        with pytest.raises(SystemExit) as ended:
            main.main([str(word) for word in words])
        code = ended.value.code
        return int(code) if isinstance(code, int) else 0, *capsys.readouterr()

    return run


@pytest.fixture
def manager(home: Path, tmp_path: Path) -> ModelManager:
    """Version 1 is a detector, in Production; version 2 is of another app."""
    manager = ModelManager()
    network = get_model("n", 2, names=NAMES, seed=1, image_size=96)
    arrays = {name: array.numpy() for name, array in network.state_dict().items()}
    save_weights(arrays, tmp_path / "1.safetensors", model=network.description)
    save_weights({"w": np.ones(3, np.float32)}, tmp_path / "2.safetensors")
    for number in (1, 2):
        manager.save_model_version(tmp_path / f"{number}.safetensors", metrics={"mAP50": 0.5})
    manager.promote_to_production("1")
    return manager


def test_a_version_is_exported_by_number_and_by_stage(
    manager: ModelManager, fl_app: Command, tmp_path: Path
) -> None:
    file = tmp_path / "best.pt"
    status, said, _ = fl_app("export", "1", file)
    assert (status, said) == (0, f"Version 1 is in {file} ({file.stat().st_size / 1e6:.1f} MB).\n")
    assert YOLO(file).names == dict(enumerate(NAMES))
    whole = file.stat().st_size
    status, said, _ = fl_app("export", "production", file, "--half", "--force", "--json")
    assert status == 0
    assert json.loads(said) == {"version": "1", "file": str(file), "bytes": file.stat().st_size}
    assert file.stat().st_size < 0.6 * whole


def test_arguments_are_read_as_ultralytics_reads_them(
    manager: ModelManager, fl_app: Command, tmp_path: Path
) -> None:
    file = tmp_path / "best.onnx"
    status, _, errors = fl_app("export", "1", file, "imgsz=64", "simplify=False")
    assert status == 0, errors
    result = YOLO(file, task="detect").predict(np.zeros((64, 64, 3), np.uint8), verbose=False)
    assert result[0].names == dict(enumerate(NAMES))


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("2", "best.pt"), "Nothing was exported: the weights are of an unknown model, expected"),
        (("7", "best.pt"), "There is no version 7"),
        (("staging", "best.pt"), "No version is in stage Staging; the newest is version 2"),
        (("newest", "best.pt"), "There is no stage 'newest'"),
        (("1", "best.onnx", "imgsz"), "'imgsz' is not an argument, expected one such as imgsz=640"),
        (("1", "best.onnx", "imgzs=64"), "'imgzs' is not a valid YOLO argument."),
        (("1", "there.pt"), "there.pt exists; choose another name, or replace it with --force."),
    ],
)
def test_what_cannot_be_exported_is_told_in_one_sentence(
    words: tuple[str, str],
    why: str,
    *,
    manager: ModelManager,
    fl_app: Command,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    here = tmp_path / "here"
    here.mkdir()
    (here / "there.pt").write_text("mine")
    monkeypatch.chdir(here)
    status, said, errors = fl_app("export", *words)
    assert (status, said) == (1, "")
    assert why in errors
    assert errors.count("\n") == 1
    assert [path.name for path in here.iterdir()] == ["there.pt"]


@pytest.fixture(scope="module")
def trained(
    lively_model: YoloModel, labelled_by_model: DataSpec, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """Weights that find something, and a data.yaml with its classes in another order."""
    folder = tmp_path_factory.mktemp("trained")
    names = list(lively_model.names.values())
    described = {**lively_model.description, "image_size": 64}
    arrays = {name: array.numpy() for name, array in lively_model.state_dict().items()}
    save_weights(arrays, folder / "w.safetensors", model=described)
    (folder / "images").mkdir()
    (folder / "labels").mkdir()
    last = len(names) - 1
    for path in labelled_by_model.val:
        (folder / "images" / path.name).symlink_to(path)
        rows = [row.split() for row in label_file(path).read_text().splitlines()]
        text = "\n".join(" ".join([str(last - int(number)), *box]) for number, *box in rows)
        (folder / "labels" / path.with_suffix(".txt").name).write_text(text)
    (folder / "data.yaml").write_text(f"test: images\nnames: {names[::-1]}\n")
    return folder / "w.safetensors", folder / "data.yaml"


def test_a_version_is_scored_on_another_set_by_the_names_of_its_classes(
    trained: tuple[Path, Path],
    lively_model: YoloModel,
    labelled_by_model: DataSpec,
    home: Path,
    fl_app: Command,
) -> None:
    weights, data = trained
    ModelManager().save_model_version(weights, metrics={"mAP50": 0.5})
    holdout = Holdout(labelled_by_model, image_size=64)
    ours = holdout(lively_model)
    assert ours["mAP50"] > 0.01
    status, said, errors = fl_app("evaluate", "1", "--data", data, "--split", "test", "--json")
    assert status == 0, errors
    found = json.loads(said)
    assert found["scores"] == pytest.approx(ours, abs=1e-6)
    assert {row["class"]: row["mAP50"] for row in found["classes"]} == pytest.approx(
        holdout.per_class("mAP50"), abs=1e-4
    )
    assert (found["pictures"], found["image_size"], found["split"]) == (8, 64, "test")
    status, said, _ = fl_app("evaluate", "None", "--data", data, "--split", "test", "--imgsz", 96)
    first, heads, every, *rows = said.splitlines()
    assert (status, first) == (0, f"Version 1 on test of {data}, 96 pixels:")
    columns = ["class", "images", "boxes", "precision", "recall", "mAP50", "mAP50-95"]
    assert heads.split() == columns
    assert every.split()[:2] == ["all", "8"]
    assert len(rows) == len(found["classes"])


def test_a_set_that_lacks_a_class_is_scored_and_one_with_others_is_refused(
    trained: tuple[Path, Path], home: Path, tmp_path: Path, fl_app: Command
) -> None:
    weights, data = trained
    ModelManager().save_model_version(weights, metrics={"mAP50": 0.5})
    text = data.read_text().replace("test: images", f"path: {data.parent}\ntest: images")
    fewer, others = tmp_path / "fewer.yaml", tmp_path / "others.yaml"
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    (tmp_path / "images" / "0.jpg").symlink_to(next((data.parent / "images").iterdir()).resolve())
    (tmp_path / "labels" / "0.txt").write_text("0 0.5 0.5 0.3 0.3")
    fewer.write_text("val: images\nnames: [class 2]\n")
    status, said, errors = fl_app("evaluate", "1", "--data", fewer, "--json")
    assert status == 0, errors
    assert [row["class"] for row in json.loads(said)["classes"]] == ["class 2"]
    others.write_text(text.replace("class 2", "klass 2"))
    status, said, errors = fl_app("evaluate", "1", "--data", others, "--split", "test")
    assert (status, said) == (1, "")
    assert "it has 'klass 2' (did you mean 'class 2'?)" in errors
    assert errors.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("1",), "has no val, expected a folder or a list file."),
        (("1", "--split", "test", "--imgsz", "65"), "65 pixels, expected a multiple of 32: set im"),
        (("1", "--split", "test", "--device", "cuda:99"), "cuda:99"),
        (("2", "--split", "test"), "Nothing was scored: the weights are of an unknown model, exp"),
    ],
)
def test_what_cannot_be_scored_is_told_in_one_sentence(
    words: tuple[str, ...],
    why: str,
    *,
    trained: tuple[Path, Path],
    home: Path,
    tmp_path: Path,
    fl_app: Command,
) -> None:
    weights, data = trained
    save_weights({"w": np.ones(3, np.float32)}, tmp_path / "2.safetensors")
    for path in (weights, tmp_path / "2.safetensors"):
        ModelManager().save_model_version(path, metrics={"mAP50": 0.5})
    status, said, errors = fl_app("evaluate", *words, "--data", data)
    assert (status, said) == (1, "")
    assert why in errors
    assert errors.count("\n") == 1
