# SPDX-License-Identifier: Apache-2.0
"""What does not work at the moment though the run goes on, for `GET /health` and the log."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from fl_registry.redaction import one_line

logger = logging.getLogger("flwr.fl_app")


class Health:
    """The parts that fail, each with its reason; one that works again is forgotten.

    Give one to everything in a process that goes on without its disk or its database. Safe to use
    from many threads.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._failing: dict[str, str] = {}

    @property
    def failing(self) -> Mapping[str, str]:
        """Why each part fails, by its name; empty where all is well."""
        with self._lock:
            return dict(self._failing)

    def fails(self, part: str, why: object) -> None:
        """Note that a part fails; logged once, until it works again."""
        said = one_line(str(why).partition("\n")[0] or type(why).__name__)
        with self._lock:
            known = part in self._failing
            self._failing[part] = said
        if not known:
            logger.warning("%s fails, and the run goes on: %s", part, said)

    def works(self, part: str) -> None:
        """Note that a part works."""
        with self._lock:
            failed = self._failing.pop(part, None)
        if failed is not None:
            logger.info("%s works again", part)

    @contextmanager
    def going_on(self, part: str, *errors: type[Exception]) -> Iterator[None]:
        """Swallow these errors of the block, and note them; where it ends well the part works."""
        try:
            yield
        except errors as error:
            self.fails(part, error)
        else:
            self.works(part)
