# SPDX-License-Identifier: Apache-2.0
"""AdamW over groups of tensors, by torch's functional form, without `torch.optim.Optimizer`.

The first Optimizer of a process imports torch's compiler, which takes 1 to 6 s and is not used
here. The arithmetic is the same: a property test compares both bit by bit.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch.optim.adamw import adamw


class AdamW:
    """AdamW (Loshchilov and Hutter 2019, algorithm 2) as `torch.optim.AdamW` computes it, fused.

    Parameters
    ----------
    groups : Iterable[tuple[Iterable[torch.Tensor], float]]
        Parameters on one device with their weight decay. A step skips those without a gradient.
    lr : float
        Learning rate of all groups; the other settings are torch's defaults.
    """

    def __init__(self, groups: Iterable[tuple[Iterable[torch.Tensor], float]], lr: float) -> None:
        self.lr = lr
        self._groups = [(list(tensors), decay) for tensors, decay in groups]
        self._states: dict[torch.Tensor, tuple[torch.Tensor, ...]] = {}

    @torch.no_grad()
    def step(self) -> None:
        """Update every parameter that has a gradient, in place."""
        for tensors, decay in self._groups:
            moved = [tensor for tensor in tensors if tensor.grad is not None]
            states = [self._state_of(tensor) for tensor in moved]
            adamw(  # the documented functional form of torch.optim.AdamW
                moved,
                [tensor.grad for tensor in moved if tensor.grad is not None],
                [mean for mean, _, _ in states],
                [square for _, square, _ in states],
                [],
                [steps for _, _, steps in states],
                fused=True,
                amsgrad=False,
                maximize=False,
                lr=self.lr,
                beta1=0.9,
                beta2=0.999,
                weight_decay=decay,
                eps=1e-8,
            )

    def zero_grad(self) -> None:
        """Remove all gradients."""
        for tensors, _ in self._groups:
            for tensor in tensors:
                tensor.grad = None

    def _state_of(self, tensor: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the running means of the gradient and of its square, and the steps so far."""
        if tensor not in self._states:
            steps = torch.zeros((), dtype=torch.float32, device=tensor.device)
            self._states[tensor] = torch.zeros_like(tensor), torch.zeros_like(tensor), steps
        return self._states[tensor]
