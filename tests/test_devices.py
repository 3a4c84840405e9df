# SPDX-License-Identifier: Apache-2.0
"""Devices that are not in the machine of the test: what is said, and what is asked of PyTorch."""

from __future__ import annotations

import logging
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from flwr.cli.run.run import _parse_federation_config_overrides

from fl_app.devices import DeviceError, chosen_device, device_memory, why_no_cuda

ROOT = Path(__file__).parents[1]


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch finds two CUDA GPUs."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch finds none."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


@pytest.mark.usefixtures("gpus")
@pytest.mark.parametrize(
    ("name", "device"),
    [("auto", "cuda:0"), ("cuda", "cuda:0"), ("cuda:1", "cuda:1"), ("cpu", "cpu")],
)
def test_a_setting_names_a_device(name: str, device: str) -> None:
    assert chosen_device(name) == torch.device(device)


@pytest.mark.usefixtures("gpus")
def test_a_gpu_that_is_not_there_is_refused_with_those_that_are() -> None:
    with pytest.raises(DeviceError) as caught:
        chosen_device("cuda:2")
    assert str(caught.value) == (
        "device='cuda:2' cannot be used here: PyTorch finds 'cuda:0' to 'cuda:1'; "
        "set it to one that is there"
    )


@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize("name", ["cuda", "cuda:0", "mps"])
def test_a_gpu_without_its_backend_is_refused(name: str) -> None:
    with pytest.raises(DeviceError, match=f"^server-device='{name}' cannot be used here: .*; ?"):
        chosen_device(name, setting="server-device")


@pytest.mark.usefixtures("no_gpu")
def test_auto_is_the_cpu_where_there_is_no_gpu() -> None:
    assert chosen_device("auto") == torch.device("cpu")


def machine(folder: Path) -> Path:
    """What a system with one NVIDIA GPU lists as its devices."""
    for name in ("nvidia0", "nvidiactl", "null"):
        (folder / name).touch()
    return folder


def test_a_machine_without_a_gpu_has_nothing_to_explain(tmp_path: Path) -> None:
    (tmp_path / "nvidiactl").touch()
    assert why_no_cuda(tmp_path) == ""


def test_a_build_without_cuda_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "is built without CUDA; install a build with it" in why_no_cuda(machine(tmp_path))


def test_a_simulation_that_gives_its_nodes_no_gpu_says_how_to_give_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.version, "cuda", "13.2")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # as Ray sets it
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace())
    (given,) = re.findall(
        r'run with --federation-config "(.*)" for', why_no_cuda(machine(tmp_path))
    )
    assert given in (ROOT / "docs" / "hardware.md").read_text()
    connection: Any = SimpleNamespace(options=None)
    config = _parse_federation_config_overrides([given], connection)
    assert config is not None
    assert config.client_resources_num_gpus == 0.5
    monkeypatch.delitem(sys.modules, "ray")
    assert why_no_cuda(tmp_path).endswith("but CUDA_VISIBLE_DEVICES hides it; unset that")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert why_no_cuda(tmp_path).endswith("see what nvidia-smi says of the driver")


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a ..."),
        RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to ..."),
        MemoryError(),
    ],
)
def test_a_lack_of_memory_is_one_sentence(error: Exception) -> None:
    with (
        pytest.raises(DeviceError, match=r"^cpu has too little memory: lower batch-size$"),
        device_memory(torch.device("cpu"), "lower batch-size"),
    ):
        raise error


def test_another_error_of_the_device_stays_as_it_is() -> None:
    with (
        pytest.raises(RuntimeError, match="illegal memory access"),
        device_memory(torch.device("cpu"), "lower batch-size"),
    ):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")


@pytest.mark.parametrize("fails", [False, True])
def test_a_gpu_s_cached_memory_is_given_back_after_success_and_failure(
    monkeypatch: pytest.MonkeyPatch, *, fails: bool
) -> None:
    given: list[str] = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: given.append("cuda"))
    monkeypatch.setattr(torch.mps, "empty_cache", lambda: given.append("mps"))
    for name in ("cpu", "cuda:1", "mps"):
        try:
            with device_memory(torch.device(name), ""):
                if fails:
                    raise torch.OutOfMemoryError("CUDA out of memory")
        except DeviceError:
            assert fails
    assert given == ["cuda", "mps"]


def test_tensors_of_a_failed_round_are_free_before_memory_is_given_back() -> None:
    import weakref

    seen: list[weakref.ref[torch.Tensor]] = []

    def fill() -> None:
        big = torch.zeros(8)
        seen.append(weakref.ref(big))
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(DeviceError), device_memory(torch.device("cpu"), ""):
        fill()
    assert seen[0]() is None


def test_the_reason_is_logged_once_a_process(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("fl_app.devices.why_no_cuda", lambda: "of a reason for this test")
    with caplog.at_level(logging.WARNING):
        chosen_device("auto")
        chosen_device("auto")
    assert caplog.text.count("computing on the CPU: of a reason for this test") == 1
