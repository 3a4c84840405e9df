# SPDX-License-Identifier: Apache-2.0
"""The network and its data: 1,797 pictures of digits that scikit-learn ships."""

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

Split = tuple[Tensor, Tensor]
EACH_FIFTH = 5


def network() -> nn.Module:
    """A network for pictures of shape (1, 8, 8), with the same 5,050 weights each time."""
    torch.manual_seed(7)
    return nn.Sequential(
        nn.Conv2d(1, 16, kernel_size=3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 16, kernel_size=3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(16 * 4 * 4, 10),
    )


def holdout() -> Split:
    """The server's fifth of the pictures, which no node sees."""
    return _pictures(_order()[::EACH_FIFTH])


def partition(partition_id: int, num_partitions: int) -> tuple[Split, Split]:
    """A node's share, as pictures to train on and pictures to evaluate on."""
    order = _order()
    mine = np.delete(order, np.s_[::EACH_FIFTH])[partition_id::num_partitions]
    return _pictures(np.delete(mine, np.s_[::EACH_FIFTH])), _pictures(mine[::EACH_FIFTH])


def fit(model: nn.Module, data: Split, *, epochs: int, learning_rate: float) -> float:
    """Train in place by SGD in batches of 32; the mean loss of the last epoch."""
    optimizer = torch.optim.SGD(model.parameters(), lr=learning_rate, momentum=0.9)
    losses: list[float] = []
    for _ in range(epochs):
        losses = []
        for chosen in torch.randperm(len(data[1])).split(32):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(data[0][chosen]), data[1][chosen])
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return float(np.mean(losses))


@torch.no_grad()
def accuracy(model: nn.Module, data: Split) -> float:
    """The share of pictures that the network names rightly."""
    return (model(data[0]).argmax(dim=1) == data[1]).double().mean().item()


def _order() -> np.ndarray:
    return np.random.default_rng(7).permutation(len(load_digits().target))


def _pictures(chosen: np.ndarray) -> Split:
    digits = load_digits()
    pictures = torch.tensor(digits.images[chosen] / 16, dtype=torch.float32)
    return pictures[:, None], torch.tensor(digits.target[chosen])
