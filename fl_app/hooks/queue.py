# SPDX-License-Identifier: Apache-2.0
"""Calls hooks from threads of their own, so that no hook can delay or end a round.

They get the events of sessions, and one for each new entry of the registry's journal.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from fl_app.events import Event, Hook, StageMoved
from fl_registry import ModelStore, RegistryError
from fl_registry.journal.entries import as_moment, fold
from fl_registry.redaction import one_line, trace
from fl_registry.stages import Move, State, step

logger = logging.getLogger("flwr.fl_app")

MAX_WAITING = 1_000
"""Events in a hook's queue; later ones are dropped until the queue is empty."""
HOOK_SECONDS = 2.0
"""How long the end of a session waits for hooks; Flower gives a process 5 s to end."""
WATCH_SECONDS = 5.0
"""Interval at which the journal is read between rounds."""


class Hooks:
    """Calls hooks with events: each gets all events in order, in a thread of its own.

    Calling it never waits and never raises. The exception of a hook is logged, and the hook is
    called again with the next event. A hook that hangs gets no further events; when its queue is
    full, events are dropped, which is logged. Share one instance among all sessions of a process,
    so that each stage move is reported once.

    Parameters
    ----------
    hooks : Sequence[Hook]
        The hooks.
    store : ModelStore | None
        Registry whose stage moves are reported as well, in whatever process they are made.
    seconds : float
        How long ``flush`` waits for all hooks together.
    max_waiting : int
        Length of each hook's queue.
    """

    def __init__(
        self,
        hooks: Sequence[Hook] = (),
        store: ModelStore | None = None,
        *,
        seconds: float = HOOK_SECONDS,
        max_waiting: int = MAX_WAITING,
    ) -> None:
        self._threads = [_HookThread(hook, max_waiting) for hook in hooks]
        self._follower = JournalFollower(store) if store is not None and hooks else None
        self._seconds = seconds

    def __call__(self, event: Event) -> None:
        """Queue the event for every hook."""
        for thread in self._threads:
            thread.put(event)

    def look(self) -> None:
        """Report the stage moves since the last call; the first call reports none."""
        if self._follower is not None:
            self._follower.look(self)

    @contextmanager
    def watching(self, every: float = WATCH_SECONDS) -> Iterator[None]:
        """Report stage moves now, and every ``every`` seconds from a thread during the block."""
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
        """Wait until all queues are empty, but not longer than ``seconds``.

        Events that remain are logged; the hooks' threads continue with them while the process
        runs.
        """
        until = time.monotonic() + (self._seconds if seconds is None else seconds)
        for thread in self._threads:
            left = thread.wait(until)
            if left:
                logger.warning("hook %r still has %d events; not waiting for it", thread.hook, left)


# A thread for each hook: called in the session's own thread, a hook that hangs would stop the run,
# and a time limit cannot end a thread. Separate queues keep the order, and one hook's dead receiver
# does not delay another hook.
class _HookThread:
    """A hook's queue, and a thread that runs while the queue is not empty."""

    def __init__(self, hook: Hook, max_waiting: int) -> None:
        self.hook = hook
        self._max_waiting = max_waiting
        self._changed = threading.Condition()
        self._waiting: deque[Event] = deque()
        self._running = False
        self._dropped = 0

    def put(self, event: Event) -> None:
        with self._changed:
            if len(self._waiting) < self._max_waiting:
                self._waiting.append(event)
                if not self._running:
                    self._start()
                return
            self._dropped += 1
            if self._dropped == 1:
                logger.warning(
                    "hook %r is %d events behind; events from %s on are dropped until it has "
                    "caught up",
                    self.hook,
                    self._max_waiting,
                    event.id,
                )

    def wait(self, until: float) -> int:
        """Wait until the queue is empty, or that time; return how many events are left."""
        with self._changed:
            self._changed.wait_for(lambda: not self._running, max(0.0, until - time.monotonic()))
            return len(self._waiting) + self._running

    def _start(self) -> None:
        thread = threading.Thread(target=self._run, name="fl-app-hook", daemon=True)
        try:
            thread.start()
            self._running = True
        except RuntimeError as error:  # no more threads, or the process is about to end
            logger.warning("hook %r gets no thread: %s", self.hook, error)

    def _run(self) -> None:
        while (event := self._next()) is not None:
            try:
                self.hook(event)
            except (Exception, SystemExit) as error:  # noqa: BLE001 - it must not end a run
                hook = one_line(repr(self.hook))
                logger.warning("hook %s failed on %s: %s", hook, event.id, trace(error))

    def _next(self) -> Event | None:
        with self._changed:
            if self._waiting:
                return self._waiting.popleft()
            if self._dropped:
                logger.warning("hook %r missed %d events", self.hook, self._dropped)
            self._running, self._dropped = False, 0
            self._changed.notify_all()
            return None


class JournalFollower:
    """Reports each entry of a store's journal once and in order, from the first call on.

    Entries from before the first call are not reported. Safe to use from many threads.

    Parameters
    ----------
    store : ModelStore
        The store with the journal.
    """

    # Read from the journal and not reported by those who move versions: people, the page, probation
    # and other processes do so too, and the journal is the one place that all of them write to.
    def __init__(self, store: ModelStore) -> None:
        self._store = store
        self._looking = threading.Lock()
        self._seen: tuple[int, State] | None = None
        self._failing = False

    def look(self, report: Hook) -> None:
        """Call ``report`` with a `StageMoved` for each entry since the last call.

        If the store does not answer or its journal is damaged, a warning is logged once, and the
        entries are reported by a later call.
        """
        with self._looking:
            try:
                for moved in self._new():
                    report(moved)
            except RegistryError as error:
                if not self._failing:
                    logger.warning("stage moves are not reported to hooks for now: %s", error)
                self._failing = True
            else:
                self._failing = False

    def _new(self) -> Iterator[StageMoved]:
        if self._seen is None:
            entries = self._store.history()
            self._seen = (entries[-1].number if entries else 0, fold(entries))
            return
        number, state = self._seen
        for entry in self._store.history(after=number):
            state = step(state, entry.op, entry.version)
            self._seen = (entry.number, state)
            if entry.op not in (Move.CARRY, Move.LEASE, Move.ACKNOWLEDGE):
                yield StageMoved(
                    number=entry.number,
                    op=str(entry.op),
                    version=entry.version,
                    displaced=entry.displaced or None,
                    actor=entry.actor,
                    reason=entry.reason,
                    production=state.production,
                    staging=state.staging,
                    id=entry.id,
                    time=as_moment(entry.time),
                )
