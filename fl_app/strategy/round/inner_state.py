# SPDX-License-Identifier: Apache-2.0
"""A strategy and those that it wraps: their attributes, and how to undo what a call changed."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Protocol, TypeGuard

from flwr.app import ArrayRecord
from flwr.serverapp.strategy import Strategy


class StateKeeper(Protocol):
    """An object with a state of its own, such as Flower's privacy accountant."""

    def state_dict(self) -> dict[str, object]:
        """Return the state."""

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Restore a state."""


def keeps_state(value: object) -> TypeGuard[StateKeeper]:
    """Whether an attribute has a state that is saved and restored by its own methods."""
    return hasattr(value, "state_dict") and hasattr(value, "load_state_dict")


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
        f"{path}/{name}": (value, value.state_dict() if keeps_state(value) else value)
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
        if keeps_state(value)
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
