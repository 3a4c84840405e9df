# SPDX-License-Identifier: AGPL-3.0-or-later
"""One local round: which weights it starts from, how often it steps, what it leaves behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.arrays import to_arrays
from ultralytics.data.augment import Mosaic
from ultralytics.models.yolo.detect import DetectionTrainer
from ultralytics.nn.tasks import DetectionModel

from fl_app.client.hardware import Hardware
from fl_app.client.train_args import TrainArgs, read_train_args
from fl_app.client.training import TrainingError, torch_threads, train_locally
from fl_models.dataset import PictureDataset
from fl_models.decoding import read_pictures
from fl_models.pictures import DataSpec, Picture
from fl_models.yolo import YoloModel, from_arrays, get_model

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def pictures(shapes: DataSpec) -> list[Picture]:
    return read_pictures(shapes.train[:10], range(7))


@pytest.fixture
def model() -> YoloModel:
    return get_model("n", 7, seed=1)


def local_round(model: YoloModel, pictures: list[Picture], **changes: Any) -> float:
    arguments: dict[str, Any] = {
        "names": [f"class {i}" for i in range(7)],
        "image_size": 64,
        "batch_size": 4,
        "epochs": 1,
        "seed": 5,
    }
    return train_locally(model, pictures, **{**arguments, **changes})


def test_exactly_the_given_weights_are_trained_in_place(
    model: YoloModel, pictures: list[Picture]
) -> None:
    given, seen = to_arrays(model), []

    def look(module: torch.nn.Module, inputs: tuple[Any, ...]) -> None:
        if module.training and not seen:
            seen.append((id(module), to_arrays(module)))

    handle = model.register_forward_pre_hook(look)
    loss = local_round(model, pictures)
    handle.remove()

    identity, first = seen[0]
    assert identity == id(model)
    assert list(first) == list(given)
    assert all(first[name].tobytes() == given[name].tobytes() for name in given)
    trained = to_arrays(model)
    assert not np.array_equal(trained["model.0.conv.weight"], given["model.0.conv.weight"])
    assert trained["model.0.bn.num_batches_tracked"] == 3
    assert {a.dtype for a in trained.values()} == {np.dtype("f4"), np.dtype("i8")}
    assert 0 < loss < 100


class UltralyticsRound(DetectionTrainer):  # type: ignore[misc]  # Ultralytics is untyped to mypy
    """Ultralytics' own trainer on the same pictures, with nothing of it but the loop changed."""

    def __init__(self, model: YoloModel, pictures: list[Picture], **settings: Any) -> None:
        self.pictures = pictures
        super().__init__(overrides={**settings, "model": "yolov8n.yaml", "data": "given"})
        self.model = model

    def get_dataset(self) -> dict[str, Any]:
        names = {number: f"class {number}" for number in range(7)}
        return {"train": "", "val": "", "names": names, "nc": 7, "channels": 3}

    def get_dataloader(
        self, dataset_path: str, batch_size: int = 16, rank: int = 0, mode: str = "train"
    ) -> Any:
        names = list(self.data["names"].values())
        dataset = PictureDataset(self.pictures, names, settings=self.args, augment=True)
        return dataset.loader(self.device)

    def validate(self) -> tuple[dict[str, float], float]:
        return {}, 0.0

    def final_eval(self) -> None: ...


SAME_AS_ULTRALYTICS = {
    "its defaults: auto, warm-up, nbs": {"nbs": 64},
    "sgd, mosaic closed": {"optimizer": "SGD", "lr0": 0.001, "close_mosaic": 1, "nbs": 8},
    "warm-up of the bias": {"optimizer": "Adam", "lr0": 2e-4, "warmup_bias_lr": 0.001, "nbs": 4},
    "cosine, no warm-up": {
        "optimizer": "AdamW",
        "lr0": 2e-4,
        "cos_lr": True,
        "warmup_epochs": 0,
        "momentum": 0.8,
        "weight_decay": 0.01,
        "nbs": 4,
    },
    "frozen layers, gains": {
        "nbs": 64,
        "freeze": [0, 2],
        "box": 5.0,
        "cls": 1.0,
        "dfl": 1.0,
        "fliplr": 0.0,
    },
    "several sizes": {"multi_scale": 0.5, "nbs": 4},
    "other augmentation": {"mixup": 0.5, "cutmix": 0.5, "degrees": 9.0, "scale": 0.2, "nbs": 4},
}


