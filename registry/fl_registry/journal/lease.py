# SPDX-License-Identifier: Apache-2.0
"""Who may write to a model: the lease, its signs of life, and when it is over. Pure.

A lease is an entry of the journal, so it has a place in the one order of all moves: a move under a
lease is won only while no later lease stands before it. Signs of life are mere hints for those who
wait; whether they are lost or late decides when a lease is taken over, never what is written.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Literal

from fl_registry.errors import LeaseLost

Standing = Literal["free", "busy", "unsure"]


@dataclass(frozen=True)
class Lease:
    """The right to move versions by rule; people need none.

    Attributes
    ----------
    epoch : int
        The number of its entry in the journal, so later leases have greater ones; 0: nobody's.
    owner : str
        Who has it.
    """

    epoch: int = 0
    owner: str = ""


NOBODY = Lease()


@dataclass(frozen=True)
class Beat:
    """A sign of life: whose lease, the how many-th it is, and whether it is the last."""

    epoch: int = 0
    count: int = 0
    ended: bool = False

    def encode(self) -> str:
        """Return it as one line."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def decode(cls, text: str) -> Beat:
        """Return what `encode` wrote; for any other text, which anybody may store, no sign."""
        try:
            fields = json.loads(text)
            return cls(int(fields["epoch"]), int(fields["count"]), fields["ended"] is True)
        except (ValueError, KeyError, TypeError, OverflowError):
            return cls()


@dataclass(frozen=True)
class Watch:
    """What somebody who waits has seen of a lease.

    Clocks of several machines differ, so only the time between two looks counts, on the clock of
    whoever looks.

    Attributes
    ----------
    lease : Lease
        The lease.
    beat : Beat
        Its last sign of life.
    since : float
        When that was first seen, in seconds.
    alive : bool
        Whether a new sign of life came while it was watched.
    """

    lease: Lease
    beat: Beat
    since: float
    alive: bool = False


def look(watch: Watch | None, lease: Lease, beat: Beat, *, now: float) -> Watch:
    """Return what is known after another look; `now` in seconds that never go back."""
    sign = beat if beat.epoch == lease.epoch else Beat(lease.epoch)
    if watch is None:
        return Watch(lease, sign, now)
    if watch.lease != lease or watch.beat != sign:
        return Watch(lease, sign, now, alive=True)
    return watch


def standing(watch: Watch, *, now: float, lasts: float) -> Standing:
    """Return whether the lease may be taken over, is held, or whether that takes another look.

    A lease without a sign of life for `lasts` seconds is free.
    """
    if watch.lease.epoch == 0 or watch.beat.ended or now - watch.since >= lasts:
        return "free"
    return "busy" if watch.alive else "unsure"


def require_lease(now: Lease, mine: Lease | None) -> None:
    """Raise `LeaseLost` unless `mine`, if it is given, is the lease in force."""
    if mine is not None and mine != now:
        raise LeaseLost(
            f"{now.owner or 'Nobody'} writes to this model now; {mine.owner} had given no sign of "
            "life for too long and writes no more. Look for a process that hung, or a machine "
            "that slept, and run again."
        )
