# SPDX-License-Identifier: AGPL-3.0-or-later
"""`fl-app export`: by number and by stage, its options, and what bad input gets."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from ultralytics import YOLO

from fl_app.cli import main
from fl_models.yolo import get_model
from fl_registry import ModelManager
from fl_registry.files.weights import save_weights

NAMES = ["fish", "shark"]
Said = tuple[int, str, str]
Command = Callable[..., Said]


@pytest.fixture
def fl_app(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """Run `fl-app WORDS` as its entry point does; return its status and what it printed."""
    monkeypatch.setenv("COLUMNS", "200")

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
