# SPDX-License-Identifier: Apache-2.0
"""Handing events to hooks so that none of them can delay or end a round."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from fl_app.events import Event, Hook
from fl_app.hooks.journal_events import JournalFollower
from fl_registry import ModelStore
from fl_registry.redaction import one_line, trace

logger = logging.getLogger("flwr.fl_app")

MAX_WAITING = 1_000
"""Events that a hook may be behind; later ones are dropped until it has caught up."""
HOOK_SECONDS = 2.0
"""How long the end of a session waits for hooks; Flower gives a process 5 s to end."""
WATCH_SECONDS = 5.0
"""How often the journal is looked at while no round does."""


class Hooks:
    """Hands events to hooks: each gets all of them in order, in a thread of its own.

    Calling it never waits and never raises, whatever a hook does. One that raises is logged and
    called again with the next event. One that hangs gets no further events; after ``MAX_WAITING``
    they are dropped, which is logged. Share one of these among all sessions of a process, so that
    each stage move is told once.

    Parameters
    ----------
    hooks : Sequence[Hook]
        Whom to tell.
    store : ModelStore | None
        Registry whose stage moves are told as well, whoever makes them; None tells of none.
    seconds : float
        How long ``flush`` waits for all hooks together.
    """

    def __init__(
        self,
        hooks: Sequence[Hook] = (),
        store: ModelStore | None = None,
        *,
        seconds: float = HOOK_SECONDS,
    ) -> None:
        self._threads = [_HookThread(hook) for hook in hooks]
        self._follower = JournalFollower(store) if store is not None and hooks else None
        self._seconds = seconds

    def __call__(self, event: Event) -> None:
        """Hand the event over; the hooks get it when they have taken those before."""
        for thread in self._threads:
            thread.put(event)

    def look(self) -> None:
        """Tell of the stage moves since the last look; the first look only begins."""
        if self._follower is not None:
            self._follower.look(self)

    @contextmanager
    def watching(self, every: float = WATCH_SECONDS) -> Iterator[None]:
        """Look now, and each ``every`` seconds from a thread until the end of the block."""
        stop = threading.Event()

        def watch() -> None:
            while not stop.wait(every):
                self.look()

        self.look()
        if self._follower is not None:
            threading.Thread(target=watch, name="fl-app-journal", daemon=True).start()
        try:
            yield
        finally:
            stop.set()

    def flush(self, seconds: float | None = None) -> None:
        """Wait until the hooks have taken every event, but not longer than ``seconds``.

        What they have not taken by then is logged; their threads go on with it while the process
        lives.
        """
        until = time.monotonic() + (self._seconds if seconds is None else seconds)
        for thread in self._threads:
            left = thread.wait(until)
            if left:
                logger.warning(
                    "hook %r still has %d events; nobody waits for it", thread.hook, left
                )


class _HookThread:
    """The events that a hook has not taken yet, and a thread for as long as there are any."""

    def __init__(self, hook: Hook) -> None:
        self.hook = hook
        self._changed = threading.Condition()
        self._waiting: deque[Event] = deque()
        self._running = False
        self._dropped = 0

    def put(self, event: Event) -> None:
        with self._changed:
            if len(self._waiting) >= MAX_WAITING:
                self._drop(event)
                return
            self._waiting.append(event)
            if not self._running:
                self._start()

    def wait(self, until: float) -> int:
        """Wait until there is nothing left, or that time; return how many events are left."""
        with self._changed:
            self._changed.wait_for(lambda: not self._running, max(0.0, until - time.monotonic()))
            return len(self._waiting) + self._running

    def _start(self) -> None:
        thread = threading.Thread(target=self._run, name="fl-app-hook", daemon=True)
        try:
            thread.start()
            self._running = True
        except RuntimeError as error:  # the process has no more threads, or is about to end
            logger.warning("hook %r gets no thread: %s", self.hook, error)

    def _run(self) -> None:
        while (event := self._next()) is not None:
            try:
                self.hook(event)
            except (Exception, SystemExit) as error:  # noqa: BLE001 - it must not end a run
                said = (one_line(repr(self.hook)), event.id, trace(error))
                logger.warning("hook %s failed on %s: %s", *said)

    def _next(self) -> Event | None:
        with self._changed:
            if self._waiting:
                return self._waiting.popleft()
            if self._dropped:
                logger.warning("hook %r missed %d events", self.hook, self._dropped)
            self._running, self._dropped = False, 0
            self._changed.notify_all()
            return None

    def _drop(self, event: Event) -> None:
        self._dropped += 1
        if self._dropped == 1:
            logger.warning(
                "hook %r is %d events behind; it misses %s and what follows until it has caught up",
                self.hook,
                MAX_WAITING,
                event.id,
            )
