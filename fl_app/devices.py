# SPDX-License-Identifier: Apache-2.0
"""Where tensors are computed: which device a setting names, and what happens to its memory."""

from __future__ import annotations

import gc
import logging
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import torch

from fl_registry.redaction import printable

logger = logging.getLogger(__name__)

# What PyTorch says of a device, of its libraries, and of the machine's own memory. Only the
# first has an exception of its own, and not on every device.
_OUT_OF_MEMORY = (
    "out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "DefaultCPUAllocator: can't allocate memory",
    "DefaultCPUAllocator: not enough memory",
)


class DeviceError(RuntimeError):
    """A device is not there or has too little memory; one sentence that says what to set."""

    def __init__(self, sentence: str) -> None:
        super().__init__(printable(sentence))


def chosen_device(name: str, *, setting: str = "device") -> torch.device:
    """Return the device that a setting names.

    If ``auto`` becomes the CPU of a machine that has an NVIDIA GPU, the reason is logged, once a
    process.

    Parameters
    ----------
    name : str
        ``auto`` (the first CUDA GPU if there is one, else the CPU), ``cpu``, ``cuda``, ``cuda:1``
        and so on, or ``mps``.
    setting : str
        What the setting is called, for the sentence of an error.

    Raises
    ------
    DeviceError
        The device is not there.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda:0")
        _warn_once(why_no_cuda())
        return torch.device("cpu")
    device = torch.device(name)
    if device.type == "cpu":
        return device
    fault = _fault(device)
    if fault:
        raise DeviceError(f"{setting}={name!r} cannot be used here: {fault}")
    return torch.device("cuda", device.index or 0) if device.type == "cuda" else device


def _fault(device: torch.device) -> str:
    """Return why a GPU can't be used and what to do; empty if it can be used."""
    if device.type == "mps":
        return "" if torch.backends.mps.is_available() else "PyTorch finds no MPS; set it to 'auto'"
    if not torch.cuda.is_available():
        return why_no_cuda() or "PyTorch finds no CUDA GPU; set it to 'auto' or 'cpu'"
    count = torch.cuda.device_count()
    if (device.index or 0) < count:
        return ""
    known = "only 'cuda:0'" if count == 1 else f"'cuda:0' to 'cuda:{count - 1}'"
    return f"PyTorch finds {known}; set it to one that is there"


def why_no_cuda(devices: Path = Path("/dev")) -> str:
    """Return why PyTorch cannot use this machine's NVIDIA GPU, and what to do.

    Parameters
    ----------
    devices : Path
        Where the system lists its devices.

    Returns
    -------
    str
        Empty if the machine has none.
    """
    if not any(devices.glob("nvidia[0-9]*")):
        return ""
    has = "this machine has an NVIDIA GPU, but"
    if torch.version.cuda is None:
        return f"{has} PyTorch {torch.__version__} is built without CUDA; install a build with it"
    if os.environ.get("CUDA_VISIBLE_DEVICES") not in {"", "-1"}:
        return f"{has} PyTorch cannot use it; see what nvidia-smi says of the driver"
    if "ray" not in sys.modules:
        return f"{has} CUDA_VISIBLE_DEVICES hides it; unset that"
    # Ray hides GPUs from an actor that has requested none, and Flower requests none by default.
    return (
        f"{has} Flower gives the nodes of a simulation none by default; "
        'run with --federation-config "client-resources-num-gpus=0.5" for two nodes at once on it'
    )


@cache
def _warn_once(reason: str) -> None:
    if reason:
        logger.warning("computing on the CPU: %s", reason)


@contextmanager
def device_memory(device: torch.device, advice: str) -> Iterator[None]:
    """Explain a lack of memory within the block, and give cached memory back after it.

    PyTorch caches what it has freed, so that other processes on the same GPU would not get it.

    Parameters
    ----------
    device : torch.device
        Where the block computes.
    advice : str
        What to set if its memory is not enough.

    Raises
    ------
    DeviceError
        In place of the device's own error.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:  # torch.OutOfMemoryError is a RuntimeError
        text = str(error)
        if not isinstance(error, MemoryError) and not any(sign in text for sign in _OUT_OF_MEMORY):
            raise
        traceback.clear_frames(error.__traceback__)  # they hold the tensors
        raise DeviceError(f"{device} has too little memory: {advice}") from None
    finally:
        give_back(device)


def give_back(device: torch.device) -> None:
    """Free what is unused and return the device's cached memory to it."""
    if device.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()
    elif device.type == "mps":
        gc.collect()
        torch.mps.empty_cache()
