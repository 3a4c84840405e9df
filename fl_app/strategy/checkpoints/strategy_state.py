# SPDX-License-Identifier: Apache-2.0
"""The state of the inner strategy as values for the disk, and back into a new strategy.

Momenta, clipping norms, counters, an accountant: every attribute that has changed since the start.
"""

from __future__ import annotations

import json
import logging
from typing import Any

import numpy as np
from flwr.serverapp.strategy import Strategy

from fl_app.strategy.checkpoints.record import (
    Arrays,
    Encoded,
    InnerState,
    NotPlainError,
    decode,
    encode_each,
)
from fl_app.strategy.round.inner_strategy import StateKeeper, attributes, strategy_levels

logger = logging.getLogger("flwr.fl_app")


class InnerMemory:
    """The state of a strategy, and of those that it wraps, since this object was made.

    An attribute that changes and cannot be written to disk is logged once. The state of an object
    with ``state_dict`` and ``load_state_dict``, such as Flower's privacy accountant, is taken by
    these. Objects that only change inside, such as a random generator, are not noticed.

    Parameters
    ----------
    strategy : Strategy
        The outermost of the chain, as it is at the start.
    """

    def __init__(self, strategy: Strategy) -> None:
        self._strategy = strategy
        self._before = self._now()
        self._logged: set[str] = set()

    @property
    def chain(self) -> tuple[str, ...]:
        """The classes of the chain, the outermost first."""
        return tuple(type(level).__qualname__ for _, level in strategy_levels(self._strategy))

    @property
    def settings(self) -> dict[str, Any]:
        """The attributes that were numbers, texts or None at the start."""
        plain = {place: seen[0] for place, (_, seen) in self._before.items() if seen is not None}
        return {place: text for place, text in plain.items() if not isinstance(text, list | dict)}

    def take(self) -> InnerState:
        """Return what has changed since the start."""
        values, arrays, missing = {}, Arrays(), []
        for place, (value, now) in self._now().items():
            value_before, before = self._before.get(place, (None, None))
            if now is None:
                if value is not value_before:
                    missing.append(place)
                    self._log_missing(place, value)
            elif before is None or not _same(now, before):
                values[place] = now[0]
                arrays.update(now[1])
        return InnerState(values, arrays, tuple(missing))

    def put_back(self, state: InnerState) -> None:
        """Restore a state.

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
            if isinstance(now, StateKeeper):
                now.load_state_dict(value)
            else:
                setattr(levels[path], name, value)

    def _now(self) -> dict[str, tuple[object, Encoded | None]]:
        """Return the attributes by their places, each with its state encoded."""
        states = attributes(self._strategy)
        encoded = encode_each({place: state for place, (_, state) in states.items()})
        return {place: (value, encoded[place]) for place, (value, _) in states.items()}

    def _log_missing(self, place: str, value: object) -> None:
        if place not in self._logged:
            self._logged.add(place)
            logger.warning(
                "%s of the strategy cannot be written to disk, since it is a %s: a session that is "
                "interrupted would be resumed without it",
                place.strip("/"),
                type(value).__name__,
            )


def same_state(one: InnerState, other: InnerState) -> bool:
    """Return whether two states are equal bit for bit."""
    return _same((one.values, one.arrays), (other.values, other.arrays))


def _same(one: Encoded, other: Encoded) -> bool:
    return (
        json.dumps(one[0]) == json.dumps(other[0])
        and one[1].keys() == other[1].keys()
        and all(_equal(array, other[1][name]) for name, array in one[1].items())
    )


def _equal(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two arrays are equal bit for bit; NaN is equal to itself."""
    same = one.dtype == other.dtype and one.shape == other.shape
    return same and one.tobytes() == other.tobytes()
