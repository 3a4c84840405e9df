# SPDX-License-Identifier: Apache-2.0
"""How much one reply may decide in a round: its weight, and the scale of its numbers.

A limit needs the other replies of the round. So that a strategy can still be given replies as they
arrive, only those that are beyond a limit wait for the others. Several nodes that answer before the
rest can then reach more, so replies that nobody streams all wait for the last one.
"""

from __future__ import annotations

import math
import operator
from bisect import insort
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import compress
from statistics import median
from typing import Generic, TypeVar

import numpy as np

from fl_app.shares import largest_weight

FEWEST = 3
"""Replies of which the one that is unlike the others can be told."""
FAR = 10.0
"""Times the median norm of a round's replies, beyond which one is out of scale."""
LEAST_SCALE = 0.1
MAX_WAITING = 3
"""Replies that wait for others: each is a model in memory."""

Reply = TypeVar("Reply")
Number = int | float | list[int] | list[float]


def winsorized(values: Sequence[Number]) -> list[Number]:
    """Return a metric's values with those that are out of scale lowered, or raised, to the others.

    Out of scale is what is further from the median than 10 times the median size, the median
    distance from it, or 0.1, whichever is most, so that fractions stay as they are. It becomes the
    nearest value that is within. Lists of one length are treated place by place. Without such
    values, and of fewer than three, all stay as they are.
    """
    unchanged = list(values)
    flat = [value for value in unchanged if not isinstance(value, list)]
    if len(unchanged) < FEWEST or (len(flat) == len(unchanged) and max(flat) - min(flat) <= 1):
        return unchanged
    table = np.asarray(unchanged, np.float64)
    with np.errstate(over="ignore"):
        usual = np.median(table, axis=0)
        apart = np.abs(table - usual)
        scale = np.maximum(np.median(apart, axis=0), np.abs(usual))
        far = apart > FAR * np.maximum(scale, LEAST_SCALE)
    if not far.any():
        return unchanged
    least = np.where(far, np.inf, table).min(axis=0)
    most = np.where(far, -np.inf, table).max(axis=0)
    near = np.clip(table, least, most)
    return [
        new.tolist() if bad.any() else old
        for old, new, bad in zip(unchanged, near, far, strict=True)
    ]


@dataclass(frozen=True)
class Size(Generic[Reply]):
    """A reply, its weight in averages (None: it has none), and the norm of its arrays (or None)."""

    reply: Reply
    weight: float | None
    norm: float | None


@dataclass
class Influence(Generic[Reply]):
    """Gives on the replies of a round, none of which decides more than it may.

    Attributes
    ----------
    shares : float | None
        Largest weight of a reply, in multiples of an equal share; None: no limit.
    lowered : Callable
        Returns a reply with the weight that it may have at most.
    refuse : Callable
        Is told of a reply that is out of scale, and why; it is not given on.
    """

    shares: float | None
    lowered: Callable[[Reply, float], Reply]
    refuse: Callable[[Reply, str], None]
    # Sorted: each reply looks at them, and sorting them anew each time would be most of its cost.
    _weights: list[float] = field(default_factory=list)
    _norms: list[float] = field(default_factory=list)

    def all(self, sizes: Iterable[Size[Reply]]) -> list[Reply]:
        """Return the replies in their order, with limits by all of them."""
        waiting = [*map(self._seen, sizes)]
        heaviest = self._heaviest()
        return [reply for size in waiting for reply in self._given(size, heaviest)]

    def streamed(self, sizes: Iterable[Size[Reply]]) -> Iterator[Reply]:
        """Yield the replies: within the limits as they arrive, the others after the last one."""
        waiting: list[Size[Reply]] = []
        for size in sizes:
            waiting.append(self._seen(size))
            if max(len(self._weights), len(self._norms)) < FEWEST:
                continue
            heaviest = self._heaviest()
            fits = [self._is_within(each, heaviest) for each in waiting]
            within = [*compress(waiting, fits)]
            waiting = [*compress(waiting, map(operator.not_, fits))]
            if len(waiting) > MAX_WAITING:  # the one that is least beyond the limits goes on
                waiting.sort(key=lambda each: (self._excess(each), each.weight or 0.0))
                within.append(waiting.pop(0))
            del size  # no reply is held here while the next one is waited for
            while within:
                yield from self._given(within.pop(0), heaviest)
        while waiting:
            yield from self._given(waiting.pop(0), self._heaviest())

    def _seen(self, size: Size[Reply]) -> Size[Reply]:
        if size.weight is not None:
            insort(self._weights, size.weight)
        if size.norm is not None:
            insort(self._norms, size.norm)
        return size

    def _heaviest(self) -> float:
        if self.shares is None or len(self._weights) < FEWEST:
            return math.inf
        return largest_weight(self._weights, self.shares)

    def _excess(self, size: Size[Reply]) -> str:
        """Return how far a reply is out of scale; empty if it is not."""
        if size.norm is None or len(self._norms) < FEWEST:
            return ""
        usual = median(self._norms)
        if size.norm <= FAR * usual:
            return ""
        return (
            f"its arrays have norm {size.norm:.4g}, expected at most {FAR:g} times the median "
            f"{usual:.4g} of the round's replies"
        )

    def _is_within(self, size: Size[Reply], heaviest: float) -> bool:
        return not self._excess(size) and (size.weight is None or size.weight <= heaviest)

    def _given(self, size: Size[Reply], heaviest: float) -> Iterator[Reply]:
        if excess := self._excess(size):
            self.refuse(size.reply, excess)
        elif size.weight is not None and size.weight > heaviest:
            yield self.lowered(size.reply, heaviest)
        else:
            yield size.reply
