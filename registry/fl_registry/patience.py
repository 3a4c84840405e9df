# SPDX-License-Identifier: Apache-2.0
"""How long the calls of a thread wait for a server's reply."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_limit: ContextVar[float | None] = ContextVar("reply_seconds", default=None)


def reply_seconds() -> float | None:
    """Return the seconds that a write waits for its reply here; None for MLflow's own time-out."""
    return _limit.get()


@contextmanager
def reply_within(seconds: float) -> Iterator[None]:
    """Have writes of this thread in the block wait at most some seconds for their reply.

    For rounds, which wait on disk instead. What a person asks for, such as a rollback, and all that
    is only read waits as long as MLflow's own client does.
    """
    token = _limit.set(seconds)
    try:
        yield
    finally:
        _limit.reset(token)
