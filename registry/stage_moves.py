# SPDX-License-Identifier: Apache-2.0
"""Stage moves through the journal: plan, verify, claim, show. The same for every model store.

What is allowed is in `registry.moves`; what entries look like is in `registry.journal`.
"""

from __future__ import annotations

import logging
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime
from pathlib import Path

from registry.errors import InvalidMetric, JournalError, StageError
from registry.journal import (
    Entry,
    Ledger,
    Page,
    as_moment,
    is_date,
    new_entry,
    production_at,
    read_chain,
    read_page,
    touched,
)
from registry.moves import (
    Drift,
    Move,
    State,
    adoptions,
    plan,
    require_production,
    rollback_target,
    under_its_name,
)
from registry.records import ModelVersion, Stage
from registry.versions import checked_version

logger = logging.getLogger(__name__)

_ATTEMPTS = 50  # claims lost in a row before giving up; each loss means that another move was won
_RECENT = 3  # entries whose versions a new store object looks at
_SETTLING = 2.0  # seconds after a move in which its aliases may still be on their way
_NEEDS_METRICS = (Move.STAGE, Move.PROMOTE, Move.RESTORE, Move.ADOPT)


class StageMoves(ABC):
    """The half of a model store that moves versions between stages.

    The journal is the truth. Aliases and marks are derived from it and put right before each
    move; what this object has seen right is not looked at again until the journal grows.
    """

    _known = Ledger()  # the journal as last read
    _shown = 0  # entries up to this number were seen right in aliases and marks

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

    @abstractmethod
    def _one(self, version: str, state: State) -> ModelVersion:
        """Return one version, or raise `UnknownVersion`."""

    @abstractmethod
    def _verified(self, record: ModelVersion) -> Path:
        """Return the path of a version's weights, or raise `ArtifactError`."""

    def promote_to_staging(self, version: str | int, *, actor: str = "", reason: str = "") -> None:
        """Put a new version into staging; the one that was there is archived.

        Raises
        ------
        StageError
            The version is archived (`restore_version` is the way back) or in production.
        ArtifactError, InvalidMetric
            Its weights are missing or have changed; a metric is not a finite number.
        """
        self._move(Move.STAGE, checked_version(version), actor=actor, reason=reason)

    def promote_to_production(
        self, version: str | int, *, actor: str = "", reason: str = ""
    ) -> None:
        """Put a version into production; the one that was there is archived.

        A version that has once been in production comes back: the journal calls it a rollback.

        Raises
        ------
        StageError
            The version is archived and has never been in production.
        ArtifactError, InvalidMetric
            Its weights are missing or have changed; a metric is not a finite number.
        """
        self._move(Move.PROMOTE, checked_version(version), actor=actor, reason=reason)

    def archive_version(self, version: str | int, *, actor: str = "", reason: str = "") -> None:
        """Archive a version; the one in production is refused with `StageError`."""
        self._move(Move.ARCHIVE, checked_version(version), actor=actor, reason=reason)

    def restore_version(self, version: str | int, *, actor: str = "", reason: str = "") -> None:
        """Put an archived version back into staging; the one that was there is archived.

        Raises
        ------
        StageError
            The version is not archived.
        ArtifactError, InvalidMetric
            Its weights are missing or have changed; a metric is not a finite number.
        """
        self._move(Move.RESTORE, checked_version(version), actor=actor, reason=reason)

    def rollback(
        self,
        to: str | int | date | None = None,
        *,
        actor: str = "",
        reason: str = "",
        displacing: str = "",
    ) -> str:
        """Put a version that has been in production back there, and return its number.

        Without `to` it is the one that was there before, so rolling back twice returns.

        Parameters
        ----------
        to : str | int | date | None
            A version; or a day or moment, such as ``"2026-11-23"``: what was there then (see
            `production_at`).
        displacing : str
            Only go back if this version is still the one in production; empty: whichever is.

        Raises
        ------
        StageError
            There is no such version, or another one than `displacing` is in production.
        ArtifactError
            Its weights are missing or have changed since they were saved.
        """
        goal = self._goal(to)
        return self._move(Move.ROLLBACK, goal, displacing, actor=actor, reason=reason)

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
        recent = self._read().entries if after else ()
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
            ledger = self._read()
            found = self._by_hand(ledger.state, self._differing(ledger.state))
        return found

    def adopt(self, *, actor: str = "", reason: str = "") -> tuple[Entry, ...]:
        """Journal the aliases that were moved outside the registry, and return the entries.

        The alias ``previous-production``, and a ``production`` that was deleted, follow from the
        journal: they cannot be adopted and are put right.

        Raises
        ------
        StageError, ArtifactError, InvalidMetric
            The version that the alias names may not be there; `reconcile` puts the alias back.
        """
        said = f"adopted from MLflow: {reason}" if reason else "adopted from MLflow"
        drift, entries = self.drift(), []
        for op, version in adoptions(drift, self._read().state):
            _, entry, _ = self._commit(op, version, settle=False, actor=actor, reason=said)
            entries += [entry] if entry is not None else []
        self._settled()
        return tuple(entries)

    def reconcile(self) -> None:
        """Bring aliases, tags and stages in line with the journal, whatever was left undone."""
        ledger = self._read(fresh=True)
        while True:
            self._tell(ledger, self._wrong(ledger.state))
            self._apply(ledger.state, None)
            self._shown = ledger.length
            newer = self._read()
            if newer.length == ledger.length:
                return
            ledger = newer

    def _state(self) -> State:
        return self._read().state

    def _read(self, *, fresh: bool = False) -> Ledger:
        page = self._page(fresh=fresh)
        self._known = read_page(page, None if fresh else self._known)
        return self._known

    def _goal(self, to: str | int | date | None) -> str | None:
        if to is None:
            return None
        if not (isinstance(to, date) or (isinstance(to, str) and is_date(to))):
            return checked_version(to)
        found = self.production_at(to)
        if found is None:
            raise StageError(
                f"Nothing was in production at {to}, so there is nothing to roll back to; "
                "name a version with to=."
            )
        return found

    def _move(self, op: Move, version: str | None, displacing: str = "", **why: str) -> str:
        """Commit a move and show it; show more where the journal grew meanwhile."""
        target, entry, ledger = self._commit(op, version, displacing, settle=True, **why)
        if entry is None:
            return target
        logger.info("%s: version %s (%s)", entry.op, target, entry.reason or "no reason given")
        now = read_page(
            Page((*ledger.page.texts, entry.encode()), ledger.page.carried, ledger.page.first),
            ledger,
        )
        # Before the first entry the aliases may be anything: other tools may have set them.
        before = ledger.state if ledger.entries else None
        self._apply(now.state, touched([entry]), before=before)
        self._shown = max(self._shown, now.length)
        if self._read().length > now.length:
            self._settled()
        return target

    def _commit(
        self, op: Move, version: str | None, displacing: str = "", *, settle: bool, **why: str
    ) -> tuple[str, Entry | None, Ledger]:
        """Plan, verify and claim; plan again whenever another process was first.

        Returns the version, the entry (None: nothing to change) and the journal before it.
        """
        target, checked = version or "", False
        for _ in range(_ATTEMPTS):
            ledger = self._settled() if settle else self._read()
            require_production(ledger.state, displacing)
            # Chosen once: of two rollbacks at the same time, the second must not undo the first.
            target = target or rollback_target(ledger.state)
            named = under_its_name(ledger.state, op, target)
            record = self._one(target, ledger.state)
            displaced = plan(ledger.state, named, target)
            if displaced is None:
                return target, None, ledger
            if not checked:
                self._check(named, record)
                checked = True
            entry = new_entry(ledger, named, version=target, displaced=displaced, **why)
            if self._claim(entry.number, entry.encode()):
                return target, entry, ledger
        raise JournalError(
            f"Version {target} could not be moved: other processes kept moving versions at the "
            "same time; try again."
        )

    def _check(self, op: Move, record: ModelVersion) -> None:
        """Refuse a version whose files or numbers are not what they must be."""
        if op in (Move.ARCHIVE, Move.RETIRE):
            return
        self._verified(record)
        wrong = sorted(name for name, value in record.metrics.items() if not math.isfinite(value))
        if not record.metrics and record.tags.get("metrics", "{}") != "{}":
            wrong = ["the tag 'metrics' cannot be read"]
        if wrong and op in _NEEDS_METRICS:
            raise InvalidMetric(
                f"Version {record.version} cannot be moved on: not a finite number: "
                f"{', '.join(wrong)}; save its file again with the right metrics."
            )

    def _settled(self) -> Ledger:
        """Read the journal and finish what it says; again until it stood still meanwhile."""
        ledger = self._read()
        while True:
            differing, behind = self._wrong(ledger.state), self._behind(ledger)
            if not differing and not behind:
                return ledger
            self._tell(ledger, differing)
            self._apply(ledger.state, behind or touched(ledger.entries[-_RECENT:]))
            self._shown = max(self._shown, ledger.length)
            newer = self._read()
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
        named = {*touched(ledger.entries[-_RECENT:]), *filter(None, state.aliases.values())}
        return sorted(named, key=int)

    def _wrong(self, state: State) -> tuple[Drift, ...]:
        """Return the aliases to put right; those of a time before the journal are left alone."""
        if state == State():
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


def _is_fresh(ledger: Ledger) -> bool:
    """Return whether the last move was made just now."""
    if not ledger.entries:
        return False
    age = datetime.now(UTC) - datetime.fromisoformat(ledger.entries[-1].time)
    return abs(age.total_seconds()) < _SETTLING
