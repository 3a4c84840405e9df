# SPDX-License-Identifier: Apache-2.0
"""The worker that finishes closed rounds, in order, and tries again while the registry is down."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

from fl_app.strategy.errors import CheckpointError
from fl_registry import StoreUnavailable
from fl_registry.breaker import Breaker
from fl_registry.redaction import one_line

logger = logging.getLogger("flwr.fl_app")

AWAY = (StoreUnavailable, CheckpointError)
"""Errors after which an item is tried again: MLflow, or the disk, may come back."""
STALL_SECONDS = 600.0
"""Seconds for which `drain` waits for one item that is neither finished nor refused."""
_LOOK = 1.0

T = TypeVar("T")


class Outbox(Generic[T]):
    """Calls ``finish`` with each item, one after the other, in a thread of its own.

    An item leaves the queue once ``finish`` has returned. If it raises an error of `AWAY`, it is
    called again with the same item, after waits that grow to 10 seconds. Meanwhile ``prepare`` is
    called with the items behind it. Any other error is raised by the next `put`, `make_room` or
    `drain`.

    Parameters
    ----------
    finish : Callable[[T], None]
        Finishes an item; it may be called with the same item again.
    prepare : Callable[[T], None]
        Does the part of it that needs no registry; calling it again must cost nothing.
    report : Callable[[str], None]
        Called with the reason when items start to wait, with an empty text when they flow again.
    pipeline : bool
        False works in the caller's thread instead, as long as nothing has to wait.
    patience : float
        Seconds for which `make_room` waits for the registry.
    retry : Breaker
        How long to wait between attempts.
    """

    def __init__(
        self,
        finish: Callable[[T], None],
        prepare: Callable[[T], None],
        report: Callable[[str], None],
        *,
        pipeline: bool = True,
        patience: float = 0.7,
        retry: Breaker | None = None,
    ) -> None:
        self._finish = finish
        self._prepare = prepare
        self._report = report
        self._items: deque[T] = deque()
        self._prepared = 0  # how many items are prepared, from the first one on
        self._held_up = False  # an item could not be prepared
        self._changed = threading.Condition()
        self._breaker, self._patience = retry or Breaker(), patience
        self._chance = random.Random()  # noqa: S311 - no secret
        self._trouble = ""
        self._error: BaseException | None = None
        self._computing = 0
        self._closing = self._ended = False
        self._then: Callable[[], None] = lambda: None
        self._thread: threading.Thread | None = None
        if pipeline:
            # A daemon thread does not keep a process alive that has to end.
            self._thread = threading.Thread(target=self._work, name="fl-app-round", daemon=True)
            self._thread.start()

    @property
    def waiting(self) -> int:
        """The number of items that are not finished."""
        return len(self._items)

    @property
    def trouble(self) -> str:
        """Why items wait; empty while they are finished."""
        return self._trouble

    @contextmanager
    def computing(self) -> Iterator[None]:
        """Mark the block as computing, so that its time is not counted as the registry's."""
        with self._changed:
            self._computing += 1
            self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._computing -= 1
                self._changed.notify_all()

    def put(self, item: T) -> None:
        """Queue an item; raise the error of an earlier one."""
        with self._changed:
            self._raise()
            self._items.append(item)
            self._changed.notify_all()
        if self._thread is None:
            self._work_here()

    def make_room(self) -> None:
        """Wait until all items are finished; raise the error of an earlier one.

        There is no limit while an item is computed. For the registry this waits ``patience``
        seconds, and not at all while it is down.
        """
        left = self._patience
        with self._changed:
            while self._items and not self._error and not self._trouble and left > 0:
                began, computing = time.monotonic(), self._computing > 0
                self._changed.wait(_LOOK if computing else left)
                left -= 0.0 if computing else time.monotonic() - began
            self._raise()

    def drain(self, seconds: float) -> list[T]:
        """Wait until all items are finished; return those that are left.

        It gives up when the registry has been down for ``seconds`` without a break, or no item was
        finished for `STALL_SECONDS`.
        """
        since = began = time.monotonic()
        waiting = len(self._items)
        while True:
            if self._thread is None:
                self._work_here()
            with self._changed:
                now = time.monotonic()
                if len(self._items) < waiting or self._computing:
                    since = began = now
                if not self._trouble:
                    began = now
                waiting = len(self._items)
                self._raise()
                if self._closing:
                    return list(self._items)
                if not waiting or now - began >= seconds or now - since >= STALL_SECONDS:
                    return list(self._items)
                self._changed.wait(min(_LOOK, self._breaker.wait(now) or _LOOK))

    def close(self, seconds: float) -> None:
        """Start no further item; wait some seconds for the current one."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(seconds)

    def afterwards(self, then: Callable[[], None]) -> None:
        """Call ``then`` once no item is being finished any more: now, or when the worker ends."""
        with self._changed:
            if self._thread is not None and not self._ended:
                self._then = then
                return
        then()

    def _work(self) -> None:
        while self._wait_for_work():
            self._step()
        with self._changed:
            self._ended = True
        self._then()

    def _work_here(self) -> None:
        while self._items and not self._error and self._breaker.allows(time.monotonic()):
            self._step()
        with self._changed:
            self._raise()

    def _wait_for_work(self) -> bool:
        """Wait until there is something to do; False once there will be no more."""
        with self._changed:
            while not self._closing and not self._error:
                now = time.monotonic()
                due = self._items and self._breaker.allows(now)
                if due or (self._prepared < len(self._items) and not self._held_up):
                    return True
                self._changed.wait(self._breaker.wait(now) or None if self._items else None)
            return False

    def _step(self) -> None:
        """Finish the first item, or prepare one while that must wait."""
        finishes = self._breaker.allows(time.monotonic())
        item = self._items[0 if finishes else self._prepared]
        try:
            if not finishes or self._prepared == 0:
                self._held_up = True
                self._prepare(item)
                self._held_up = False
                self._prepared += 1
            if finishes:
                self._finish(item)
        except AWAY as error:
            self._note_away(error)
        except BaseException as error:  # noqa: BLE001  (raised in the thread that waits)
            with self._changed:
                self._error = error
                self._changed.notify_all()
            if self._closing:
                logger.info("an item was not finished at the end: %s", one_line(error))
        else:
            if finishes:
                self._note_done()

    def _note_away(self, error: Exception) -> None:
        why = one_line(error)
        with self._changed:
            before, self._trouble = self._trouble, why
            self._breaker = self._breaker.failed(time.monotonic(), self._chance.random())
            self._changed.notify_all()
        if not before:
            self._report(why)

    def _note_done(self) -> None:
        with self._changed:
            before, self._trouble = self._trouble, ""
            self._breaker = self._breaker.succeeded()
            self._items.popleft()
            self._prepared -= 1
            self._changed.notify_all()
        if before:
            self._report("")

    def _raise(self) -> None:
        if self._error is not None:
            error, self._error = self._error, None
            self._closing = True
            raise error
