# SPDX-License-Identifier: Apache-2.0
"""Our AdamW moves weights as torch's own class does."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fl_app.client.adamw import AdamW


def weights(seed: int) -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    shapes = [(3, 2), (5,), ()]
    return [torch.randn(shape, generator=draw).requires_grad_() for shape in shapes]


@given(
    seed=st.integers(0, 2**31),
    lr=st.floats(1e-5, 1.0),
    decay=st.floats(0.0, 0.5),
    beta=st.floats(0.0, 0.99),
    steps=st.integers(1, 6),
)
def test_it_moves_weights_as_torchs_class_does(
    seed: int, lr: float, decay: float, beta: float, steps: int
) -> None:
    ours, theirs = weights(seed), weights(seed)
    plain = {"lr": lr, "betas": (beta, 0.999)}
    decays = {**plain, "weight_decay": decay}
    own = AdamW(
        [{"params": ours[:1], **decays}, {"params": ours[1:], **plain, "weight_decay": 0.0}]
    )
    peer = torch.optim.AdamW(
        [{"params": theirs[:1], "weight_decay": decay}, {"params": theirs[1:]}],
        lr=lr,
        betas=(beta, 0.999),
        weight_decay=0.0,
        fused=True,
    )
    draw = torch.Generator().manual_seed(seed)
    for number in range(steps):
        for one, other in zip(ours, theirs, strict=True):
            gradient = torch.randn(one.shape, generator=draw)
            if number % 2 and one.ndim == 1:
                continue  # a weight without a gradient stays, and its count of steps too
            one.grad, other.grad = gradient, gradient.clone()
        own.step()
        peer.step()
        own.zero_grad()
        peer.zero_grad()
        assert all(weight.grad is None for weight in ours)
    for one, other in zip(ours, theirs, strict=True):
        assert one.detach().numpy().tobytes() == other.detach().numpy().tobytes()


def test_a_group_without_gradients_stays_as_it_is() -> None:
    weight = torch.ones(2, requires_grad=True)
    group = {"lr": 0.1, "betas": (0.9, 0.999), "weight_decay": 0.1}
    AdamW([{"params": [weight], **group}, {"params": [], **group}]).step()
    assert np.array_equal(weight.detach().numpy(), [1.0, 1.0])


@pytest.mark.parametrize("kept", [torch.float64, torch.float32])
def test_the_kind_of_number_is_kept(kept: torch.dtype) -> None:
    weight = torch.ones(2, dtype=kept, requires_grad=True)
    weight.sum().backward()
    AdamW([{"params": [weight], "lr": 0.1, "betas": (0.9, 0.999), "weight_decay": 0.0}]).step()
    assert weight.dtype == kept
    assert weight.detach().numpy() == pytest.approx([0.9, 0.9])