@pytest.mark.parametrize("given", SAME_AS_ULTRALYTICS.values(), ids=[*SAME_AS_ULTRALYTICS])
def test_the_weights_are_those_of_ultralytics_own_trainer_but_for_rounding(
    pictures: list[Picture], tmp_path: Path, given: dict[str, Any]
) -> None:
    epochs = 3
    ours, theirs = get_model("n", 7, seed=1), get_model("n", 7, seed=1)
    before = to_arrays(ours)
    args = TrainArgs(read_train_args(json.dumps(given)), epochs=epochs)
    side = 128 if "multi_scale" in given else 64  # at 32 pixels batch norm makes much of rounding
    loss = local_round(ours, pictures, epochs=epochs, args=args, image_size=side)
    trainer = UltralyticsRound(
        theirs,
        pictures,
        task="detect",
        imgsz=side,
        batch=4,
        epochs=epochs,
        **given,
        seed=5,
        device="cpu",
        amp=False,
        plots=False,
        deterministic=False,
        save_dir=str(tmp_path),
    )
    with torch_threads(1):
        trainer.train()
    first, second = to_arrays(ours), to_arrays(theirs)
    moved = sum(float(np.abs(second[name] - before[name]).sum()) for name in before)
    apart = sum(float(np.abs(first[name] - second[name]).sum()) for name in before)
    assert moved > 0
    assert apart < 0.001 * moved
    assert loss == pytest.approx(sum(float(v) for v in trainer.tloss.values()), rel=1e-3)


@pytest.mark.parametrize("family", ["yolov10n.yaml", "yolo26n.yaml"])
def test_the_loss_of_a_family_goes_on_with_the_session(
    pictures: list[Picture], family: str
) -> None:
    def gains(model: Any, epoch: int, epochs: int) -> list[tuple[float, float]]:
        """The weights of both heads in each epoch of a round."""
        seen: list[tuple[float, float]] = []
        handle = model.register_forward_pre_hook(
            lambda *_: seen.append((model.criterion.o2m, model.criterion.o2o))
        )
        local_round(model, pictures[:4], epochs=epochs, args=TrainArgs({}, epoch, epochs=4))
        handle.remove()
        return seen

    model = DetectionModel(family, nc=7, verbose=False)
    whole = gains(model, 0, 4)
    assert gains(model, 0, 2) + gains(model, 2, 2) == whole
    assert whole[0] == pytest.approx((0.8, 0.2))
    assert whole[-1] == pytest.approx((0.1, 0.9))


