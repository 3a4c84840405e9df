# SPDX-License-Identifier: Apache-2.0
"""Stage moves through the journal: plan, verify, claim, show. The same for every model store.

What is allowed is in `fl_registry.stages`, what entries look like in `fl_registry.journal`.
"""

from __future__ import annotations

import logging
import math
from abc import abstractmethod
from datetime import date
from pathlib import Path

from fl_registry.errors import InvalidMetric, StageError
from fl_registry.journal.entries import (
    Entry,
    JournalError,
    Ledger,
    Page,
    is_date,
    new_entry,
    read_page,
    touched,
)
from fl_registry.journal.lease import Lease, require_lease
from fl_registry.records import ModelVersion
from fl_registry.settling import SettledJournal
from fl_registry.stages import (
    Move,
    State,
    adoptions,
    plan,
    require_production,
    rollback_target,
    under_its_name,
)
from fl_registry.version_tags import checked_version

logger = logging.getLogger(__name__)

_ATTEMPTS = 50  # claims lost in a row before giving up; each loss means that another move was won
_CONTENDED = "other processes kept moving versions at the same time; try again."
_NEEDS_METRICS = (Move.STAGE, Move.PROMOTE, Move.RESTORE, Move.ADOPT)


class StageMoves(SettledJournal):
    """The half of a model store that moves versions between stages.

    A move that a server makes by rule names its `lease`; it is refused with `LeaseLost` once
    another server has taken over. Moves of people name none.
    """

    @abstractmethod
    def _one(self, version: str, state: State) -> ModelVersion:
        """Return one version, or raise `UnknownVersion`."""

    @abstractmethod
    def _verified(self, record: ModelVersion) -> Path:
        """Return the path of a version's weights, or raise `ArtifactError`."""

    def _just_saved(self, version: str) -> ModelVersion | None:
        """Return a version that this object has stored a moment ago, as it was stored."""
        return None

    def _is_near(self, record: ModelVersion) -> bool:
        """Return whether a version's files can be looked at without fetching them."""
        return True

    def promote_to_staging(
        self,
        version: str | int,
        *,
        actor: str = "",
        reason: str = "",
        lease: Lease | None = None,
    ) -> None:
        """Put a new version into staging; the one that was there is archived.

        Raises
        ------
        StageError
            The version is archived (`restore_version` is the way back) or in production.
        ArtifactError, InvalidMetric
            Its weights are missing or have changed; a metric is not a finite number.
        """
        number = checked_version(version)
        self._move(Move.STAGE, number, lease=lease, actor=actor, reason=reason)

    def promote_to_production(
        self,
        version: str | int,
        *,
        actor: str = "",
        reason: str = "",
        lease: Lease | None = None,
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
        number = checked_version(version)
        self._move(Move.PROMOTE, number, lease=lease, actor=actor, reason=reason)

    def archive_version(
        self,
        version: str | int,
        *,
        actor: str = "",
        reason: str = "",
        lease: Lease | None = None,
    ) -> None:
        """Archive a version; the one in production is refused with `StageError`."""
        number = checked_version(version)
        self._move(Move.ARCHIVE, number, lease=lease, actor=actor, reason=reason)

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
        lease: Lease | None = None,
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
        return self._move(Move.ROLLBACK, goal, displacing, lease=lease, actor=actor, reason=reason)

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

    def current_lease(self) -> Lease:
        """Return the lease in force, whether it has ended or not; epoch 0 if there was none."""
        return self._read().state.lease

    def take_lease(self, owner: str, *, over: Lease, reason: str = "") -> Lease | None:
        """Journal a new lease in the place of `over`, or return None if that is not in force.

        Whether `over` may be replaced is decided by who calls (see `Writer`).

        Raises
        ------
        JournalError
            Other processes kept moving versions at the same time.
        """
        for _ in range(_ATTEMPTS):
            ledger = self._read()
            if ledger.state.lease != over:
                return None
            entry = new_entry(
                ledger, Move.LEASE, version="", displaced="", actor=owner, reason=reason
            )
            if self._claimed(entry):
                logger.info("%s writes to this model from now on (%s)", entry.actor, entry.reason)
                return Lease(entry.number, entry.actor)
        raise JournalError(f"{owner} could not take its lease: {_CONTENDED}")

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

    def _move(
        self,
        op: Move,
        version: str | None,
        displacing: str = "",
        *,
        lease: Lease | None = None,
        **why: str,
    ) -> str:
        """Commit a move and show it; show more where the journal grew meanwhile."""
        target, entry, ledger = self._commit(
            op, version, displacing, settle=True, lease=lease, **why
        )
        if entry is None:
            return target
        logger.info("%s: version %s (%s)", entry.op, target, entry.reason or "no reason given")
        now = read_page(
            Page((*ledger.page.texts, entry.encode()), ledger.page.carried, ledger.page.first),
            ledger,
        )
        # Before the first entry the aliases may be anything: other tools may have set them.
        before = None if ledger.state.untouched else ledger.state
        self._apply(now.state, touched([entry]), before=before)
        self._shown = max(self._shown, now.length)
        if self._read_anew().length > now.length:
            self._settled()
        return target

    def _commit(
        self,
        op: Move,
        version: str | None,
        displacing: str = "",
        *,
        settle: bool,
        lease: Lease | None = None,
        **why: str,
    ) -> tuple[str, Entry | None, Ledger]:
        """Plan, verify and claim; plan again whenever another process was first.

        Returns the version, the entry (None: nothing to change) and the journal before it.
        """
        target, checked = version or "", False
        for attempt in range(_ATTEMPTS):
            ledger = self._settled() if settle else self._read()
            # What wins the place after these entries has seen every lease before it.
            require_lease(ledger.state.lease, lease)
            require_production(ledger.state, displacing)
            # Chosen once: of two rollbacks at the same time, the second must not undo the first.
            target = target or rollback_target(ledger.state)
            named = under_its_name(ledger.state, op, target)
            # Whoever has the lease knows what it saved just now; what lost its place looks again.
            known = lease is not None and named is Move.STAGE and not attempt
            mine = self._just_saved(target) if known else None
            record = mine or self._one(target, ledger.state)
            displaced = plan(ledger.state, named, target)
            if displaced is None:
                return target, None, ledger
            if not checked:
                self._check(named, record, stored=mine is not None)
                checked = True
            entry = new_entry(
                ledger,
                named,
                version=target,
                displaced=displaced,
                epoch=lease.epoch if lease is not None else 0,
                **why,
            )
            if self._claimed(entry):
                return target, entry, ledger
        raise JournalError(f"Version {target} could not be moved: {_CONTENDED}")

    def _claimed(self, entry: Entry) -> bool:
        """Claim the place of an entry; won or lost, what was read of the journal is old then."""
        try:
            return self._claim(entry.number, entry.encode())
        finally:
            self._shared.ledger = None

    def _check(self, op: Move, record: ModelVersion, *, stored: bool) -> None:
        """Refuse a version whose files or numbers are not what they must be.

        What was `stored` elsewhere just now, and taken, is not fetched to be looked at.
        """
        if op in (Move.ARCHIVE, Move.RETIRE):
            return
        if not stored or self._is_near(record):
            self._verified(record)
        wrong = sorted(name for name, value in record.metrics.items() if not math.isfinite(value))
        if not record.metrics and record.tags.get("metrics", "{}") != "{}":
            wrong = ["the tag 'metrics' cannot be read"]
        if wrong and op in _NEEDS_METRICS:
            raise InvalidMetric(
                f"Version {record.version} cannot be moved on: not a finite number: "
                f"{', '.join(wrong)}; save its file again with the right metrics."
            )
