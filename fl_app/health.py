# SPDX-License-Identifier: Apache-2.0
"""Parts that fail at the moment while the run continues, for `GET /health` and the log."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from fl_registry.redaction import one_line

logger = logging.getLogger("flwr.fl_app")


class Health:
    """The failing parts with their reasons; a part that works again is removed.

    Everything in a process that can continue without its disk or database shares one instance.
    Safe to use from many threads.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._failing: dict[str, str] = {}

    @property
    def failing(self) -> Mapping[str, str]:
        """Reasons by the names of the failing parts; empty if all parts work."""
        with self._lock:
            return dict(self._failing)

    def fails(self, part: str, error: object) -> None:
        """Record that a part fails; logged once until it works again."""
        # Long enough for a command to type.
        reason = one_line(str(error).partition("\n")[0] or type(error).__name__, 1200)
        with self._lock:
            known = part in self._failing
            self._failing[part] = reason
        if not known:
            logger.warning("%s fails, and the run continues: %s", part, reason)

    def works(self, part: str) -> None:
        """Record that a part works."""
        with self._lock:
            failed = self._failing.pop(part, None)
        if failed is not None:
            logger.info("%s works again", part)

    @contextmanager
    def going_on(self, part: str, *errors: type[Exception]) -> Iterator[None]:
        """Record these errors of the block instead of raising them; otherwise the part works."""
        try:
            yield
        except errors as error:
            self.fails(part, error)
        else:
            self.works(part)
