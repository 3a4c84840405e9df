# SPDX-License-Identifier: AGPL-3.0-or-later
"""Optimizer, rates and accumulation of a local round, by Ultralytics' rules over global epochs."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import nn

from fl_app.client.adamw import AdamW


def build_optimizer(model: nn.Module, args: Any, *, num_classes: int, weight_decay: float) -> Any:
    """Return the optimizer that Ultralytics would build, and set what it decides in ``args``.

    ``auto`` is AdamW with Ultralytics' rate for the class count. Ultralytics takes MuSGD above
    10,000 steps; the nodes of a federation have different numbers of steps, and must train alike.

    Parameters
    ----------
    model : nn.Module
        Its parameters that do not require gradients are left out of a step.
    args : Any
        Training arguments. ``auto`` changes ``lr0``, ``momentum`` and ``warmup_bias_lr``.
    num_classes : int
        Classes of the model.
    weight_decay : float
        That of weights; biases and normalization have none.
    """
    name = str(args.optimizer).lower()
    if name == "auto":
        # Ultralytics' fit, see BaseTrainer.build_optimizer, which would import torch's compiler.
        args.lr0 = round(0.002 * 5 / (4 + num_classes), 6)
        args.momentum, args.warmup_bias_lr = 0.9, 0.0
    if name not in {"auto", "adamw"}:
        from ultralytics.engine.trainer import BaseTrainer

        trainer = SimpleNamespace(args=args, data={"nc": num_classes})
        given = {"lr": args.lr0, "momentum": args.momentum, "decay": weight_decay}
        return BaseTrainer.build_optimizer(trainer, model, args.optimizer, **given)
    norms = tuple(kind for name, kind in vars(nn).items() if "Norm" in name)
    groups: dict[str, list[nn.Parameter]] = {"bias": [], "weight": [], "bn": []}
    for module in model.modules():
        for key, weight in module.named_parameters(recurse=False):
            group = "bias" if "bias" in key else "bn" if isinstance(module, norms) else "weight"
            groups[group].append(weight)
    decays = {"weight": weight_decay}
    return AdamW(
        {
            "params": weights,
            "param_group": group,
            "lr": args.lr0,
            "betas": (args.momentum, 0.999),
            "weight_decay": decays.get(group, 0.0),
        }
        for group, weights in groups.items()
    )


def optimizer_arrays(optimizer: Any) -> dict[str, np.ndarray]:
    """Return the optimizer's state, such as ``0/exp_avg``: of each parameter by its number."""
    return {
        f"{number}/{key}": torch.as_tensor(value).cpu().numpy()
        for number, weight in enumerate(_parameters(optimizer))
        for key, value in optimizer.state.get(weight, {}).items()
        if value is not None
    }


def restore_optimizer(optimizer: Any, arrays: Mapping[str, np.ndarray]) -> None:
    """Continue with a state that an optimizer of the same model and arguments had."""
    weights = _parameters(optimizer)
    for name, array in arrays.items():
        number, _, key = name.partition("/")
        weight, value = weights[int(number)], torch.from_numpy(np.array(array))
        # Counts of steps stay on the CPU, as torch keeps them, but for fused kernels.
        moves = value.ndim or isinstance(optimizer, AdamW) or optimizer.defaults.get("fused")
        state = optimizer.state.setdefault(weight, {})
        state[key] = value.to(weight.device) if moves else value


def _parameters(optimizer: Any) -> list[nn.Parameter]:
    return [weight for group in optimizer.param_groups for weight in group["params"]]


class Schedule:
    """Learning rates, momentum and steps of each batch of a local round.

    Warm-up is over the first ``warmup_epochs``, and ends with the first round. In a later round the
    rates of a new optimizer rise over the first half of its batches.

    Parameters
    ----------
    args : Any
        Training arguments, with ``epochs`` as the global epochs of the session.
    epoch : int
        Global epochs before the round.
    local_epochs : int
        Epochs of the round.
    batches : int
        Batches of an epoch.
    kept : bool
        Whether the optimizer continues with its state of the round before.

    Attributes
    ----------
    accumulate : int
        Batches whose gradients make a step, after warm-up.
    weight_decay : float
        Weight decay of a step, scaled by its pictures.
    """

    def __init__(
        self, args: Any, *, epoch: int, local_epochs: int, batches: int, kept: bool = False
    ) -> None:
        self._args, self._batches = args, batches
        wanted = max(round(args.nbs / args.batch), 1)
        self.weight_decay = args.weight_decay * args.batch * wanted / args.nbs
        # The gradients of a round do not reach the next one.
        self.accumulate = min(wanted, batches * local_epochs)
        warmup = min(args.warmup_epochs, max(args.epochs - 1, 0), local_epochs)
        self._warmup = round(warmup * batches) if warmup > 0 else 0
        # Without a history AdamW's steps are as long where the gradient is only noise. At full
        # rates that cost a fine-tuned model 0.04 of 0.26 mAP50 with one of three seeds, see
        # docs/training.md.
        rises = epoch > 0 and not kept and args.warmup_epochs > 0
        self._rise = (batches * local_epochs + 1) // 2 if rises else 1
        self._factor = _linear(args)
        if args.cos_lr:
            from ultralytics.utils.torch_utils import one_cycle

            self._factor = one_cycle(1, args.lrf, args.epochs)
        self._first = epoch * batches  # number of the round's first batch in the session
        self._stepped = self._first - 1

    def prepare(self, optimizer: Any, number: int) -> bool:
        """Set the rates for a batch of the round; return whether a step follows it.

        Parameters
        ----------
        optimizer : Any
            With torch's ``param_groups``.
        number : int
            Number of the batch in the round, from 0.
        """
        args, batch = self._args, self._first + number
        factor, accumulate = self._factor(batch // self._batches), self.accumulate
        factor *= min((number + 1) / self._rise, 1.0)
        warms = bool(self._warmup) and batch <= self._warmup
        ends = [0, self._warmup]
        if warms:
            accumulate = max(1, int(np.interp(batch, ends, [1, accumulate]).round()))
        for group in optimizer.param_groups:
            rate = group.setdefault("initial_lr", group["lr"]) * factor
            if warms:
                first = args.warmup_bias_lr if group.get("param_group") == "bias" else 0.0
                rate = float(np.interp(batch, ends, [first, rate]))
                if "momentum" in group:
                    momenta = [args.warmup_momentum, args.momentum]
                    group["momentum"] = float(np.interp(batch, ends, momenta))
            group["lr"] = rate
        if batch - self._stepped < accumulate:
            return False
        self._stepped = batch
        return True


def _linear(args: Any) -> Any:
    return lambda epoch: max(1 - epoch / args.epochs, 0) * (1.0 - args.lrf) + args.lrf
