# SPDX-License-Identifier: Apache-2.0
"""The circuit breaker: closed while calls succeed, open ever longer while they do not."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fl_registry.breaker import Breaker

CHANCE = st.floats(0, 1)
CLOCK = st.floats(0, 1e6)


def test_a_new_one_is_closed() -> None:
    assert Breaker().allows(0.0)
    assert Breaker().wait(0.0) == 0


def test_it_opens_for_longer_with_each_failure_in_a_row() -> None:
    breaker, waits = Breaker(first=1, longest=10), []
    for _ in range(6):
        breaker = breaker.failed(100.0, chance=1.0)
        waits.append(breaker.wait(100.0))
    assert waits == [1, 2, 4, 8, 10, 10]


@given(st.lists(CHANCE, min_size=1, max_size=200), CLOCK)
def test_no_wait_is_longer_than_the_longest_or_shorter_than_half_the_first(
    chances: list[float], now: float
) -> None:
    breaker = Breaker(first=0.5, longest=10)
    for chance in chances:
        breaker = breaker.failed(now, chance)
        assert 0.249 <= breaker.wait(now) <= 10.001
        assert not breaker.allows(now)
        assert breaker.allows(now + 10.001)
    assert breaker.failures == len(chances)


@given(st.lists(CHANCE, max_size=30), CLOCK)
def test_one_success_closes_it(chances: list[float], now: float) -> None:
    breaker = Breaker()
    for chance in chances:
        breaker = breaker.failed(now, chance)
    closed = breaker.succeeded()
    assert closed.allows(now)
    assert closed.failed(now, 1.0).wait(now) <= closed.first + 1e-6 * now
