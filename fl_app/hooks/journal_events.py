# SPDX-License-Identifier: Apache-2.0
"""Follows the registry's journal: each new entry becomes one event, whichever process wrote it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator

from fl_app.events import Hook, StageMoved
from fl_registry import ModelStore, RegistryError
from fl_registry.journal.entries import Entry, as_moment, fold
from fl_registry.stages import Move, State, step

logger = logging.getLogger("flwr.fl_app")


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
            if entry.op not in (Move.CARRY, Move.LEASE):
                yield _moved(entry, state)


def _moved(entry: Entry, state: State) -> StageMoved:
    return StageMoved(
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
