# SPDX-License-Identifier: AGPL-3.0-or-later
"""Optimizers and rates are Ultralytics' own, and go on over the rounds of a session."""

from __future__ import annotations

import json
from copy import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from ultralytics.cfg import get_cfg
from ultralytics.engine.trainer import BaseTrainer

from fl_app.client.optimization import (
    Schedule,
    build_optimizer,
    optimizer_arrays,
    restore_optimizer,
)
from fl_app.client.train_args import read_train_args
from fl_models.yolo import get_model


def arguments(text: str = "", **changes: Any) -> Any:
    given = {key: value for key, value in read_train_args(text).items() if value is not None}
    return get_cfg(overrides={"nbs": 64, **given, "batch": 16, "epochs": 8, **changes})


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1))


@pytest.mark.parametrize("name", ["auto", "AdamW", "adamw"])
@pytest.mark.parametrize("classes", [1, 7, 80])
def test_groups_and_rates_of_adamw_are_those_that_ultralytics_builds(
    name: str, classes: int
) -> None:
    ours, theirs, model = arguments(f"optimizer: {name}"), arguments(), network()
    own = build_optimizer(model, ours, num_classes=classes, weight_decay=0.01)
    trainer = SimpleNamespace(args=theirs, data={"nc": classes})
    peer = BaseTrainer.build_optimizer(
        trainer, model, name, lr=theirs.lr0, momentum=theirs.momentum, decay=0.01, iterations=100
    )
    found = {group["param_group"]: group for group in own.param_groups}
    expected = {group["param_group"]: group for group in peer.param_groups}
    assert found.keys() == expected.keys()
    for group, values in expected.items():
        for key in ("lr", "betas", "weight_decay"):
            assert found[group][key] == values[key], (group, key)
        assert [*map(id, found[group]["params"])] == [*map(id, values["params"])]
    assert (ours.lr0, ours.warmup_bias_lr) == (theirs.lr0, theirs.warmup_bias_lr)


@pytest.mark.parametrize("name", ["SGD", "Adam", "RMSprop", "MuSGD", "NAdam", "RAdam", "Adamax"])
def test_other_optimizers_are_built_by_ultralytics(name: str) -> None:
    args, model = arguments(f"{{optimizer: {name}, lr0: 0.003}}"), get_model("n", 7)
    built = build_optimizer(model, args, num_classes=7, weight_decay=0.01)
    assert type(built).__name__ == name
    moved = {id(weight) for group in built.param_groups for weight in group["params"]}
    assert moved == {id(weight) for weight in model.parameters()}
    assert built.param_groups[-1]["lr"] == 0.003


@pytest.mark.parametrize("name", ["AdamW", "SGD", "Adam", "RMSprop", "NAdam", "RAdam", "Adamax"])
def test_an_optimizer_goes_on_where_another_has_stopped(name: str) -> None:
    def model() -> nn.Module:
        torch.manual_seed(1)
        return network()

    def step(model: nn.Module, optimizer: Any, number: int) -> None:
        for weight in model.parameters():
            torch.manual_seed(number)
            weight.grad = torch.randn_like(weight)
        optimizer.step()

    def built(model: nn.Module) -> Any:
        args = arguments(f"optimizer: {name}")
        return build_optimizer(nn.Sequential(model), args, num_classes=7, weight_decay=0.01)

    whole, parts = model(), model()
    one = built(whole)
    for number in range(4):
        step(whole, one, number)
    first = built(parts)
    for number in range(2):
        step(parts, first, number)
    left, second = optimizer_arrays(first), built(parts)
    restore_optimizer(second, left)
    for number in range(2, 4):
        step(parts, second, number)
    assert left
    for expected, found in zip(whole.parameters(), parts.parameters(), strict=True):
        assert found.detach().numpy().tobytes() == expected.detach().numpy().tobytes()


def rates(
    text: str, rounds: int, local_epochs: int, batches: int = 4, *, kept: bool = True
) -> list[tuple[Any, ...]]:
    """Of each batch of a session: the rate of biases, that of weights, and whether it steps."""
    seen = []
    for number in range(rounds):
        args = arguments(text, epochs=rounds * local_epochs)
        first = number * local_epochs
        schedule = Schedule(
            args, epoch=first, local_epochs=local_epochs, batches=batches, kept=kept
        )
        optimizer = build_optimizer(network(), args, num_classes=7, weight_decay=0.0)
        for batch in range(local_epochs * batches):
            steps = schedule.prepare(optimizer, batch)
            by_group = {group["param_group"]: group["lr"] for group in optimizer.param_groups}
            seen.append((by_group["bias"], by_group["weight"], steps))
    return seen


@pytest.mark.parametrize(
    "text", ["", "cos_lr: true", "{optimizer: SGD, warmup_bias_lr: 0.05}", "nbs: 16"]
)
def test_the_rates_of_a_session_do_not_depend_on_its_rounds(text: str) -> None:
    args = json.dumps({**read_train_args(text), "warmup_epochs": 2})
    whole = rates(args, rounds=1, local_epochs=8)
    parts = rates(args, rounds=4, local_epochs=2)
    assert [seen[:2] for seen in parts] == [seen[:2] for seen in whole]
    assert whole[0][1] == 0.0  # warm-up
    assert whole[0][1] < whole[4][1] < whole[8][1] > whole[-1][1]
    assert whole[-1][1] < 0.3 * whole[8][1]


def test_warm_up_ends_with_the_first_round() -> None:
    seen = rates("", rounds=8, local_epochs=1)  # Ultralytics' default is 3 epochs
    assert seen[3][1] < seen[4][1]
    assert [rate for _, rate, _ in seen[4:]] == sorted((r for _, r, _ in seen[4:]), reverse=True)


def test_the_rates_of_a_new_optimizer_rise_in_each_round() -> None:
    args = json.dumps({**read_train_args(""), "warmup_epochs": 1})
    as_before, new = (rates(args, 3, 2, batches=3, kept=kept) for kept in (True, False))
    assert new[:6] == as_before[:6]
    later = zip(new[6:], as_before[6:], strict=True)
    shares = [mine[1] / theirs[1] for mine, theirs in later]
    assert shares == pytest.approx(2 * [1 / 3, 2 / 3, 1, 1, 1, 1])
    text = json.dumps({**read_train_args(""), "warmup_epochs": 0})
    assert rates(text, 3, 2, kept=False) == rates(text, 3, 2)


def test_gradients_of_nominal_batches_make_a_step_and_scale_the_weight_decay() -> None:
    steps = [stepped for *_, stepped in rates("warmup_epochs: 0", 2, 2)]
    assert steps == 4 * [False, False, False, True]
    few = [stepped for *_, stepped in rates("warmup_epochs: 0", 2, 1, batches=3)]
    assert few == 2 * [False, False, True]  # all of a round, where it has fewer
    decays = {
        nbs: Schedule(arguments(f"nbs: {nbs}"), epoch=0, local_epochs=1, batches=9).weight_decay
        for nbs in (16, 40, 64)
    }
    assert decays == pytest.approx({16: 0.0005, 40: 0.0005 * 16 * 2 / 40, 64: 0.0005})


def test_the_arguments_that_are_given_stay_as_they_are_but_for_auto() -> None:
    args = arguments("optimizer: AdamW")
    before = copy(vars(args))
    build_optimizer(network(), args, num_classes=7, weight_decay=0.0)
    assert vars(args) == before
