# SPDX-License-Identifier: Apache-2.0
"""The journal as a store keeps it, and aliases and marks brought in line with it.

What may be moved, and who asks for it, is in `fl_registry.stage_moves`.
"""

from __future__ import annotations

import logging
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, date, datetime

from fl_registry.journal.entries import (
    Entry,
    Ledger,
    Page,
    as_moment,
    production_at,
    read_chain,
    read_page,
    touched,
)
from fl_registry.stages import Drift, Stage, State

logger = logging.getLogger(__name__)

_RECENT = 3  # moves whose versions a new store object looks at
_SETTLING = 2.0  # seconds after a move in which its aliases may still be on their way


class _Shared(threading.local):
    """The reading that a thread's steps share, while they do."""

    depth = 0
    ledger: Ledger | None = None


class SettledJournal(ABC):
    """The half of a model store that reads the journal and shows what it says.

    The journal is the truth. Aliases and marks are derived from it and put right before each
    move; what this object has seen right is not looked at again until the journal grows.
    """

    _known = Ledger()  # the journal as last read
    _shown = 0  # entries up to this number were seen right in aliases and marks

    def __init__(self) -> None:
        self._shared = _Shared()

    @abstractmethod
    def _page(self, *, fresh: bool) -> Page:
        """Return the journal's current page; `fresh` reads again what cannot have changed."""

    @abstractmethod
    def _pages(self) -> Sequence[Page]:
        """Return the whole journal, oldest page first, read again."""

    @abstractmethod
    def _claim(self, number: int, text: str) -> bool:
        """Write entry `number` if nobody has; say whether it is ours now. This is the commit."""

    @abstractmethod
    def _aliases(self) -> Mapping[str, str]:
        """Return the aliases as they stand."""

    @abstractmethod
    def _mark(self, version: str) -> str:
        """Return the stage that a version is marked with; empty where it is not."""

    @abstractmethod
    def _apply(
        self, state: State, versions: Sequence[str] | None, *, before: State | None = None
    ) -> None:
        """Make aliases and the marks of `versions` (None: of all) say what `state` says.

        `before` is what they say now, where that is known. Doing it twice changes nothing.
        """

    @contextmanager
    def one_reading(self) -> Iterator[None]:
        """Read the journal once for all that this thread asks and moves in a block.

        What others commit meanwhile is seen when a move is committed at the latest: its place is
        taken then, so the journal is read and the move planned anew. It is read again after each
        move too. Blocks may be nested.
        """
        self._shared.depth += 1
        try:
            yield
        finally:
            self._shared.depth -= 1
            if not self._shared.depth:
                self._shared.ledger = None

    def production_at(self, when: date | str) -> str | None:
        """Return the version that was in production on a day (at its end) or at a moment, in UTC.

        Raises
        ------
        InvalidName
            `when` is not a date.
        JournalError
            The journal was changed from outside.
        """
        return production_at(self.history(), as_moment(when))

    def history(self, *, after: int = 0) -> tuple[Entry, ...]:
        """Return the journal, oldest first, its hash chain checked.

        With `after`, only the entries behind that number: asking for them often costs little.
        """
        recent = self._read().entries if after or self._shared.depth else ()
        if not recent or recent[0].number > after + 1:
            recent = read_chain(self._pages())
        return tuple(entry for entry in recent if entry.number > after)

    def verify(self) -> int:
        """Check the whole journal from its first entry, and return how many it has.

        Raises
        ------
        JournalError
            Names the first entry that is missing, unreadable, or does not follow.
        """
        return len(self.history())

    def drift(self) -> tuple[Drift, ...]:
        """Return the aliases that were moved outside the registry.

        A move that was cut short is not among them: the next operation finishes it. Right after
        a move this waits a moment, since another process may still be writing its aliases.
        """
        ledger = self._read(fresh=True)
        found = self._by_hand(ledger.state, self._differing(ledger.state))
        while found and _is_fresh(ledger):
            time.sleep(0.2)
            ledger = self._read_anew()
            found = self._by_hand(ledger.state, self._differing(ledger.state))
        return found

    def reconcile(self) -> None:
        """Bring aliases, tags and stages in line with the journal, whatever was left undone."""
        ledger = self._read(fresh=True)
        while True:
            self._tell(ledger, self._wrong(ledger.state))
            self._apply(ledger.state, None)
            self._shown = ledger.length
            newer = self._read_anew()
            if newer.length == ledger.length:
                return
            ledger = newer

    def _state(self) -> State:
        return self._read().state

    def _read(self, *, fresh: bool = False) -> Ledger:
        """Return the journal; `fresh` reads again what cannot have changed, too."""
        shared = self._shared
        if shared.ledger is not None and not fresh:
            return shared.ledger
        page = self._page(fresh=fresh)
        # Its own reading: another thread may put an older one in its place meanwhile.
        self._known = ledger = read_page(page, None if fresh else self._known)
        shared.ledger = ledger if shared.depth else None
        return ledger

    def _read_anew(self) -> Ledger:
        """Read what is new in the journal, whatever was read before."""
        self._shared.ledger = None
        return self._read()

    def _settled(self) -> Ledger:
        """Read the journal and finish what it says; again until it stood still meanwhile."""
        if (ledger := self._shared.ledger) is not None:
            if not self._wrong(ledger.state) and not self._behind(ledger):
                return ledger
            # Others may have moved versions since it was read, and aliases with them.
            self._shared.ledger = None
        ledger = self._read()
        while True:
            differing, behind = self._wrong(ledger.state), self._behind(ledger)
            if not differing and not behind:
                return ledger
            self._tell(ledger, differing)
            self._apply(ledger.state, behind or _recent(ledger))
            self._shown = max(self._shown, ledger.length)
            newer = self._read_anew()
            if newer.length == ledger.length:
                return newer
            ledger = newer

    def _behind(self, ledger: Ledger) -> list[str]:
        """Return the versions whose marks this object has not seen right yet."""
        if not ledger.entries or ledger.length <= self._shown:
            return []
        if ledger.entries[0].number <= self._shown:
            return touched(entry for entry in ledger.entries if entry.number > self._shown)
        state = ledger.state
        named = {*_recent(ledger), *filter(None, state.aliases.values())}
        return sorted(named, key=int)

    def _wrong(self, state: State) -> tuple[Drift, ...]:
        """Return the aliases to put right; those of a time before the journal are left alone."""
        if state.untouched:
            return ()
        found = self._differing(state)
        return tuple(drift for drift in found if drift.journal or drift.alias == "staging")

    def _differing(self, state: State) -> tuple[Drift, ...]:
        """Return the aliases that do not say what the journal says."""
        aliases = self._aliases()
        pairs = ((name, version, aliases.get(name)) for name, version in state.aliases.items())
        return tuple(Drift(name, ours, theirs) for name, ours, theirs in pairs if ours != theirs)

    def _by_hand(self, state: State, differing: Sequence[Drift]) -> tuple[Drift, ...]:
        """Leave out what a move that was cut short explains: marks are written after aliases."""
        found = []
        for drift in differing:
            version = drift.journal or drift.mlflow or ""
            if (self._mark(version) or Stage.NONE) == state.stage_of(version):
                found.append(drift)
        return tuple(found)

    def _tell(self, ledger: Ledger, differing: Sequence[Drift]) -> None:
        if not differing or _is_fresh(ledger):
            return  # another process may still be writing the aliases of its move
        if by_hand := self._by_hand(ledger.state, differing):
            logger.warning(
                "aliases were moved outside the registry and are put back (adopt() keeps such a "
                "change): %s",
                "; ".join(str(drift) for drift in by_hand),
            )


def _recent(ledger: Ledger) -> list[str]:
    """Return the versions of the last moves."""
    return touched([entry for entry in ledger.entries if entry.version][-_RECENT:])


def _is_fresh(ledger: Ledger) -> bool:
    """Return whether the last move was made just now."""
    if not ledger.entries:
        return False
    age = datetime.now(UTC) - datetime.fromisoformat(ledger.entries[-1].time)
    return abs(age.total_seconds()) < _SETTLING
