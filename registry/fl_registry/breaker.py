# SPDX-License-Identifier: Apache-2.0
"""A circuit breaker for calls that failed a moment ago. Pure: the clock is a parameter."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Breaker:
    """A circuit breaker: closed while calls succeed, open for a while after each failure.

    The wait doubles with each failure in a row. A random part of it keeps several callers from
    retrying at the same moment.

    Attributes
    ----------
    first, longest : float
        Seconds for which it is open after the first failure, and at most; up to half is random.
    failures : int
        Failures in a row.
    until : float
        When it may be tried again, by the caller's monotonic clock.
    """

    first: float = 0.5
    longest: float = 10.0
    failures: int = 0
    until: float = float("-inf")

    def allows(self, now: float) -> bool:
        """Return whether it may be tried."""
        return now >= self.until

    def wait(self, now: float) -> float:
        """Return the seconds until it may be tried; 0 if it may."""
        return max(0.0, self.until - now)

    def failed(self, now: float, chance: float) -> Breaker:
        """Return the state after a failure; `chance` is a random number from 0 to 1."""
        doublings = min(self.failures, 60)  # beyond that the power would overflow a float
        delay = min(self.longest, self.first * 2.0**doublings) * (0.5 + 0.5 * chance)
        return replace(self, failures=self.failures + 1, until=now + delay)

    def succeeded(self) -> Breaker:
        """Return the state after a success: closed."""
        return replace(self, failures=0, until=float("-inf"))
