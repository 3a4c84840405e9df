# SPDX-License-Identifier: Apache-2.0
"""PyTorch files on their way in: what is imported, what is refused, and that none of it runs."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fl_registry import ArtifactError
from fl_registry.files.artifacts import prepared
from fl_registry.files.digests import file_digest


class Bomb:
    """Runs a command when it is unpickled without care."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.target),)


def test_code_in_a_file_is_refused_and_not_run(tmp_path: Path) -> None:
    torch.save({"weight": torch.ones(1), "model": Bomb(tmp_path / "ran")}, tmp_path / "b.pt")
    with (
        pytest.raises(ArtifactError, match=r"cannot be read safely.*save model.state_dict\(\)"),
        prepared(tmp_path / "b.pt", tmp_path / "scratch"),
    ):
        pass
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "content",
    [
        {"model": nn.Linear(2, 2), "epoch": 3},  # as Ultralytics' own checkpoints are
        {"state_dict": {"w": 1.0}, "epoch": 3},
        {},
        [torch.ones(1)],
        {1: torch.ones(1)},
        {"w": torch.ones(2, 2).to_sparse()},
    ],
)
def test_anything_but_a_plain_state_dict_is_refused(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(ArtifactError), prepared(tmp_path / "x.pth", tmp_path / "scratch"):
        pass


def test_shared_and_strided_tensors_are_imported(tmp_path: Path) -> None:
    base = torch.arange(6, dtype=torch.float64).reshape(2, 3)
    state = OrderedDict(z=base.T, a=base, half=base.to(torch.bfloat16), n=torch.tensor(3))
    torch.save(state, tmp_path / "s.pt")
    from safetensors.torch import load_file

    with prepared(tmp_path / "s.pt", tmp_path / "scratch") as artifact:
        loaded = load_file(artifact.folder / "weights.safetensors")
    assert {k: v.dtype for k, v in loaded.items()} == {k: v.dtype for k, v in state.items()}
    assert all(torch.equal(loaded[name], state[name]) for name in state)


def test_the_same_file_gives_the_same_digest_in_every_process(tmp_path: Path) -> None:
    torch.save(nn.Linear(3, 2).state_dict(), tmp_path / "w.pt")
    code = (
        "import sys; from pathlib import Path;"
        "from fl_registry.files.pt_import import import_checkpoint;"
        "import_checkpoint(Path(sys.argv[1]), Path(sys.argv[2]))"
    )
    digests = set()
    for name in "ab":
        target = tmp_path / f"{name}.safetensors"
        subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / "w.pt"), str(target)],
            cwd=Path(__file__).parents[2],
            check=True,
        )
        digests.add(file_digest(target))
    with prepared(tmp_path / "w.pt", tmp_path / "scratch") as artifact:
        digests.add(artifact.sha256)
    assert len(digests) == 1


def test_state_dicts_of_training_scripts_are_found(tmp_path: Path) -> None:
    state = nn.Linear(3, 2).state_dict()
    wrapped = {f"module.{name}": tensor for name, tensor in state.items()}
    for content in ({"model": state, "epoch": 3}, {"state_dict": state, "optimizer": {}}, wrapped):
        torch.save(content, tmp_path / "w.pt")
        with prepared(tmp_path / "w.pt", tmp_path / "scratch") as artifact:
            names = [row["name"] for row in spec_of(artifact.folder)["arrays"]]
        assert names == ["weight", "bias"]


def spec_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "spec.json").read_text())
    return found


def detectors() -> dict[str, Any]:
    from ultralytics.nn.tasks import DetectionModel, SegmentationModel

    net = DetectionModel("yolov8n.yaml", nc=2, verbose=False)
    fused = copy.deepcopy(net).eval().fuse(verbose=False)
    nan = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    nan["model.0.conv.weight"][:] = float("nan")
    return {
        "ema": {"model": None, "ema": copy.deepcopy(net).half(), "train_args": {"imgsz": 64}},
        "bare": net,
        "parallel": {"model": nn.DataParallel(net)},
        "bfloat16": {n: t.bfloat16() if t.is_floating_point() else t for n, t in nan.items()},
        "nan": nan,
        "fused": {"model": fused},
        "fused state": fused.state_dict(),
        "segment": {"model": SegmentationModel("yolov8n-seg.yaml", nc=2, verbose=False)},
        "net": net,
    }


def test_detectors_come_in_whole_or_are_refused_in_one_sentence(tmp_path: Path) -> None:
    cases = detectors()
    net = cases.pop("net")
    refused = {
        "nan": "NaN or infinity",
        "bfloat16": "NaN or infinity",
        "fused": "fused for inference",
        "fused state": "fused for inference",
        "segment": "a SegmentationModel of Ultralytics, and only its plain detectors",
    }
    for name, content in cases.items():
        torch.save(content, tmp_path / "best.pt")
        if name in refused:
            with (
                pytest.raises(ArtifactError, match=refused[name]),
                prepared(tmp_path / "best.pt", tmp_path / "scratch"),
            ):
                pass
            continue
        with prepared(tmp_path / "best.pt", tmp_path / "scratch") as artifact:
            spec = spec_of(artifact.folder)
        assert {row["dtype"] for row in spec["arrays"]} == {"float32", "int64"}, name
        assert [row["name"] for row in spec["arrays"]] == list(net.state_dict()), name
        assert spec["model"]["names"] == ["0", "1"]
        assert spec["model"]["model"] == "yolov8n"


def test_torchscript_is_not_run(tmp_path: Path) -> None:
    torch.jit.script(nn.Linear(2, 2)).save(str(tmp_path / "script.pt"))
    with (
        pytest.raises(ArtifactError, match="cannot be read safely"),
        prepared(tmp_path / "script.pt", tmp_path / "scratch"),
    ):
        pass
