# SPDX-License-Identifier: Apache-2.0
"""`Writer`: being the one server that moves a model's versions by rule, or waiting to be it.

When a lease may be taken over is decided in `lease.py`; that no moves of others are won under it
follows from the journal.
"""

from __future__ import annotations

import logging
import platform
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Literal, Protocol, Self

from fl_registry.errors import LeaseLost, ModelBusy, RegistryError
from fl_registry.files.atomic import write_whole
from fl_registry.journal.lease import Heartbeat, Lease, Watch, availability, look, require_lease

logger = logging.getLogger(__name__)

WhenBusy = Literal["wait", "refuse"]

LEASE_SECONDS = 60.0
"""Seconds without a heartbeat after which another server may take over."""
LONGEST_WAIT = 86_400.0
"""Seconds for which a server waits for another one that is alive."""
_BEATS = 4  # heartbeats in the time that a lease lasts without one
_LOG_AGAIN = 60.0  # seconds between two log lines about waiting
_LONGEST_NAME = 100  # characters; what follows it must not be cut off by the journal
_HOME_ID = "home.id"  # file beside the locks
_LAST = 1.0  # seconds for the last heartbeat; a process that is being stopped has few


class LeaseStore(Protocol):
    """What a writer needs of a model store."""

    def current_lease(self) -> Lease: ...

    def take_lease(self, owner: str, *, over: Lease, reason: str = "") -> Lease | None: ...

    def last_heartbeat(self) -> Heartbeat: ...

    def send_heartbeat(self, beat: Heartbeat) -> None: ...

    def lock_file(self) -> Path | None: ...


