# SPDX-License-Identifier: Apache-2.0
"""Which server may write to a model: the lease, its heartbeats, and the `Writer` that holds it.

A lease is an entry of the journal, so it has a place in the one order of all moves: a move under a
lease is won only while there is no later lease before it. Heartbeats are hints for servers that
wait; a lost or late one decides when a lease is taken over, never what is written.
"""

from __future__ import annotations

import json
import logging
import platform
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import KW_ONLY, asdict, dataclass, field
from pathlib import Path
from typing import Literal, Protocol, Self

from fl_registry.errors import LeaseLost, ModelBusy, RegistryError
from fl_registry.files.atomic import write_whole
from fl_registry.patience import reply_within

logger = logging.getLogger(__name__)

Availability = Literal["free", "busy", "unsure"]
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


@dataclass(frozen=True)
class Lease:
    """The right to move versions by rule; people need none.

    Attributes
    ----------
    epoch : int
        The number of its entry in the journal, so later leases have greater ones; 0 for none.
    owner : str
        The server that has it.
    """

    epoch: int = 0
    owner: str = ""


NOBODY = Lease()


@dataclass(frozen=True)
class Heartbeat:
    """A server's report that it is alive.

    Attributes
    ----------
    epoch : int
        The server's lease.
    count : int
        Its number, from 1.
    ended : bool
        Whether it is the last one, since the server has ended.
    """

    epoch: int = 0
    count: int = 0
    ended: bool = False

    def encode(self) -> str:
        """Return it as one line."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def decode(cls, text: str) -> Heartbeat:
        """Return what `encode` wrote; any other text, which anybody may store, is no heartbeat."""
        try:
            fields = json.loads(text)
            return cls(int(fields["epoch"]), int(fields["count"]), fields["ended"] is True)
        except (ValueError, KeyError, TypeError, OverflowError):
            return cls()


@dataclass(frozen=True)
class Watch:
    """What a waiting server has seen of a lease.

    Clocks of several machines differ, so only the time between two looks counts, on the clock of
    the waiting server.

    Attributes
    ----------
    lease : Lease
        The lease.
    beat : Heartbeat
        Its last heartbeat.
    since : float
        When that was first seen, in seconds.
    alive : bool
        Whether a new heartbeat came while it was watched.
    """

    lease: Lease
    beat: Heartbeat
    since: float
    alive: bool = False


def look(watch: Watch | None, lease: Lease, beat: Heartbeat, *, now: float) -> Watch:
    """Return the watch after another look; `now` in seconds that never go back."""
    last = beat if beat.epoch == lease.epoch else Heartbeat(lease.epoch)
    if watch is None:
        return Watch(lease, last, now)
    if watch.lease != lease or watch.beat != last:
        return Watch(lease, last, now, alive=True)
    return watch


def availability(watch: Watch, *, now: float, lasts: float) -> Availability:
    """Return whether the lease may be taken over, is held, or whether that takes another look.

    A lease without a heartbeat for `lasts` seconds is free.
    """
    if watch.lease.epoch == 0 or watch.beat.ended or now - watch.since >= lasts:
        return "free"
    return "busy" if watch.alive else "unsure"


def require_lease(now: Lease, mine: Lease | None) -> None:
    """Raise `LeaseLost` unless `mine`, if it is given, is the lease in force.

    In a journal that was begun anew nobody has one.
    """
    if mine is not None and now not in (mine, NOBODY):
        raise LeaseLost(
            f"{now.owner or 'Nobody'} writes to this model now; {mine.owner} had sent no heartbeat "
            "for too long and may not write any more. Look for a process that hung, or a machine "
            "that slept, and run again."
        )


class LeaseStore(Protocol):
    """What a writer needs of a model store."""

    def current_lease(self) -> Lease: ...

    def take_lease(self, owner: str, *, over: Lease, reason: str = "") -> Lease | None: ...

    def last_heartbeat(self) -> Heartbeat: ...

    def send_heartbeat(self, beat: Heartbeat) -> None: ...

    def lock_file(self) -> Path | None: ...


@dataclass(eq=False)
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

    store: LeaseStore
    name: str
    _: KW_ONLY
    when_busy: WhenBusy = "wait"
    lasts: float = LEASE_SECONDS
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    _depth: int = field(default=0, init=False)
    _held: _Held | None = field(default=None, init=False)

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
            with ExitStack() as stack:
                lease = self._wait(stack)
                self._held = _Held(self.store, lease, stack.pop_all(), every=self.lasts / _BEATS)
        self._depth += 1
        return self

    def __exit__(self, *error: object) -> None:
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
        if self._held is not None and self._held.lost is not None:
            raise self._held.lost

    def _wait(self, stack: ExitStack) -> Lease:
        """Look again and again until the lease is free, and take it."""
        name = f"{self.name[:_LONGEST_NAME]} on {platform.node()[: _LONGEST_NAME // 2]}"
        watch: Watch | None = None
        began, logged, home = self.clock(), float("-inf"), ""
        file = self.store.lock_file()
        while True:
            home = home or _lock(file, stack)
            lease, beat = self.store.current_lease(), self.store.last_heartbeat()
            now = self.clock()
            watch = look(watch, lease, beat, now=now)
            status = availability(watch, now=now, lasts=self.lasts)
            # We hold the lock that the server of this home held, and that ended with its process.
            killed = _is_of(home, lease)
            if status == "free" or killed:
                why = _why(watch, killed=killed)
                taken = self.store.take_lease(name + home, over=lease, reason=why)
                if taken is not None:
                    return taken
                continue
            # A process of this home that holds the lock exists, even if it hangs.
            busy = status == "busy" or (not home and _is_of(_home_of(file), lease))
            if (busy and self.when_busy == "refuse") or now - began >= LONGEST_WAIT:
                raise ModelBusy(
                    f"{lease.owner} writes to this model; wait for its end (when-busy), stop it, "
                    "or use another registered-model-name."
                )
            if now - logged >= _LOG_AGAIN:
                logged = now
                logger.warning("waiting for %s, which writes to the same model", lease.owner)
            self.sleep(min(1.0, self.lasts / 10))


class _Held:
    """A lease that was taken, and the thread that sends heartbeats."""

    def __init__(self, store: LeaseStore, lease: Lease, lock: ExitStack, *, every: float) -> None:
        self.lease = lease
        self.lost: LeaseLost | None = None
        self._store = store
        self._lock = lock
        self._every = every
        self._stop = threading.Event()
        self._count = 0
        self._thread = threading.Thread(target=self._run, name="fl-app-lease", daemon=True)
        self._thread.start()

    def release(self) -> None:
        """Send the final heartbeat, so that waiting servers take over at once."""
        self._stop.set()
        self._thread.join(_LAST)
        self._lock.close()

    def _run(self) -> None:
        failing = not self._send()
        while self.lost is None and not self._stop.wait(self._every):
            failing = not self._send(quiet=failing)
        if self.lost is None:
            self._send(ended=True, quiet=failing)

    def _send(self, *, ended: bool = False, quiet: bool = False) -> bool:
        """Send a heartbeat, or notice that another server has taken over; return if that worked."""
        try:
            if self._store.last_heartbeat().epoch > self.lease.epoch:
                require_lease(self._store.current_lease(), self.lease)
            self._count += 1
            with reply_within(self._every):
                self._store.send_heartbeat(Heartbeat(self.lease.epoch, self._count, ended))
        except LeaseLost as error:
            self.lost = error
            logger.warning("%s", error)
        except RegistryError as error:
            if not quiet:
                logger.warning("no heartbeat could be sent to other servers: %s", error)
            return False
        return True


def _lock(file: Path | None, stack: ExitStack) -> str:
    """Hold the lock of this home if it is free, and return its mark; else an empty text."""
    if file is None:
        return ""
    from filelock import FileLock, Timeout

    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        stack.enter_context(FileLock(file, timeout=0, thread_local=False))
        if not _home_of(file):
            write_whole(file.with_name(_HOME_ID), uuid.uuid4().hex[:12].encode())
        return _home_of(file)
    except (Timeout, OSError, NotImplementedError):
        return ""  # the lock only saves waiting for a process that was killed


def _home_of(file: Path | None) -> str:
    """Return the mark of a home, which another machine's at the same path lacks; empty for none.

    It ends the names of the servers that hold its lock.
    """
    try:
        home = file.with_name(_HOME_ID).read_text().strip() if file is not None else ""
    except OSError:
        return ""
    return f" (home {home})" if home else ""


def _is_of(home: str, lease: Lease) -> bool:
    return bool(home) and lease.owner.endswith(home)


def _why(watch: Watch, *, killed: bool) -> str:
    before = watch.lease.owner
    if not before:
        return "the first"
    if watch.beat.ended:
        return f"{before} has ended"
    return f"{before} was killed" if killed else f"{before} sends no heartbeat"
