# SPDX-License-Identifier: Apache-2.0
"""Stays in production, read from a journal's entries: which version, and since when. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from fl_registry.journal.entries import Entry
from fl_registry.stages import Move

_INTO_PRODUCTION = (Move.PROMOTE, Move.ROLLBACK, Move.ADOPT)


@dataclass(frozen=True)
class Tenure:
    """One stay of a version in production; the next one ends it.

    Attributes
    ----------
    id : str
        That of the journal's entry which began it.
    number : int
        The place of that entry in the journal.
    version : str
        The version.
    since : datetime
        When it began, in UTC.
    returned : bool
        Whether the version was brought back: by a rollback, or by an alias that was moved to it.
    displaced : str
        The version that left production for it; empty for the first.
    actor, reason : str
        Who put it there, and why.
    """

    id: str
    number: int
    version: str
    since: datetime
    returned: bool
    displaced: str = ""
    actor: str = ""
    reason: str = ""


def tenures(entries: Iterable[Entry]) -> tuple[Tenure, ...]:
    """Return all stays in production, oldest first; the last one has not ended."""
    stays: list[Tenure] = []
    been: set[str] = set()
    for entry in entries:
        if entry.op not in _INTO_PRODUCTION or (stays and stays[-1].version == entry.version):
            continue
        again = entry.op is Move.ROLLBACK or (entry.op is Move.ADOPT and entry.version in been)
        stays.append(
            Tenure(
                entry.id,
                entry.number,
                entry.version,
                datetime.fromisoformat(entry.time),
                again,
                displaced=entry.displaced,
                actor=entry.actor,
                reason=entry.reason,
            )
        )
        been.add(entry.version)
    return tuple(stays)
