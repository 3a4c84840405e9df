# SPDX-License-Identifier: AGPL-3.0-or-later
"""One local round on other hardware: precisions, loader processes, caches, and a pretended GPU."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from support.arrays import to_arrays
from support.pretrained import checkpoint

from fl_app.client.hardware import Hardware, Precision
from fl_app.client.train_args import TrainArgs, read_train_args
from fl_app.client.training import TrainingError, train_locally
from fl_app.devices import DeviceError
from fl_models import decoded
from fl_models.dataset import PictureDataset
from fl_models.decoding import read_pictures
from fl_models.pictures import Picture, file_states
from fl_models.yolo import YoloModel, get_model

ARGS = TrainArgs(read_train_args("{warmup_epochs: 0, nbs: 4, close_mosaic: 1}"), epochs=2)


@pytest.fixture(scope="module")
def pictures(shapes_yaml: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Picture]:
    folder = shutil.copytree(shapes_yaml.parent, tmp_path_factory.mktemp("own") / "set")
    return list(read_pictures(sorted(folder.rglob("train/*.jpg"))[:12], range(7)))


def a_round(pictures: list[Picture], **hardware: Any) -> tuple[YoloModel, float]:
    model = get_model("n", 7, seed=1)
    loss = train_locally(
        model,
        [Picture(p.path, p.shape, p.boxes) for p in pictures],  # none of an earlier round's cache
        names=[f"class {i}" for i in range(7)],
        image_size=64,
        batch_size=4,
        epochs=2,
        seed=5,
        args=ARGS,
        hardware=Hardware(**hardware),
    )
    return model, loss


def weights(model: YoloModel) -> np.ndarray:
    """What is trained, without the running statistics, whose size would hide it."""
    return np.concatenate([w.detach().numpy().ravel() for w in model.parameters()])


@pytest.fixture(scope="module")
def plain(pictures: list[Picture]) -> tuple[np.ndarray, float]:
    model, loss = a_round(pictures)
    return weights(model), loss


@pytest.fixture(scope="module")
def fine_tuned() -> dict[str, torch.Tensor]:
    """Weights of a trained detector: gradients of random ones differ much in any precision."""
    from ultralytics import YOLO

    return dict(YOLO(str(checkpoint())).model.float().state_dict())


# One step, whose gradient decides how the weights move; later steps assign other boxes. Measured:
# 0.17 and 0.03 of the movement, 1.5 and 0.4 per cent of the loss.
@pytest.mark.parametrize(("amp", "apart", "loss"), [("bf16", 0.3, 0.03), ("fp16", 0.1, 0.01)])
def test_a_step_in_mixed_precision_is_near_the_one_in_float32(
    pictures: list[Picture],
    fine_tuned: dict[str, torch.Tensor],
    amp: Any,
    apart: float,
    loss: float,
) -> None:
    first = weights(get_model("n", 7, weights=fine_tuned, seed=1))
    moved, losses = [], []
    for precision in ("off", amp):
        model = get_model("n", 7, weights=fine_tuned, seed=1)
        found = train_locally(
            model,
            pictures[:4],
            names=[f"class {i}" for i in range(7)],
            image_size=64,
            batch_size=4,
            epochs=1,
            seed=5,
            args=TrainArgs(read_train_args("{optimizer: SGD, warmup_epochs: 0, nbs: 4}")),
            hardware=Hardware(amp=precision),
        )
        assert {a.dtype for a in to_arrays(model).values()} == {np.dtype("f4"), np.dtype("i8")}
        moved.append(weights(model) - first)
        losses.append(found)
    assert 0 < np.linalg.norm(moved[1] - moved[0]) < apart * np.linalg.norm(moved[0])
    assert losses[1] == pytest.approx(losses[0], rel=loss)


def test_auto_is_float32_on_a_cpu(pictures: list[Picture], plain: tuple[np.ndarray, float]) -> None:
    model, _ = a_round(pictures, amp="auto")
    assert weights(model).tobytes() == plain[0].tobytes()


def test_a_gradient_that_overflows_costs_a_step_and_no_weight() -> None:
    precision, weight = Precision("fp16", torch.device("cpu")), torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    precision.backward((weight * torch.inf).sum())
    precision.step(optimizer, [weight])
    assert float(weight) == 1.0
    precision.backward((weight * 3).sum())
    precision.step(optimizer, [weight])
    assert float(weight) == -2.0  # unscaled again
    assert (precision.overflows, precision.steps) == (1, 2)


@pytest.mark.parametrize("fails", [1, 2])
def test_steps_that_overflow_are_reported_and_a_round_without_any_other_is_an_error(
    pictures: list[Picture],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    fails: int,
) -> None:
    step = Precision.step

    def overflowing(precision: Precision, optimizer: Any, weights: Any) -> None:
        if precision.steps < fails:
            weights[0].grad.fill_(torch.inf)
        step(precision, optimizer, weights)

    monkeypatch.setattr(Precision, "step", overflowing)
    if fails == 2:
        with pytest.raises(TrainingError, match=r"^2 of 2 steps overflowed in float16, so that n"):
            a_round(pictures[:4], amp="fp16")
        return
    a_round(pictures[:4], amp="fp16")
    assert "1 of 2 steps overflowed in float16 and changed no weight" in caplog.text


def test_gradients_are_clipped_in_every_precision() -> None:
    for amp in ("off", "bf16", "fp16"):
        precision = Precision(amp, torch.device("cpu"))  # type: ignore[arg-type]
        weight = torch.nn.Parameter(torch.zeros(1))
        precision.backward((weight * 50).sum())
        precision.step(torch.optim.SGD([weight], lr=1.0), [weight])
        assert float(weight.detach()) == pytest.approx(-10, rel=1e-4)


def test_precisions_that_a_device_does_not_have_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: False)
    with pytest.raises(DeviceError, match=r"amp='bf16' is not supported by the GPU cuda:1; set"):
        Precision("bf16", torch.device("cuda:1"))
    with pytest.raises(DeviceError, match=r"amp='fp16' is not used on MPS; set amp to 'auto' or"):
        Precision("fp16", torch.device("mps"))


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[Any]]:
    """A pretended GPU: computes on the CPU, and keeps what was asked of CUDA."""
    seen: dict[str, list[Any]] = {"to": [], "autocast": [], "scaler": [], "loader": []}
    real_to, real_autocast, real_scaler = torch.Tensor.to, torch.autocast, torch.amp.GradScaler

    def to(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if args and isinstance(args[0], torch.device) and args[0].type == "cuda":
            seen["to"].append((tuple(tensor.shape), kwargs.get("memory_format"), args, kwargs))
            args = (torch.device("cpu"), *args[1:])
        return real_to(tensor, *args, **kwargs)

    def autocast(device: str, **kwargs: Any) -> Any:
        seen["autocast"].append((device, kwargs["dtype"], kwargs["enabled"]))
        return real_autocast("cpu", **kwargs)

    def scaler(device: str, *, init_scale: float, enabled: bool) -> Any:
        seen["scaler"].append((device, enabled))
        return real_scaler("cpu", init_scale=init_scale, enabled=enabled)

    real_loader = PictureDataset.loader

    def loader(dataset: PictureDataset, device: torch.device) -> Any:
        seen["loader"].append(real_loader(dataset, device))
        return seen["loader"][-1]

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.Tensor, "to", to)
    monkeypatch.setattr(torch, "autocast", autocast)
    monkeypatch.setattr(torch.amp, "GradScaler", scaler)
    monkeypatch.setattr(PictureDataset, "loader", loader)
    return seen


def test_what_a_round_asks_of_a_gpu(pictures: list[Picture], cuda: dict[str, list[Any]]) -> None:
    device = torch.device("cuda:1")
    model, _ = a_round(pictures[:4], device=device, amp="auto")
    assert set(cuda["autocast"]) == {("cuda", torch.float16, True)}
    assert cuda["scaler"] == [("cuda", True)]
    assert [loader.pin_memory for loader in cuda["loader"]] == [True]
    assert all(args[0] == device for _, _, args, _ in cuda["to"])
    convolution = tuple(model.model[0].conv.weight.shape)
    layouts = [given for shape, given, _, _ in cuda["to"] if shape == convolution]
    # Module.to moves each tensor: by position, device, type, blocking, then the layout.
    assert layouts == [torch.channels_last]
    batches = [(args, kwargs) for shape, _, args, kwargs in cuda["to"] if shape == (4, 3, 64, 64)]
    assert len(batches) == 2  # epochs
    assert all(kwargs.get("non_blocking") for _, kwargs in batches)
    assert all(w.is_contiguous() and w.grad is None for w in model.parameters())


def test_bf16_on_a_gpu_has_no_scaler(
    pictures: list[Picture], cuda: dict[str, list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    a_round(pictures[:4], device=torch.device("cuda:0"), amp="bf16")
    assert set(cuda["autocast"]) == {("cuda", torch.bfloat16, True)}
    assert cuda["scaler"] == [("cuda", False)]


def test_after_a_lack_of_memory_nothing_of_the_round_stays_on_the_device(
    pictures: list[Picture], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = get_model("n", 7, seed=1)

    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Precision, "step", full)
    with pytest.raises(torch.OutOfMemoryError):
        train_locally(
            model, pictures, names=["a"] * 7, image_size=64, batch_size=4, epochs=1, seed=5
        )
    assert model.criterion is None
    assert {w.device.type for w in model.parameters()} == {"cpu"}
    assert all(w.grad is None for w in model.parameters())


def children() -> list[psutil.Process]:
    return psutil.Process().children(recursive=True)


def test_loader_processes_repeat_a_round_and_end_with_it(pictures: list[Picture]) -> None:
    before = children()
    first, again = (weights(a_round(pictures, workers=2)[0]) for _ in range(2))
    assert first.tobytes() == again.tobytes()
    assert children() == before


def test_loader_processes_end_with_a_round_that_fails(
    pictures: list[Picture], monkeypatch: pytest.MonkeyPatch
) -> None:
    alive: list[int] = []

    def fails(*_: Any) -> None:
        alive.append(len(children()))
        raise TrainingError("for this test")

    monkeypatch.setattr(Precision, "step", fails)
    before = children()
    with pytest.raises(TrainingError, match="for this test"):
        a_round(pictures, workers=2)
    assert alive == [len(before) + 2]
    assert children() == before


def test_a_killed_loader_process_is_one_sentence(
    pictures: list[Picture], monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(dataset: PictureDataset, index: int) -> Any:
        os.kill(os.getpid(), 9)

    monkeypatch.setattr(PictureDataset, "__getitem__", killed)
    with pytest.raises(TrainingError, match=r"^a process that loads pictures has ended \(.*\): s"):
        a_round(pictures, workers=2)
    assert not [child for child in children() if child.status() != psutil.STATUS_ZOMBIE]


@pytest.mark.parametrize("cache", ["none", "ram", "disk"])
def test_a_cache_changes_no_round(
    pictures: list[Picture], plain: tuple[np.ndarray, float], cache: str, tmp_path: Path
) -> None:
    wait_until_settled(pictures)
    places = {picture.path.parent for picture in pictures}
    before = {place: sorted(place.iterdir()) for place in places}
    for _ in range(2):  # the second finds what the first has cached
        model, _ = a_round(pictures, cache=cache, cache_folder=tmp_path / "decoded")
        assert weights(model).tobytes() == plain[0].tobytes()
    assert {place: sorted(place.iterdir()) for place in places} == before
    found = list((tmp_path / "decoded").rglob("*.npy"))
    assert len(found) == (len(pictures) if cache == "disk" else 0)


def wait_until_settled(pictures: list[Picture]) -> None:
    """Wait until the states of new files can be trusted, two seconds at most."""
    import time

    while file_states([picture.path for picture in pictures]) is None:
        time.sleep(0.1)


def dataset(pictures: list[Picture], folder: Path, *, cache: str = "disk") -> PictureDataset:
    settings = {"imgsz": 64, "batch": 4}
    return PictureDataset(
        pictures, ["a"] * 7, settings=settings, augment=True, cache=cache, cache_folder=folder
    )


def changed(path: Path) -> None:
    other = path.with_name("00001.jpg")
    stat = path.stat()
    shutil.copyfile(other, path)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


@pytest.mark.parametrize("change", [changed, Path.unlink])
def test_a_decoded_picture_on_disk_goes_with_its_picture(
    own_yaml: Path, tmp_path: Path, change: Callable[[Path], None]
) -> None:
    folder = tmp_path / "decoded"
    pictures = list(read_pictures(sorted(own_yaml.parent.rglob("train/*.jpg"))[:2], range(7)))
    wait_until_settled(pictures)
    before = dataset(pictures, folder).load_image(0)[0]
    assert len(list(folder.rglob("*.npy"))) == 2
    assert folder.stat().st_mode & 0o077 == 0
    change(pictures[0].path)
    after = dataset(pictures, folder)
    assert len(list(folder.rglob("*.npy"))) == 1
    if pictures[0].path.exists():
        assert np.array_equal(after.load_image(0)[0], after.load_image(1)[0])
        assert not np.array_equal(after.load_image(0)[0], before)


def test_a_damaged_file_of_the_cache_is_no_damaged_picture(own_yaml: Path, tmp_path: Path) -> None:
    pictures = list(read_pictures(sorted(own_yaml.parent.rglob("train/*.jpg"))[:2], range(7)))
    wait_until_settled(pictures)
    before = dataset(pictures, tmp_path / "decoded").load_image(0)[0]
    for file in (tmp_path / "decoded").rglob("*.npy"):
        file.write_bytes(file.read_bytes()[:-100])  # a process was killed while it wrote
    assert np.array_equal(dataset(pictures, tmp_path / "decoded").load_image(0)[0], before)


def test_a_file_beside_a_picture_is_neither_read_nor_removed(own_yaml: Path) -> None:
    (picture,) = read_pictures(sorted(own_yaml.parent.rglob("train/*.jpg"))[:1], range(7))
    before = dataset([picture], Path(), cache="none").load_image(0)[0]
    theirs = picture.path.with_suffix(".npy")
    theirs.write_bytes(b"of another program")
    assert np.array_equal(dataset([picture], Path(), cache="none").load_image(0)[0], before)
    assert theirs.read_bytes() == b"of another program"


def test_what_does_not_fit_is_decoded_each_time_with_a_warning(
    pictures: list[Picture],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    wait_until_settled(pictures)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=12 * 3 * 64 * 64))
    full = dataset(pictures, tmp_path / "decoded")
    assert "GB are free: they are not cached" in caplog.text
    assert not list((tmp_path / "decoded").rglob("*.npy"))
    memory = psutil.virtual_memory()._replace(available=2 * 5 * 3 * 64 * 64)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    half = dataset(pictures, tmp_path, cache="ram")
    assert "GB: 5 are cached" in caplog.text
    for number in (0, 11):
        assert np.array_equal(full.load_image(number)[0], half.load_image(number)[0])


def test_a_picture_that_has_just_changed_has_no_file(own_yaml: Path, tmp_path: Path) -> None:
    picture = next(own_yaml.parent.rglob("train/*.jpg"))
    picture.touch()
    assert decoded.decoded_files([picture], tmp_path) == [decoded.NOWHERE]