class Writer:
    """The right to write to one model, for the time of a ``with`` block, which may be nested.

    Entering it waits for another server that writes, or refuses. A server that has ended frees the
    model at once; so does one that was killed, for others with the same home on the same machine.
    One that hangs, or died elsewhere, is taken for gone after `lasts` seconds without a heartbeat;
    if it continues later, its moves are refused with `LeaseLost`.

    Parameters
    ----------
    store : LeaseStore
        The store.
    name : str
        This server, for the journal and for servers that wait.
    when_busy : "wait" | "refuse"
        What to do while another server writes.
    lasts : float
        Seconds without a heartbeat after which a server is taken for gone; the same for all.
    clock, sleep : Callable
        Seconds that never go back, and how to wait.
    """

    def __init__(
        self,
        store: LeaseStore,
        name: str,
        *,
        when_busy: WhenBusy = "wait",
        lasts: float = LEASE_SECONDS,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._store = store
        self._name = f"{name[:_LONGEST_NAME]} on {platform.node()[: _LONGEST_NAME // 2]}"
        self._when_busy = when_busy
        self._lasts = lasts
        self._clock = clock
        self._sleep = sleep
        self._depth = 0
        self._held: _Held | None = None

    def __enter__(self) -> Self:
        """Become the server that writes.

        Raises
        ------
        ModelBusy
            Another server writes, and this one is not to wait, or has waited for a day.
        RegistryError
            The store does not answer.
        """
        if self._depth == 0:
            self._held = self._acquire()
        self._depth += 1
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Let others write, unless an outer block continues."""
        self._depth -= 1
        if self._depth == 0 and self._held is not None:
            held, self._held = self._held, None
            held.release()

    @property
    def lease(self) -> Lease | None:
        """The lease to name in moves; None outside of the block."""
        return None if self._held is None else self._held.lease

    def check(self) -> None:
        """Raise `LeaseLost` if another server is known to have taken over; makes no call."""
        if self._held is not None:
            self._held.check()

    def _acquire(self) -> _Held:
        with ExitStack() as stack:
            lease = self._wait(stack)
            return _Held(self._store, lease, stack.pop_all(), every=self._lasts / _BEATS)

    def _wait(self, stack: ExitStack) -> Lease:
        """Look again and again until the lease is free, and take it."""
        watch: Watch | None = None
        began, logged, home = self._clock(), float("-inf"), ""
        file = self._store.lock_file()
        while True:
            home = home or _lock(file, stack)
            lease, beat, now = (
                self._store.current_lease(),
                self._store.last_heartbeat(),
                self._clock(),
            )
            watch = look(watch, lease, beat, now=now)
            status = availability(watch, now=now, lasts=self._lasts)
            # We hold the lock that the server of this home held, and that ended with its process.
            killed = _is_of(home, lease)
            if status == "free" or killed:
                owner, reason = self._name + _of_home(home), _why(watch, killed=killed)
                taken = self._store.take_lease(owner, over=lease, reason=reason)
                if taken is not None:
                    return taken
                continue
            # A process of this home that holds the lock exists, even if it hangs.
            there = not home and _is_of(_home_of(file), lease)
            self._refuse(status == "busy" or there, now - began, lease)
            if now - logged >= _LOG_AGAIN:
                logged = now
                logger.warning("waiting for %s, which writes to the same model", lease.owner)
            self._sleep(min(1.0, self._lasts / 10))

    def _refuse(self, busy: bool, waited: float, lease: Lease) -> None:
        if (busy and self._when_busy == "refuse") or waited >= LONGEST_WAIT:
            raise ModelBusy(
                f"{lease.owner} writes to this model; wait for its end (when-busy), stop it, or "
                "use another registered-model-name."
            )


class _Held:
    """A lease that was taken, and the thread that sends heartbeats."""

    def __init__(self, store: LeaseStore, lease: Lease, lock: ExitStack, *, every: float) -> None:
        self.lease = lease
        self._store = store
        self._lock = lock
        self._every = every
        self._lost: LeaseLost | None = None
        self._stop = threading.Event()
        self._count = 0
        self._thread = threading.Thread(target=self._run, name="fl-app-lease", daemon=True)
        self._thread.start()

    def check(self) -> None:
        if self._lost is not None:
            raise self._lost

    def release(self) -> None:
        """Send the final heartbeat, so that waiting servers take over at once."""
        self._stop.set()
        self._thread.join(_LAST)
        self._lock.close()

    def _run(self) -> None:
        failing = not self._send()
        while self._lost is None and not self._stop.wait(self._every):
            failing = not self._send(quiet=failing)
        if self._lost is None:
            self._send(ended=True, quiet=failing)

    def _send(self, *, ended: bool = False, quiet: bool = False) -> bool:
        """Send a heartbeat, or notice that another server has taken over; return if that worked."""
        try:
            if self._store.last_heartbeat().epoch > self.lease.epoch:
                require_lease(self._store.current_lease(), self.lease)
            self._count += 1
            self._store.send_heartbeat(Heartbeat(self.lease.epoch, self._count, ended))
        except LeaseLost as error:
            self._lost = error
            logger.warning("%s", error)
        except RegistryError as error:
            if not quiet:
                logger.warning("no heartbeat could be sent to other servers: %s", error)
            return False
        return True


def _lock(file: Path | None, stack: ExitStack) -> str:
    """Hold the lock of this home if it is free, and return the home's id; else an empty text."""
    if file is None:
        return ""
    from filelock import FileLock, Timeout

    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        stack.enter_context(FileLock(file, timeout=0, thread_local=False))
        home = _home_of(file)
        if not home:
            home = uuid.uuid4().hex[:12]
            write_whole(file.with_name(_HOME_ID), home.encode())
        return home
    except (Timeout, OSError, NotImplementedError):
        return ""  # the lock only saves waiting for a process that was killed


def _home_of(file: Path | None) -> str:
    """Return the id of a home, which another machine's at the same path lacks; empty for none."""
    try:
        return file.with_name(_HOME_ID).read_text().strip() if file is not None else ""
    except OSError:
        return ""


def _is_of(home: str, lease: Lease) -> bool:
    return bool(home) and lease.owner.endswith(_of_home(home))


def _of_home(home: str) -> str:
    return f" (home {home})" if home else ""


def _why(watch: Watch, *, killed: bool) -> str:
    before = watch.lease.owner
    if not before:
        return "the first"
    if watch.beat.ended:
        return f"{before} has ended"
    return f"{before} was killed" if killed else f"{before} sends no heartbeat"
