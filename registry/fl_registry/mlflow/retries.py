# SPDX-License-Identifier: Apache-2.0
"""Calls to MLflow repeated: idempotent ones as they are, creates with a look in between.

MLflow's own client repeats every call over HTTP, creates included, with waits that only its
environment variables set; so what is repeated here is bounded by time as well.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from fl_registry.errors import error_code, is_down

_ATTEMPTS = 5
_FIRST_WAIT = 0.02  # seconds; doubled each time
_PATIENCE = 5.0  # seconds; a call that took longer was already repeated by MLflow's own client
# Two first writes of one key, two writers of one row, one writer of a SQLite file:
_CONTENDED = (
    "UNIQUE constraint",
    "duplicate key value",
    "database is locked",
    "deadlock detected",
    "could not serialize",
    "StaleDataError",
)
T = TypeVar("T")


def again(call: Callable[..., T], *arguments: object, **named: object) -> T:
    """Return what an idempotent call returns, repeating it a few times if others are in its way."""
    from mlflow.exceptions import MlflowException

    for attempt in range(_ATTEMPTS):
        began = time.monotonic()
        try:
            return call(*arguments, **named)
        except MlflowException as error:
            if attempt + 1 == _ATTEMPTS or not _worth_it(error, began):
                raise
        time.sleep(_FIRST_WAIT * 2**attempt)
    raise AssertionError("unreachable")


def create_once(
    create: Callable[[], T],
    find: Callable[[], Sequence[T]],
    *,
    drop: Callable[[T], object],
    alone: Callable[[T], bool],
) -> T:
    """Create something that MLflow knows no unique name for, and leave exactly one of it.

    Parameters
    ----------
    create : Callable[[], T]
        Creates it, marked so that `find` finds it, and returns it.
    find : Callable[[], Sequence[T]]
        Returns what bears the mark, the one to keep first.
    drop : Callable[[T], object]
        Removes an echo: a create that was repeated since its reply was lost.
    alone : Callable[[T], bool]
        Whether what `create` returned is certainly the only one, so that there is no need to look.
    """
    from mlflow.exceptions import MlflowException

    for attempt in range(_ATTEMPTS):
        began = time.monotonic()
        try:
            created = create()
            if alone(created):
                return created
            break
        except MlflowException as error:
            if again(find):
                break
            if attempt + 1 == _ATTEMPTS or not _worth_it(error, began):
                raise
        time.sleep(_FIRST_WAIT * 2**attempt)
    first, *echoes = again(find)
    for echo in echoes:
        drop(echo)
    return first


def _worth_it(error: Exception, began: float) -> bool:
    if time.monotonic() - began > _PATIENCE:
        return False
    text = str(error)
    return any(sign in text for sign in _CONTENDED) or is_down(error, error_code(error))
