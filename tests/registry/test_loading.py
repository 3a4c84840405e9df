# SPDX-License-Identifier: Apache-2.0
"""The production model made ready: kept while nothing changed, and never served when it did."""

from __future__ import annotations

import os
import statistics
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from safetensors.torch import save_file as save_torch
from torch import nn

from fl_registry import ArtifactError, InMemoryModelStore, InvalidMetric, ModelManager
from fl_registry.files.artifacts import write_half
from fl_registry.store import ModelStore


@pytest.fixture(params=["memory", "mlflow"])
def store(request: pytest.FixtureRequest) -> ModelStore:
    """Return the stores whose files lie on this machine, where a test can damage them."""
    if request.param == "memory":
        return InMemoryModelStore()
    found: ModelManager = request.getfixturevalue("manager")
    return found


class Net(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def save(store: ModelStore, tmp_path: Path, seed: int = 0) -> str:
    torch.manual_seed(seed)
    path = tmp_path / f"net{seed}.safetensors"
    save_torch(Net().state_dict(), path)
    return store.save_model_version(path)


@pytest.fixture
def production(store: ModelStore, tmp_path: Path) -> ModelStore:
    """Return a store with version 1 in production and version 2 beside it."""
    store.promote_to_production(save(store, tmp_path, 0))
    save(store, tmp_path, 1)
    return store


def load(store: ModelStore, **options: Any) -> Any:
    return store.load_production_model(lambda: Net(), **options)  # noqa: PLW0108 - new each time


def test_the_same_model_is_returned_until_production_moves(production: ModelStore) -> None:
    first = load(production)
    assert load(production) is first
    assert not first.training
    production.promote_to_production("2")
    second = load(production)
    assert second is not first
    assert not torch.equal(second[0].weight, first[0].weight)
    production.rollback()
    assert load(production) is first  # two are kept


def test_a_move_by_another_process_is_seen_at_once(
    manager: ModelManager, tmp_path: Path, mlflow_home: Path
) -> None:
    for seed in (0, 1):
        save(manager, tmp_path, seed)
    other = ModelManager(home=mlflow_home)
    for version in ("1", "2", "1", "2"):
        other.promote_to_production(version)
        expected = torch.from_numpy(load_file(other.weights_path(version))["0.weight"])
        assert torch.equal(load(manager)[0].weight, expected)
        assert manager.get_latest_version("Production") == version


def test_makers_and_copies_are_kept_apart(production: ModelStore) -> None:
    class Other(Net):
        pass

    made = [lambda kind=kind: kind() for kind in (Net, Other)]
    assert [type(production.load_production_model(make)) for make in made] == [Net, Other]
    assert type(production.load_production_model(Other)) is Other
    shared = load(production)
    own = load(production, copy=True)
    assert own is not shared
    assert load(production, copy=True) is not own
    own[0].weight.data.zero_()
    assert load(production)[0].weight.abs().sum() > 0


def test_a_factory_that_holds_other_values_makes_another_model(store: ModelStore) -> None:
    from fl_registry.files.loading import _maker

    def factory(size: int) -> Callable[[], int]:
        return lambda: size

    assert _maker(factory(1)) == _maker(factory(1))
    assert _maker(factory(1)) != _maker(factory(2))
    unhashable = [factory([]), factory([])]  # type: ignore[arg-type]
    assert _maker(unhashable[0]) != _maker(unhashable[1])


@pytest.mark.parametrize(
    "change",
    [
        lambda net: net.train()(torch.randn(8, 3)),  # moves the running statistics
        lambda net: net.half(),
        lambda net: net[0].weight.detach().add_(1),
        lambda net: setattr(net[2], "bias", None),
        lambda net: net.load_state_dict(Net().state_dict()),
        lambda net: setattr(net[0], "weight", nn.Parameter(torch.zeros(4, 3))),
    ],
)
def test_a_model_that_somebody_changed_is_not_handed_on(
    production: ModelStore, change: Callable[[Any], object]
) -> None:
    expected = load(production, copy=True).state_dict()
    first = load(production)
    change(first)
    second = load(production)
    assert second is not first
    assert all(torch.equal(second.state_dict()[name], expected[name]) for name in expected)


def test_using_a_model_does_not_push_it_out(production: ModelStore) -> None:
    with torch.inference_mode():
        first = load(production)
        first(torch.randn(2, 3))
    first.train()
    assert load(production) is first
    assert not first.training


@pytest.mark.parametrize("way", ["content", "same length and time", "other file", "gone"])
def test_a_changed_file_is_noticed_though_the_model_is_ready(
    production: ModelStore, way: str
) -> None:
    path = production.weights_path("1")
    time.sleep(0.1)
    assert load(production) is load(production)
    was, content = path.stat(), path.read_bytes()
    if way == "content":
        path.write_bytes(content[:-1] + b"x")
    elif way == "same length and time":
        path.write_bytes(content[:-1] + b"x")
        os.utime(path, ns=(was.st_atime_ns, was.st_mtime_ns))
    elif way == "other file":
        path.with_name("new").write_bytes(content[:-1] + b"x")
        path.with_name("new").replace(path)
    else:
        path.unlink()
    for _ in range(2):
        with pytest.raises(ArtifactError, match=r"version 1 (have changed|are missing)"):
            load(production)
    path.write_bytes(content)  # restored from a backup
    assert load(production) is not None


def test_a_change_right_after_saving_is_noticed(production: ModelStore) -> None:
    """Two changes within one tick of the system's clock leave the same times."""
    path = production.weights_path("1")
    content = path.read_bytes()
    for _ in range(20):
        path.write_bytes(content)
        assert load(production) is not None
        path.write_bytes(content[:-1] + b"x")
        with pytest.raises(ArtifactError):
            load(production)


def test_only_two_models_are_kept(production: ModelStore, tmp_path: Path) -> None:
    save(production, tmp_path, 2)
    models = []
    for version in "123":
        production.promote_to_production(version)
        models.append(load(production))
    assert len(production._ready._ready) == 2
    production.rollback("1")
    assert load(production) is not models[0]


def test_threads_share_one_load(production: ModelStore) -> None:
    built: list[int] = []

    def make() -> Net:
        built.append(1)
        return Net()

    found: list[Any] = []
    threads = [
        threading.Thread(target=lambda: found.append(production.load_production_model(make)))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(built), len(found), len({id(model) for model in found})) == (1, 8, 1)


def test_a_model_that_is_ready_comes_within_a_millisecond(production: ModelStore) -> None:
    load(production)
    time.sleep(0.1)
    load(production)
    times = []
    for _ in range(200):
        began = time.perf_counter()
        load(production)
        times.append(time.perf_counter() - began)
    assert statistics.median(times) < 0.001


def test_an_answer_may_be_told_to_do_for_a_while(
    manager: ModelManager, tmp_path: Path, mlflow_home: Path
) -> None:
    for seed in (0, 1):
        save(manager, tmp_path, seed)
    manager.promote_to_production("1")
    first = load(manager)
    ModelManager(home=mlflow_home).promote_to_production("2")
    assert load(manager, max_age=60) is first
    assert load(manager) is not first


def test_what_cannot_make_a_model_is_told(production: ModelStore) -> None:
    with pytest.raises(ArtifactError, match=r"model_class is Ellipsis; expected a function"):
        production.load_production_model(...)  # type: ignore[arg-type]


def test_a_half_precision_copy_is_kept_beside_the_weights(production: ModelStore) -> None:
    def evaluate(path: Path) -> dict[str, float]:
        return {"norm": float(np.abs(load_file(path)["0.weight"]).astype(np.float64).sum())}

    full = production.weights_path("1")
    copy = production.compress_version("1", evaluate=evaluate)
    assert copy.size < full.stat().st_size
    assert 0 < abs(copy.changes["norm"]) < 0.01
    half = full.with_name("weights_fp16.safetensors")
    arrays, halves = load_file(full), load_file(half)
    assert halves.keys() == arrays.keys()
    assert {halves[name].dtype.name for name in arrays} == {"float16", "int64"}
    loaded = load(production, half=True)
    assert loaded[0].weight.dtype == torch.float32
    assert torch.equal(loaded[0].weight, torch.from_numpy(halves["0.weight"]).float())
    assert load(production, half=True) is loaded
    assert load(production) is not loaded
    assert production.weights_path("1") == full
    assert production.compress_version("1").sha256 == copy.sha256
    half.write_bytes(half.read_bytes()[:-1] + b"x")
    with pytest.raises(ArtifactError, match="have changed"):
        load(production, half=True)
    assert load(production) is not None


def test_a_copy_that_was_not_made_or_cannot_be_is_told(
    production: ModelStore, tmp_path: Path
) -> None:
    with pytest.raises(ArtifactError, match="Version 1 has no half-precision copy"):
        load(production, half=True)
    with pytest.raises(InvalidMetric, match="m is nan"):
        production.compress_version("1", evaluate=lambda _: {"m": float("nan")})
    save_file({"large": np.array([1e5], np.float32)}, tmp_path / "large.safetensors")
    version = production.save_model_version(tmp_path / "large.safetensors")
    with pytest.raises(ArtifactError, match="array large holds numbers above 65,504"):
        production.compress_version(version)
    for number in ("1", version):
        assert "half" not in production.get_version(number).tags
        names = {path.name for path in production.weights_path(number).parent.iterdir()}
        assert names == {"weights.safetensors", "spec.json"}


def test_half_precision_keeps_order_metadata_and_what_is_no_wide_float(tmp_path: Path) -> None:
    arrays = {
        "z": np.array([1.5, np.inf, np.nan], np.float64),
        "a": np.array(7, np.int64),
        "flag": np.array([True]),
        "thin": np.array([1e-9], np.float32),
        "half": np.ones((2, 2), np.float16),
    }
    save_file(arrays, tmp_path / "w.safetensors", metadata={"order": "x", "format": "y"})
    write_half(tmp_path / "w.safetensors", tmp_path / "h.safetensors")
    from safetensors import safe_open

    with safe_open(tmp_path / "h.safetensors", "np") as file:
        assert file.metadata() == {"order": "x", "format": "y"}
        found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    assert found["z"].tobytes() == np.array([1.5, np.inf, np.nan], np.float16).tobytes()
    assert (found["a"].shape, int(found["a"])) == ((), 7)
    assert found["thin"].tolist() == [0.0]
    assert {n: v.dtype.name for n, v in found.items()} == {
        "z": "float16",
        "a": "int64",
        "flag": "bool",
        "thin": "float16",
        "half": "float16",
    }
