# SPDX-License-Identifier: Apache-2.0
"""What a local round computes with: device, mixed precision, processes and caches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from fl_app.devices import DeviceError

Amp = Literal["auto", "off", "bf16", "fp16"]

_CPU = torch.device("cpu")
_TYPES = {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}
_LARGEST_GRADIENT = 10.0  # Ultralytics' own
# PyTorch begins with 65536, and each overflow halves it and costs a step. A YOLO detector overflows
# above 1024, and a round, which begins anew, may have no more steps than those overflows.
_FIRST_SCALE = 256.0


@dataclass(frozen=True)
class Hardware:
    """What a local round computes with.

    Attributes
    ----------
    device : torch.device
        Where it trains.
    amp : "auto" | "off" | "bf16" | "fp16"
        Mixed precision; ``auto`` is ``fp16`` on a CUDA GPU and ``off`` elsewhere, as in
        Ultralytics.
    threads : int
        CPU threads of torch.
    workers : int
        Processes that decode and augment pictures; 0: this process.
    cache : "auto" | "none" | "ram" | "disk"
        Decoded pictures to cache, as in `fl_models.dataset.PictureDataset`.
    cache_folder : Path | None
        Where those on disk go.
    """

    device: torch.device = _CPU
    amp: Amp = "auto"
    threads: int = 1
    workers: int = 0
    cache: Literal["auto", "none", "ram", "disk"] = "auto"
    cache_folder: Path | None = None


class Precision:
    """The types in which a round computes, and how its gradients are scaled for them.

    Parameters
    ----------
    amp : "auto" | "off" | "bf16" | "fp16"
        As in `Hardware`. Weights and gradients are float32 in each.
    device : torch.device
        Where the round trains.

    Attributes
    ----------
    autocast : Callable[[], AbstractContextManager]
        Returns a context for the forward pass and the loss.
    advice : str
        What else to change if the loss is not finite; empty in float32.
    steps, overflows : int
        Steps so far, and how many of them changed no weight because a gradient was infinite.

    Raises
    ------
    DeviceError
        The device does not compute in this type.
    """

    def __init__(self, amp: Amp, device: torch.device) -> None:
        if amp == "auto":
            amp = "fp16" if device.type == "cuda" else "off"
        dtype = _TYPES[amp]
        if device.type == "mps" and dtype is not None:
            raise DeviceError(f"amp={amp!r} is not used on MPS; set amp to 'auto' or 'off'")
        if device.type == "cuda" and dtype is torch.bfloat16 and not torch.cuda.is_bf16_supported():
            raise DeviceError(
                f"amp='bf16' is not supported by the GPU {device}; set amp to 'fp16' or 'off'"
            )
        self.autocast: Callable[[], AbstractContextManager[Any]] = partial(
            torch.autocast, device.type, dtype=dtype, enabled=dtype is not None
        )
        self.advice = "" if dtype is None else "set amp to 'off', "
        # Gradients in float16 would underflow; bfloat16 has the range of float32.
        self._scaler = torch.amp.GradScaler(
            device.type, init_scale=_FIRST_SCALE, enabled=dtype is torch.float16
        )
        self.steps = self.overflows = 0

    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradients of a loss to those that are there."""
        self._scaler.scale(loss).backward()  # type: ignore[no-untyped-call]

    def step(self, optimizer: Any, weights: Sequence[nn.Parameter]) -> None:
        """Clip the gradients, update the weights unless a gradient is infinite, and start anew."""
        self._scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(weights, _LARGEST_GRADIENT)
        self._scaler.step(optimizer)
        scale = self._scaler.get_scale()
        self._scaler.update()
        self.steps += 1
        self.overflows += self._scaler.get_scale() < scale
        optimizer.zero_grad()
