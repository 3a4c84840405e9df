# SPDX-License-Identifier: Apache-2.0
"""Which server may write to a model: the lease, its heartbeats, and when it is over. Pure.

A lease is an entry of the journal, so it has a place in the one order of all moves: a move under a
lease is won only while there is no later lease before it. Heartbeats are hints for servers that
wait; a lost or late one decides when a lease is taken over, never what is written.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Literal

from fl_registry.errors import LeaseLost

Availability = Literal["free", "busy", "unsure"]


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
    """Raise `LeaseLost` unless `mine`, if it is given, is the lease in force."""
    if mine is not None and mine != now:
        raise LeaseLost(
            f"{now.owner or 'Nobody'} writes to this model now; {mine.owner} had sent no heartbeat "
            "for too long and may not write any more. Look for a process that hung, or a machine "
            "that slept, and run again."
        )
