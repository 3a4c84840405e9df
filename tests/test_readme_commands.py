# SPDX-License-Identifier: AGPL-3.0-or-later
"""Every `fl-app` command of some pages, run as it stands on a store with a past."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from support.docs import page

from fl_app.cli import main
from fl_app.retraining import MonitorStore
from fl_app.retraining.memory.store import default_url
from fl_models.yolo import get_model
from fl_registry import ModelManager
from fl_registry.files.weights import save_weights

PAGES = ("README.md", "gates.md", "retraining.md", "status-page.md", "commands.md")
IN_THE_TEXT, IN_A_BLOCK = "`", "^"
COMMAND = r"uv run (fl-app (?:[^`\n\"#]|\"[^\"\n]*\")+)"
LASTING = {"ui", "serve", "run", "deploy-local", "supernode"}
"""Commands that go on until they are ended; their own tests start them."""


def commands(where: str) -> list[list[str]]:
    """The pages' commands in their order, without `uv run fl-app`."""
    text = "\n".join(map(page, PAGES))
    found = re.findall(f"(?:{where}){COMMAND}", text, re.MULTILINE)
    return [shlex.split(words)[1:] for words in found]


@pytest.fixture
def manager(home: Path, tmp_path: Path) -> ModelManager:
    """Nine versions: 6 and then 7 in production, 8, which is a detector, waiting for approval."""
    manager = ModelManager()
    model = get_model("n", 7, image_size=64)
    detector = {name: array.numpy() for name, array in model.state_dict().items()}
    cv2.imwrite(str(tmp_path / "test.jpg"), np.zeros((64, 64, 3), np.uint8))
    (tmp_path / "test.txt").write_text("6 0.5 0.5 0.4 0.4")
    names = model.description["names"]
    (tmp_path / "test.yaml").write_text(f"val: test.jpg\nnames: {names}\n")
    for number in range(1, 10):
        path = tmp_path / f"{number}.safetensors"
        if number == 8:
            save_weights(detector, path, model=model.description)
        else:
            save_weights({"w": np.full(3, number, dtype=np.float32)}, path)
        tags = {"round": str(number), "metric": "mAP50"}
        manager.save_model_version(path, metrics={"mAP50": number / 10}, tags=tags)
    for version in ("6", "7"):
        manager.promote_to_production(version)
    manager.promote_to_staging("8")
    manager.set_version_tags("8", {"approval": "pending"})
    return manager


@pytest.mark.parametrize(
    ("where", "moves"),
    [
        (IN_THE_TEXT, ["promote 8 looked at the picture", "rollback 7 "]),
        (
            IN_A_BLOCK,
            [
                *("promote 8 it sees well", "promote 9 by hand", "rollback 8 9 misses ships"),
                *("archive 5 blurred pictures", "restore 5 only the copy was blurred"),
            ],
        ),
    ],
)
def test_they_run_as_written_and_do_what_is_said(
    *,
    manager: ModelManager,
    home: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    where: str,
    moves: list[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    before = manager.verify()
    for words in commands(where):
        if words[0] in LASTING:
            continue
        with pytest.raises(SystemExit) as ended:
            main.main(words)
        said = capsys.readouterr()
        assert not ended.value.code, f"{words}: {said.out}{said.err}"
        assert said.out.strip()
    assert [f"{e.op} {e.version} {e.reason}" for e in manager.history()[before:]] == moves
    (request,) = MonitorStore(default_url(home)).requests.history()
    assert str(request["reason"]).startswith("new pictures")


def test_the_pages_show_every_command() -> None:
    text = subprocess.run(
        [sys.executable, "-m", "fl_app.cli", "--help"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    known = set(re.findall(r"^[│|] (\w+) ", text, re.MULTILINE))
    assert len(known) > 10
    shown = {words[0] for where in (IN_THE_TEXT, IN_A_BLOCK) for words in commands(where)}
    # `reject` is named beside `approve`; `acknowledge` is for what is lost, in docs/mlflow.md.
    assert known - shown == {"reject", "acknowledge"}
