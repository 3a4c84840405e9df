# SPDX-License-Identifier: Apache-2.0
"""State outside of a round: of the inner strategy, and of the global random generators.

How it is listed, and how to undo what a call changed.
"""

from __future__ import annotations

import copy
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol, runtime_checkable

import numpy as np
from flwr.app import ArrayRecord
from flwr.serverapp.strategy import Strategy


@runtime_checkable
class StateKeeper(Protocol):
    """An object whose state is saved and restored by its own methods: a privacy accountant."""

    def state_dict(self) -> dict[str, object]:
        """Return the state."""

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Restore a state."""


def strategy_levels(strategy: Strategy, path: str = "") -> Iterator[tuple[str, Strategy]]:
    """Return a strategy and those that it wraps, each with its path, such as ``/strategy``."""
    yield path, strategy
    for name, value in vars(strategy).items():
        if isinstance(value, Strategy):
            yield from strategy_levels(value, f"{path}/{name}")


def attributes(strategy: Strategy) -> dict[str, tuple[object, object]]:
    """Return each attribute by its place, such as ``strategy/m_t``: its value and its state.

    The state is what is saved of it: the value itself, unless it keeps a state of its own.
    """
    return {
        f"{path}/{name}": (value, value.state_dict() if isinstance(value, StateKeeper) else value)
        for path, level in strategy_levels(strategy)
        for name, value in vars(level).items()
        if not isinstance(value, Strategy)
    }


def snapshot(strategy: Strategy) -> Callable[[], None]:
    """Return a function that restores the present state (momenta, clipping norms, accountant)."""
    saved = [
        (level, {name: _copied(value) for name, value in vars(level).items()})
        for _, level in strategy_levels(strategy)
    ]
    keepers = [
        (value, copy.deepcopy(value.state_dict()))
        for _, attributes in saved
        for value in attributes.values()
        if isinstance(value, StateKeeper)
    ]

    def restore() -> None:
        for level, attributes in saved:
            vars(level).clear()
            vars(level).update({name: _copied(value) for name, value in attributes.items()})
        for keeper, state in keepers:
            keeper.load_state_dict(copy.deepcopy(state))

    return restore


def _copied(value: object) -> object:
    """Return a copy of a container; anything else as it is."""
    # Arrays are not copied: Flower's strategies replace them and never write into them.
    return value.copy() if isinstance(value, dict | list | set | ArrayRecord) else value


@contextmanager
def random_states_restored() -> Iterator[None]:
    """Restore the states of Python's, NumPy's and torch's global generators after the block.

    For rounds that Flower's own loop does not have: strategies sample nodes with ``random``, so
    that an additional round would change the samples of all later ones. Use it only in the thread
    that runs Flower's loop, since draws of other threads in between would be undone as well.
    """
    torch = sys.modules.get("torch")  # if it is not imported, it has no state
    states = random.getstate(), np.random.get_state(), torch and torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        if torch is not None:
            torch.set_rng_state(states[2])
