# SPDX-License-Identifier: Apache-2.0
"""AdamW over groups of tensors, by torch's functional form, without `torch.optim.Optimizer`.

The first Optimizer of a process imports torch's compiler, which takes 1 to 6 s and is not used
here. The arithmetic is the same: a property test compares both bit by bit.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch.optim.adamw import adamw


class AdamW:
    """AdamW (Loshchilov and Hutter 2019, algorithm 2) as `torch.optim.AdamW` computes it, fused.

    Parameters
    ----------
    groups : Iterable[Mapping[str, Any]]
        Groups as torch's optimizers take them: ``params`` on one device, ``lr``, ``betas`` and
        ``weight_decay``. A step skips parameters without a gradient.

    Attributes
    ----------
    param_groups : list[dict[str, Any]]
        The groups; a schedule changes their ``lr``.
    state : dict[torch.Tensor, dict[str, torch.Tensor]]
        Of each parameter that has moved: the running means of its gradient and of the square, and
        the steps.
    """

    def __init__(self, groups: Iterable[Mapping[str, Any]]) -> None:
        self.param_groups = [{**group, "params": list(group["params"])} for group in groups]
        self.state: dict[torch.Tensor, dict[str, torch.Tensor]] = {}

    @torch.no_grad()
    def step(self) -> None:
        """Update every parameter that has a gradient, in place."""
        for group in self.param_groups:
            moved = [tensor for tensor in group["params"] if tensor.grad is not None]
            states = [self._state_of(tensor) for tensor in moved]
            adamw(  # the documented functional form of torch.optim.AdamW
                moved,
                [tensor.grad for tensor in moved if tensor.grad is not None],
                [state["exp_avg"] for state in states],
                [state["exp_avg_sq"] for state in states],
                [],
                [state["step"] for state in states],
                fused=True,
                amsgrad=False,
                maximize=False,
                lr=group["lr"],
                beta1=group["betas"][0],
                beta2=group["betas"][1],
                weight_decay=group["weight_decay"],
                eps=1e-8,
            )

    def zero_grad(self) -> None:
        """Remove all gradients."""
        for group in self.param_groups:
            for tensor in group["params"]:
                tensor.grad = None

    def _state_of(self, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the state of a parameter, which begins with zeros."""
        if tensor not in self.state:
            self.state[tensor] = {
                "step": torch.zeros((), dtype=torch.float32, device=tensor.device),
                "exp_avg": torch.zeros_like(tensor),
                "exp_avg_sq": torch.zeros_like(tensor),
            }
        return self.state[tensor]