def test_mosaic_is_closed_by_the_epochs_of_the_session(
    pictures: list[Picture], model: YoloModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    mosaics: list[object] = []
    made = Mosaic.get_indexes
    monkeypatch.setattr(
        Mosaic, "get_indexes", lambda mosaic: mosaics.append(mosaic) or made(mosaic)
    )
    counts = []
    for epoch in (2, 0, 4):  # a session that starts anew has its mosaics again
        args = TrainArgs({"close_mosaic": 3}, epoch, epochs=6)
        local_round(model, pictures, epochs=2, args=args)
        counts.append(len(mosaics))
        mosaics.clear()
    assert counts == [10, 20, 0]


def test_gradients_that_a_round_leaves_make_a_step_unless_it_is_the_last(
    pictures: list[Picture], model: YoloModel
) -> None:
    given, name = to_arrays(model), "model.0.conv.weight"

    def trained(epochs: int) -> np.ndarray:
        from_arrays(model, given)
        values = {"optimizer": "SGD", "lr0": 1e-3, "lrf": 1, "nbs": 8, "warmup_epochs": 0}
        args = TrainArgs({**values, "close_mosaic": 9}, epochs=epochs)
        # Four of the six gradients make a step.
        local_round(model, pictures[:6], epochs=2, args=args, batch_size=2)
        return to_arrays(model)[name]

    last, not_last = trained(2), trained(4)
    assert not np.array_equal(last, given[name])
    assert not np.array_equal(not_last, last)


def test_frozen_layers_stay_as_they_are(pictures: list[Picture], model: YoloModel) -> None:
    given = to_arrays(model)
    local_round(model, pictures, args=TrainArgs({"freeze": 2, "nbs": 4}))
    trained = to_arrays(model)
    same = {name for name in given if np.array_equal(given[name], trained[name])}
    frozen = {name for name in given if name.startswith(("model.0.", "model.1."))}
    assert frozen <= same
    assert all(".dfl." in name for name in same - frozen)
    from_arrays(model, given)  # the module is used again, as a client does, without the argument
    local_round(model, pictures, args=TrainArgs({"nbs": 4}))
    assert not np.array_equal(given["model.0.conv.weight"], to_arrays(model)["model.0.conv.weight"])


def test_a_model_that_is_frozen_as_a_whole_is_an_error(
    pictures: list[Picture], model: YoloModel
) -> None:
    with pytest.raises(TrainingError, match="freeze=99 in train-args freezes every layer"):
        local_round(model, pictures, args=TrainArgs({"freeze": 99}))


def test_a_round_on_other_pictures_has_nothing_of_the_round_before(
    pictures: list[Picture],
) -> None:
    def trained(which: list[Picture]) -> bytes:
        model = get_model("n", 7, seed=1)
        local_round(model, which)
        return to_arrays(model)["model.0.conv.weight"].tobytes()

    first, other = trained(pictures[:6]), trained(pictures[4:])
    assert first != other
    assert trained(pictures[4:]) == other  # decoded pictures are there already
    again = [Picture(p.path, p.shape, p.boxes) for p in pictures[:6]]
    assert trained(again) == first


def test_a_seed_repeats_the_round_and_another_changes_it(pictures: list[Picture]) -> None:
    given = to_arrays(get_model("n", 7, seed=1))
    outcomes = []
    model = get_model("n", 7)
    for seed in (5, 5, 6):  # the module is used again, as a client does
        from_arrays(model, given)
        local_round(model, pictures, seed=seed)
        outcomes.append(to_arrays(model))
    first, second, other = outcomes
    assert all(first[name].tobytes() == second[name].tobytes() for name in first)
    assert not np.array_equal(first["model.0.conv.weight"], other["model.0.conv.weight"])


def test_background_pictures_alone_can_be_trained_on(
    model: YoloModel, pictures: list[Picture]
) -> None:
    empty = [Picture(p.path, p.shape, np.zeros((0, 5), np.float32)) for p in pictures[:4]]
    assert np.isfinite(local_round(model, empty))


def test_a_loss_that_is_no_number_is_an_error(model: YoloModel, pictures: list[Picture]) -> None:
    with torch.no_grad():
        model.model[-1].cv3[0][-1].bias[:] = float("nan")
    with pytest.raises(TrainingError, match="the loss is nan after local epoch 1"):
        local_round(model, pictures)


def test_a_last_batch_too_small_for_the_picture_size_is_an_error(
    model: YoloModel, pictures: list[Picture]
) -> None:
    with pytest.raises(TrainingError, match="leave a last batch of one"):
        local_round(model, pictures[:5], image_size=32)


def test_threads_are_as_asked_within_and_as_before_after(
    model: YoloModel, pictures: list[Picture]
) -> None:
    within = set()
    with torch_threads(2):
        handle = model.register_forward_pre_hook(lambda *_: within.add(torch.get_num_threads()))
        local_round(model, pictures[:4], hardware=Hardware(threads=1))
        handle.remove()
        assert torch.get_num_threads() == 2
    assert within == {1}


PROBE = """
import json, os, socket, sys
from pathlib import Path

calls = []
def refuse(*args, **kwargs):
    calls.append(str(args))
    raise OSError("no network in this test")
socket.getaddrinfo = socket.create_connection = refuse
socket.socket.connect = socket.socket.connect_ex = refuse

data, outside = Path(sys.argv[1]), [Path(arg) for arg in sys.argv[2:]]
import fl_models.yolo  # Ultralytics writes its settings once, when it is first imported

def snapshot():
    places = [data.parent, *outside]
    found = [path for place in places for path in place.rglob("*")]
    # torchvision, which the scores need, has torch's compiler make an empty folder of this name.
    return {str(p): p.stat().st_mtime_ns for p in found if "torchinductor_" not in p.name}

before = snapshot()
from fl_app.client.data_yaml import load_data_spec
from fl_app.client.training import train_locally
from fl_models.holdout import Holdout
from fl_models.yolo import get_model
from fl_models.decoding import read_pictures

spec = load_data_spec(data, 7)
model = get_model("n", 7, names=spec.names)
pictures = read_pictures(spec.train[:8], range(7))
train_locally(model, pictures, names=spec.names, image_size=64, batch_size=4, epochs=2,
              seed=1)
slow = [m for m in ("torch._dynamo", "torchvision", "scipy.stats", "polars", "requests")
        if m in sys.modules]
Holdout(spec, image_size=64)(model)
model.predict(spec.val[0])
after = snapshot()
modules = slow + [m for m in ("mlflow", "ray", "matplotlib.pyplot", "wandb") if m in sys.modules]
print(json.dumps({"changed": sorted(set(before.items()) ^ set(after.items())), "calls": calls,
                  "modules": modules}))
"""


@pytest.fixture
def read_only() -> Iterator[Callable[[Path], None]]:
    locked: list[Path] = []

    def lock(folder: Path) -> None:
        locked.extend(path for path in [folder, *folder.rglob("*")] if path.is_dir())
        for path in locked:
            path.chmod(0o555)

    yield lock
    for path in locked:
        path.chmod(0o755)


def test_a_round_uses_no_network_and_leaves_nothing_behind(
    own_yaml: Path, tmp_path: Path, read_only: Callable[[Path], None]
) -> None:
    folders = {name: tmp_path / name for name in ("cwd", "home", "settings", "temporary")}
    for folder in folders.values():
        folder.mkdir()
    read_only(own_yaml.parent)
    environment = {
        "PATH": "/usr/bin:/bin",
        "HOME": str(folders["home"]),
        "YOLO_CONFIG_DIR": str(folders["settings"]),
        "TMPDIR": str(folders["temporary"]),
        "PYTHONPATH": os.pathsep.join(sys.path),
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", PROBE, str(own_yaml), *map(str, folders.values())],
        capture_output=True,
        text=True,
        cwd=folders["cwd"],
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == {"changed": [], "calls": [], "modules": []}
