# SPDX-License-Identifier: Apache-2.0
"""The registry as the API calls it: few calls at once, and its errors as the API's."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from fl_app.api.parsing import ApiError
from fl_registry import (
    ArtifactError,
    InvalidName,
    ModelStore,
    RegistryError,
    StageError,
    StoreUnavailable,
    UnknownVersion,
)

STATUSES: Mapping[type[RegistryError], int] = {
    UnknownVersion: 404,
    StageError: 409,
    ArtifactError: 409,
    InvalidName: 400,
    StoreUnavailable: 503,
}
"""HTTP status of the registry's errors; 500 for all others."""


class RegistryCalls:
    """Calls a registry, which may be slow, without holding all of the API's threads.

    Parameters
    ----------
    store : ModelStore | None
        The registry; None where there is none.
    at_once : int
        The most calls at the same time.

    Attributes
    ----------
    exists : bool
        Whether there is a registry.
    """

    def __init__(self, store: ModelStore | None, at_once: int) -> None:
        self.exists = store is not None
        self._store = store
        # Not a queue: a client that gets a 503 can decide itself whether to wait.
        self._slots = threading.BoundedSemaphore(at_once)

    @contextmanager
    def call(self) -> Iterator[ModelStore]:
        """Give the registry for the time of a call.

        Raises
        ------
        ApiError
            404 without a registry, 503 if too many calls are made now; else for its error.
        """
        if self._store is None:
            raise ApiError(404, "This server has no registry; start it with one.")
        if not self._slots.acquire(blocking=False):
            raise ApiError(503, "The registry is busy; try again.", Retry_After="1")
        try:
            yield self._store
        except RegistryError as error:
            raise ApiError(STATUSES.get(type(error), 500), str(error)) from error
        finally:
            self._slots.release()
