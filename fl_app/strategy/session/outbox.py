# SPDX-License-Identifier: Apache-2.0
"""The worker that finishes closed rounds, in order, and tries again while the registry is down."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections import deque
from collections.abc import Callable

from fl_app.strategy.errors import CheckpointError
from fl_app.strategy.finish.finisher import Finisher, Item
from fl_app.strategy.setup import Setup
from fl_registry import Gone, StoreUnavailable
from fl_registry.patience import reply_within
from fl_registry.redaction import one_line

logger = logging.getLogger("flwr.fl_app")

AWAY = (StoreUnavailable, Gone, CheckpointError)
"""Errors after which an item is tried again: MLflow, what was deleted there, or the disk."""
STALL_SECONDS = 600.0
"""Seconds for which `drain` waits for one item that is neither finished nor refused."""
REPLY_SECONDS = 10.0
"""Seconds for which a write to MLflow waits for its reply at the first attempt."""
MOST_CHARACTERS = 1000
"""Of a reason: a command to type must be whole."""
_LOOK = 0.1  # seconds between looks at whether the worker computes


class Outbox:
    """Has the finisher finish each item, one after the other, in a thread of its own.

    An item leaves the queue once it is finished. If that raises an error of `AWAY`, it is tried
    again, after waits that grow to 10 seconds. Meanwhile the items behind it are prepared. Any
    other error is raised by the next `put`, `make_room` or `drain`.

    Parameters
    ----------
    setup : Setup
        How long to wait for the registry. Without a pipeline items are finished in the caller's
        thread, as long as nothing has to wait.
    finisher : Finisher
        Finishes an item, prepares what needs no registry, and hears when items start to wait.

    Attributes
    ----------
    trouble : str
        Why items wait; empty while they are finished.
    """

    def __init__(self, setup: Setup, finisher: Finisher) -> None:
        self.trouble = ""
        self._finisher = finisher
        self._patience, self._breaker = setup.session.round_patience, setup.session.retry
        self._most, self._slows = setup.rounds.max_waiting_rounds, False
        self._items: deque[Item] = deque()
        self._prepared = 0  # how many items are prepared, from the first one on
        self._held_up = False  # an item could not be prepared
        self._changed = threading.Condition()
        self._chance = random.Random()  # noqa: S311 - no secret
        self._error: BaseException | None = None
        self._closing = self._ended = False
        self._then: Callable[[], None] = lambda: None
        self._thread: threading.Thread | None = None
        if setup.rounds.pipeline:
            # A daemon thread does not keep a process alive that has to end.
            self._thread = threading.Thread(target=self._work, name="fl-app-round", daemon=True)
            self._thread.start()

    @property
    def waiting(self) -> int:
        """The number of items that are not finished."""
        return len(self._items)

    def put(self, item: Item) -> None:
        """Queue an item; raise the error of an earlier one."""
        with self._changed:
            self._raise()
            self._items.append(item)
            self._changed.notify_all()
        if self._thread is None:
            self._work_here()

    def make_room(self) -> None:
        """Wait until all items are finished; raise the error of an earlier one.

        There is no limit while an item is computed. For the registry this waits as long as a round
        has patience, and not at all while it is down. With as many items as may wait, it waits
        until one is finished, so that a slow worker slows the rounds and does not fill the disk.
        """
        left, before = self._patience, len(self._items)
        with self._changed:
            while self._items and not self._error and not self.trouble and not self._closing:
                full = before <= len(self._items) and self._most <= len(self._items)
                if left <= 0 and not full:
                    break
                if left <= 0 and not self._slows:
                    self._slows = True
                    logger.info(
                        "%d rounds wait to be finished, so the next ones wait for them: MLflow or "
                        "the evaluation takes longer than a round",
                        len(self._items),
                    )
                began = time.monotonic()
                self._changed.wait(min(_LOOK, left) if left > 0 else _LOOK)
                if not self._finisher.scores.computing:
                    left -= time.monotonic() - began
            self._raise()

    def drain(self, seconds: float) -> list[Item]:
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
                if len(self._items) < waiting or self._finisher.scores.computing:
                    since = began = now
                if not self.trouble:
                    began = now
                waiting = len(self._items)
                self._raise()
                given_up = now - began >= seconds or now - since >= STALL_SECONDS
                if self._closing or not waiting or given_up:
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
            self._step(finishes=self._breaker.allows(time.monotonic()))
        with self._changed:
            self._ended = True
        self._then()

    def _work_here(self) -> None:
        while self._items and not self._error and self._breaker.allows(time.monotonic()):
            self._step(finishes=True)
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

    def _step(self, *, finishes: bool) -> None:
        """Finish the first item, or prepare one while that must wait."""
        item = self._items[0 if finishes else self._prepared]
        try:
            if not finishes or self._prepared == 0:
                self._held_up = True
                self._finisher.prepare(item, save=bool(self.trouble))
                self._held_up = False
                self._prepared += 1
            if finishes:
                # A server that is slow and not away gets more time with each attempt.
                with reply_within(REPLY_SECONDS * 2 ** min(self._breaker.failures, 4)):
                    self._finisher.work(item)
                self._note("")
        except AWAY as error:
            trouble = one_line(error, MOST_CHARACTERS) or type(error).__name__
            self._note(trouble, by_disk=isinstance(error, CheckpointError))
        except BaseException as error:  # noqa: BLE001  (raised in the thread that waits)
            with self._changed:
                self._error = error
                self._changed.notify_all()
            if self._closing:
                logger.info("an item was not finished at the end: %s", one_line(error))

    def _note(self, trouble: str, *, by_disk: bool = False) -> None:
        """Note that the first item is finished, or why it has to wait."""
        with self._changed:
            before, self.trouble = self.trouble, trouble
            if trouble:
                self._breaker = self._breaker.failed(time.monotonic(), self._chance.random())
                self._prepared = self._prepared if before else 0  # again, to save their scores
            else:
                self._breaker = self._breaker.succeeded()
                self._items.popleft()
                self._prepared -= 1
            self._changed.notify_all()
        if before != trouble:
            self._finisher.report_trouble(trouble, by_disk=by_disk)

    def _raise(self) -> None:
        if self._error is not None:
            error, self._error = self._error, None
            self._closing = True
            raise error
