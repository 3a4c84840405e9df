# SPDX-License-Identifier: Apache-2.0
"""The inner strategy's memory as values that can be written down, and back into a new strategy.

Momenta, clipping norms, counters, an accountant: whatever its attributes say after a round that
they did not say at the start. Where it is kept is not decided here.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeGuard

import numpy as np
from flwr.serverapp.strategy import Strategy

from fl_app.strategy.session.plain_json import Arrays, NotPlainError, decode, encode

logger = logging.getLogger("flwr.fl_app")

Seen = tuple[Any, Mapping[str, np.ndarray]]
"""A value as JSON, with its arrays."""


class _Keeper(Protocol):
    def state_dict(self) -> dict[str, object]: ...

    def load_state_dict(self, state: dict[str, object]) -> None: ...


@dataclass(frozen=True)
class InnerState:
    """What a chain of strategies remembers.

    Attributes
    ----------
    values : Mapping[str, Any]
        By the place of an attribute (``strategy/m_t``) its value, encoded.
    arrays : Mapping[str, np.ndarray]
        The arrays that the values refer to.
    missing : tuple[str, ...]
        Places whose values changed and cannot be written down.
    """

    values: Mapping[str, Any] = field(default_factory=dict)
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)
    missing: tuple[str, ...] = ()

    def same_as(self, other: InnerState) -> bool:
        """Whether both say the same, bit for bit."""
        return _same((self.values, self.arrays), (other.values, other.arrays))


class InnerMemory:
    """Tells what a strategy, and those that it wraps, remember since this object was made.

    Attributes that cannot be written down are told once in the log if they change. An object that
    has ``state_dict`` and ``load_state_dict``, such as Flower's privacy accountant, is asked.
    Objects that only change inside, such as a random generator, are not seen.

    Parameters
    ----------
    strategy : Strategy
        The outermost of the chain, as it is at the start.
    """

    def __init__(self, strategy: Strategy) -> None:
        self._strategy = strategy
        self._before = {place: _seen(value, place) for place, value in self._attributes()}
        self._objects = dict(self._attributes())
        self._told: set[str] = set()

    @property
    def chain(self) -> tuple[str, ...]:
        """The classes of the chain, the outermost first."""
        return tuple(type(level).__qualname__ for _, level in strategy_levels(self._strategy))

    @property
    def settings(self) -> dict[str, Any]:
        """The attributes that were numbers, texts or None at the start."""
        plain = {place: seen[0] for place, seen in self._before.items() if seen is not None}
        return {place: text for place, text in plain.items() if not isinstance(text, list | dict)}

    def take(self) -> InnerState:
        """What has changed since the start."""
        values, arrays, missing = {}, Arrays(), []
        for place, value in self._attributes():
            seen, before = _seen(value, place), self._before.get(place)
            if seen is None:
                if value is not self._objects.get(place):
                    missing.append(place)
                    self._tell(place, value)
            elif before is None or not _same(seen, before):
                values[place] = seen[0]
                arrays.update(seen[1])
        return InnerState(values, arrays, tuple(missing))

    def put_back(self, state: InnerState) -> None:
        """Give the strategy its memory back.

        Raises
        ------
        NotPlainError
            If the state is not of such a strategy.
        """
        levels = dict(strategy_levels(self._strategy))
        for place, text in state.values.items():
            path, _, name = place.rpartition("/")
            if path not in levels:
                raise NotPlainError(f"there is no strategy at {path!r}")
            value, now = decode(text, state.arrays), getattr(levels[path], name, None)
            if _keeps_state(now):
                now.load_state_dict(value)
            else:
                setattr(levels[path], name, value)

    def _attributes(self) -> Iterator[tuple[str, object]]:
        for path, level in strategy_levels(self._strategy):
            for name, value in vars(level).items():
                if not isinstance(value, Strategy):
                    yield f"{path}/{name}", value

    def _tell(self, place: str, value: object) -> None:
        if place not in self._told:
            self._told.add(place)
            logger.warning(
                "%s of the strategy cannot be kept on disk, since it is a %s: a session that is "
                "cut short would go on without it",
                place.strip("/"),
                type(value).__name__,
            )


def strategy_levels(strategy: Strategy, path: str = "") -> Iterator[tuple[str, Strategy]]:
    """Return a strategy and those that it wraps, each with its place, such as ``/strategy``."""
    yield path, strategy
    for name, value in vars(strategy).items():
        if isinstance(value, Strategy):
            yield from strategy_levels(value, f"{path}/{name}")


def _keeps_state(value: object) -> TypeGuard[_Keeper]:
    return hasattr(value, "state_dict") and hasattr(value, "load_state_dict")


def _seen(value: object, place: str) -> Seen | None:
    """A value as it is now, with copies of its arrays; None if it cannot be written down."""
    arrays = Arrays()
    try:
        text = encode(value.state_dict() if _keeps_state(value) else value, arrays, name=place)
    except NotPlainError:
        return None
    return text, {name: array.copy() for name, array in arrays.items()}


def _same(one: Seen, other: Seen) -> bool:
    """Whether two values are equal bit for bit."""
    return (
        json.dumps(one[0]) == json.dumps(other[0])
        and one[1].keys() == other[1].keys()
        and all(_equal(array, other[1][name]) for name, array in one[1].items())
    )


def _equal(one: np.ndarray, other: np.ndarray) -> bool:
    same = one.dtype == other.dtype and one.shape == other.shape
    return same and one.tobytes() == other.tobytes()
