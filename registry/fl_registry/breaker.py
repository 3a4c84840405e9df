# SPDX-License-Identifier: Apache-2.0
"""Whether to call something that failed a moment ago, and when again. Pure: the clock is given.

What counts as a failure, and who waits meanwhile, is for them to say.
"""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Breaker:
    """A circuit breaker: closed while calls succeed, open for a while after each failure.

    The wait doubles with each failure in a row. A random part of it keeps several callers from
    coming back at the same moment.

    Attributes
    ----------
    first, longest : float
        Seconds for which it is open after the first failure, and at most; chance takes up to half.
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
        doublings = min(self.failures, 60)  # beyond, a float would be enough for nobody
        delay = min(self.longest, self.first * 2.0**doublings) * (0.5 + 0.5 * chance)
        return replace(self, failures=self.failures + 1, until=now + delay)

    def succeeded(self) -> Breaker:
        """Return the state after a success: closed."""
        return replace(self, failures=0, until=float("-inf"))
