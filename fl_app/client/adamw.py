# SPDX-License-Identifier: Apache-2.0
"""AdamW over groups of tensors, by torch's functional form, without `torch.optim.Optimizer`.

The first Optimizer of a process imports torch's compiler, which takes 1 to 6 s and is not used
here. The arithmetic is the same: a property test compares both bit by bit.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch.optim.adamw import adamw


@dataclass(frozen=True, eq=False)
class _State:
    mean: torch.Tensor
    square: torch.Tensor
    steps: torch.Tensor


class AdamW:
    """AdamW (Loshchilov and Hutter 2019, algorithm 2) as `torch.optim.AdamW` computes it, fused.

    Parameters
    ----------
    groups : Iterable[tuple[Iterable[torch.Tensor], float]]
        Parameters on one device with their weight decay. A step skips those without a gradient.
    lr : float
        Learning rate of all groups.
    betas : tuple[float, float]
        Decay of the running means of gradients and of their squares.
    eps : float
        Added to the denominator.
    """

    def __init__(
        self,
        groups: Iterable[tuple[Iterable[torch.Tensor], float]],
        lr: float,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        self.lr, self._betas, self._eps = lr, betas, eps
        self._groups = [(list(tensors), decay) for tensors, decay in groups]
        self._states: dict[torch.Tensor, _State] = {}

    @torch.no_grad()
    def step(self) -> None:
        """Update every parameter that has a gradient, in place."""
        for tensors, decay in self._groups:
            moved = [tensor for tensor in tensors if tensor.grad is not None]
            states = [self._state_of(tensor) for tensor in moved]
            adamw(  # the documented functional form of torch.optim.AdamW
                moved,
                [tensor.grad for tensor in moved if tensor.grad is not None],
                [state.mean for state in states],
                [state.square for state in states],
                [],
                [state.steps for state in states],
                fused=True,
                amsgrad=False,
                maximize=False,
                lr=self.lr,
                beta1=self._betas[0],
                beta2=self._betas[1],
                weight_decay=decay,
                eps=self._eps,
            )

    def zero_grad(self) -> None:
        """Remove all gradients."""
        for tensors, _ in self._groups:
            for tensor in tensors:
                tensor.grad = None

    def _state_of(self, tensor: torch.Tensor) -> _State:
        if tensor not in self._states:
            mean, square = torch.zeros_like(tensor), torch.zeros_like(tensor)
            steps = torch.zeros((), dtype=torch.float32, device=tensor.device)
            self._states[tensor] = _State(mean, square, steps)
        return self._states[tensor]
