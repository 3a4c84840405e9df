# SPDX-License-Identifier: Apache-2.0
"""Stage moves and the state they lead to: what is allowed, and what it displaces. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from itertools import groupby
from typing import Any

from fl_registry.errors import StageError
from fl_registry.journal.lease import NOBODY, Lease


class Stage(StrEnum):
    """A version's place between training and retirement."""

    NONE = "None"
    STAGING = "Staging"
    PRODUCTION = "Production"
    ARCHIVED = "Archived"


class Move(StrEnum):
    """The operation of a journal entry."""

    STAGE = "stage"
    PROMOTE = "promote"
    ARCHIVE = "archive"
    ROLLBACK = "rollback"
    RESTORE = "restore"
    ADOPT = "adopt"  # accepts a production alias that was moved outside the registry
    RETIRE = "retire"  # the version is being removed for good
    ACKNOWLEDGE = "acknowledge"  # moves nothing: a person knows that the version's files are lost
    LEASE = "lease"  # moves nothing: another server writes from here on
    CARRY = "carry"  # moves nothing: the first entry of a further page


_GOALS = {
    Move.STAGE: Stage.STAGING,
    Move.RESTORE: Stage.STAGING,
    Move.PROMOTE: Stage.PRODUCTION,
    Move.ROLLBACK: Stage.PRODUCTION,
    Move.ADOPT: Stage.PRODUCTION,
    Move.ARCHIVE: Stage.ARCHIVED,
}
_STAYS = "is in production and cannot go back to staging; promote another version or roll back."
_REFUSALS = {
    (Move.STAGE, Stage.PRODUCTION): _STAYS,
    (Move.RESTORE, Stage.PRODUCTION): _STAYS,
    (Move.STAGE, Stage.ARCHIVED): "is archived and cannot go to staging; "
    "restore_version('{version}') is the way back.",
    (Move.RESTORE, Stage.NONE): "is not archived, so there is nothing to restore; "
    "promote_to_staging is the way into staging.",
    (Move.ARCHIVE, Stage.PRODUCTION): "is in production, and there must always be one; "
    "promote another version or roll back, and it is archived by itself.",
    (Move.PROMOTE, Stage.ARCHIVED): "is archived and has never been in production, so it cannot "
    "be promoted; restore_version('{version}') puts it back into staging first.",
}
_KEPT = (
    "is in staging, or has been in production, so it is kept; only other versions can be removed."
)
_NEVER_SERVED = (
    "has never been in production, so there is nothing to roll back to; promote it instead."
)
_SETS = ("archived", "rejected", "served", "retired")  # fields of a state that hold versions


@dataclass(frozen=True)
class Drift:
    """An alias, or the stage of a version, that differs from the journal.

    Attributes
    ----------
    alias : str
        The alias; empty for a stage.
    journal, mlflow : str | None
        The version that it names by the journal, and in MLflow; None for no version. Of a stage:
        its name.
    version : str
        The version whose stage differs: as displayed, in its tag ``stage``, or in ``approval``.
    """

    alias: str
    journal: str | None
    mlflow: str | None
    version: str = ""

    def __str__(self) -> str:
        """Return it in words."""
        if self.version:
            ours, theirs = self.journal, self.mlflow
            return f"version {self.version} is shown as {theirs}, the journal says {ours}"
        ours, theirs = self.journal or "none", self.mlflow or "none"
        return f"{self.alias} names {theirs}, the journal says {ours}"


@dataclass(frozen=True)
class State:
    """The result of all moves so far.

    Attributes
    ----------
    production, previous, staging : str | None
        The version in production, the one before it, and the one in staging.
    pending : str | None
        The version in staging, if it was pending approval when it was put there.
    archived : frozenset[str]
        Versions that left Staging or Production, or were archived.
    rejected : frozenset[str]
        Versions whose approval was refused.
    served : frozenset[str]
        Versions that have been in production at some time.
    retired : frozenset[str]
        Versions that are removed for good, or about to be.
    lease : Lease
        The server that may move versions by rule.
    """

    production: str | None = None
    previous: str | None = None
    staging: str | None = None
    pending: str | None = None
    archived: frozenset[str] = frozenset()
    rejected: frozenset[str] = frozenset()
    served: frozenset[str] = frozenset()
    retired: frozenset[str] = frozenset()
    lease: Lease = NOBODY

    @property
    def untouched(self) -> bool:
        """Whether no version has ever been moved."""
        return replace(self, lease=NOBODY) == State()

    def stage_of(self, version: str) -> Stage:
        """Return the stage of `version`."""
        if version == self.production:
            return Stage.PRODUCTION
        if version == self.staging:
            return Stage.STAGING
        return Stage.ARCHIVED if version in self.archived else Stage.NONE

    def version_in(self, stage: Stage | None) -> str | None:
        """Return the version in Staging or Production; None for any other stage."""
        if stage is Stage.PRODUCTION:
            return self.production
        return self.staging if stage is Stage.STAGING else None

    def approval_of(self, version: str, saved: str) -> str:
        """Return the approval of `version`; `saved` is its tag, which the journal overrides."""
        if version in self.served:
            return "approved"
        if version in self.rejected:
            return "rejected"
        return "superseded" if saved == "pending" and version in self.archived else saved

    @property
    def aliases(self) -> dict[str, str | None]:
        """The alias of each name, in the order in which they are written."""
        return {
            "previous-production": self.previous,
            "production": self.production,
            "staging": self.staging,
        }

    def plan(self, op: Move, version: str) -> tuple[Move, str] | None:
        """Return the move to journal and the version that it displaces; None if nothing changes.

        Promoting what has once been in production is journalled as a rollback. Where no version is
        displaced, the text is empty.

        Raises
        ------
        StageError
            The move is not allowed; the message names what is.
        """
        now, goal, gone = self.stage_of(version), _GOALS.get(op), version in self.retired
        if (op is Move.RETIRE) if gone else (now is goal):
            return None
        served = version in self.served
        if op is Move.PROMOTE and served and now is Stage.ARCHIVED:
            op = Move.ROLLBACK
        refusal = _REFUSALS.get((op, now), "")
        if gone:
            refusal = "was removed for good; use another version."
        elif op is Move.RETIRE and (served or version == self.staging):
            refusal = _KEPT
        elif op is Move.ROLLBACK and not served:
            refusal = _NEVER_SERVED
        if refusal:
            raise StageError(f"Version {version} {refusal.format(version=version)}")
        return op, self.version_in(goal) or ""

    def rollback_target(self) -> str:
        """Return the version that a rollback without a target goes to."""
        if self.previous is None:
            raise StageError(
                "There is no earlier production version to roll back to; "
                "promote two versions to production first, or name one with to=."
            )
        return self.previous

    def alias_changes(self, now: Mapping[str, str | None]) -> dict[str, str | None]:
        """Return the aliases to set, in an order in which production always has one; None: remove.

        Before the first move there are none: aliases may be those of other tools.
        """
        if self.untouched:
            return {}
        return {
            name: version
            for name, version in self.aliases.items()
            # A production alias is never removed: without a version, it is from before the journal.
            if now.get(name) != version and (version is not None or name == "staging")
        }

    def drifts(self, aliases: Mapping[str, str]) -> tuple[Drift, ...]:
        """Return the aliases that differ from the journal."""
        pairs = ((name, version, aliases.get(name)) for name, version in self.aliases.items())
        return tuple(Drift(name, ours, theirs) for name, ours, theirs in pairs if ours != theirs)

    def adoptions(self, drifts: Sequence[Drift]) -> list[tuple[Move, str]]:
        """Return the moves that accept what MLflow displays."""
        wanted: list[tuple[Move, str]] = []
        for drift in drifts:
            if drift.alias == "production" and drift.mlflow:
                wanted.append((Move.ADOPT, drift.mlflow))
            elif drift.alias == "staging" and drift.mlflow:
                archived = self.stage_of(drift.mlflow) is Stage.ARCHIVED
                wanted.append((Move.RESTORE if archived else Move.STAGE, drift.mlflow))
            elif drift.alias == "staging" and drift.journal:
                wanted.append((Move.ARCHIVE, drift.journal))
        return wanted

    def encode(self) -> str:
        """Return the state as one line; runs of versions are written as ``first-last``."""
        fields = asdict(self)
        fields |= {name: _ranges(fields[name]) for name in _SETS}
        return json.dumps(fields, sort_keys=True, separators=(",", ":"))

    @classmethod
    def decode(cls, text: str) -> State:
        """Return the state that `encode` wrote; `ValueError` and the like for any other text."""
        fields = json.loads(text)
        fields |= {name: _versions(fields[name]) for name in _SETS}
        return cls(**{**fields, "lease": Lease(**fields["lease"])})


def stage_drift(
    before: State, state: State, version: str, shown: Stage, tags: Mapping[str, str]
) -> Drift | None:
    """Return how the stage that is `shown` of a version, and by its `tags`, is not the journal's.

    What was right `before` the last move, and is not yet brought in line, is no drift.
    """
    stages = [str(each.stage_of(version)) for each in (state, before)]
    for each in (str(shown), tags.get("stage", str(Stage.NONE))):
        if each not in stages:
            return Drift("", stages[0], each, version)
    saved = tags.get("approval", "")
    approvals = [each.approval_of(version, saved) for each in (state, before)]
    if saved not in approvals:
        return Drift("", f"approval {approvals[0]}", f"approval {saved}", version)
    return None


@dataclass(frozen=True)
class StageMark:
    """What is to be displayed of one version.

    Attributes
    ----------
    version : str
        The version.
    stage, before : Stage
        Its stage, and the one that is displayed now.
    tags : Mapping[str, str]
        The tags that display it: ``stage``, and ``approval`` if that changed.
    """

    version: str
    stage: Stage
    before: Stage
    tags: Mapping[str, str]


def mark_of(state: State, version: str, shown: Stage, tags: Mapping[str, str]) -> StageMark | None:
    """Return what is to be displayed of a version, None if it is `shown` so by its `tags`."""
    stage, saved = state.stage_of(version), tags.get("approval", "")
    approval = state.approval_of(version, saved)
    if (shown, tags.get("stage", Stage.NONE), saved) == (stage, stage, approval):
        return None
    return StageMark(
        version, stage, shown, shown_tags(stage, "" if approval == saved else approval)
    )


def displaced_mark(before: State, after: State, version: str) -> StageMark:
    """Return what a move from `before` to `after` changed of the version that it displaced."""
    approval = after.approval_of(version, "pending") if version == before.pending else ""
    stage = after.stage_of(version)
    return StageMark(version, stage, before.stage_of(version), shown_tags(stage, approval))


def shown_tags(stage: Stage, approval: str) -> dict[str, str]:
    """Return the tags that display a stage and an approval; an empty one is not displayed."""
    return {"stage": str(stage), **({"approval": approval} if approval else {})}


def step(state: State, op: Move, version: str, approval: str = "") -> State:
    """Return the state after a move; `approval` is what its entry records of the version's."""
    tally = Tally(state)
    tally.move(op, version, approval)
    return tally.state()


class Tally:
    """A state that many moves change, each in the same time, however many versions there are.

    Parameters
    ----------
    state : State
        The state before the moves.
    """

    def __init__(self, state: State) -> None:
        self._state = state  # its sets are those below
        self._sets = {name: set(getattr(state, name)) for name in _SETS}

    def state(self) -> State:
        """Return the state after the moves so far."""
        sets: dict[str, Any] = {name: frozenset(each) for name, each in self._sets.items()}
        return replace(self._state, **sets)

    def lease(self, lease: Lease) -> None:
        """Note that another server writes."""
        self._state = replace(self._state, lease=lease)

    def move(self, op: Move, version: str, approval: str = "") -> None:
        """Add a move."""
        self._move(op, version)
        now = self._state
        pending = version if approval == "pending" else now.pending
        pending = pending if pending == now.staging else None
        if pending != now.pending:
            self._state = replace(now, pending=pending)
        if approval == "rejected":
            self._sets["rejected"].add(version)

    def _move(self, op: Move, version: str) -> None:
        now, archived = self._state, self._sets["archived"]
        if op is Move.RETIRE:
            self._sets["retired"].add(version)
            return
        goal = _GOALS.get(op)
        if goal in (None, self._stage_of(version)):
            return
        left = version if goal is Stage.ARCHIVED else now.version_in(goal)
        archived.discard(version)
        if left:
            archived.add(left)
        staging = None if now.staging == version else now.staging
        changes: dict[str, Any] = {"staging": version if goal is Stage.STAGING else staging}
        if goal is Stage.PRODUCTION:
            changes |= {"production": version, "previous": left or now.previous}
            self._sets["served"].add(version)
        self._state = replace(now, **changes)

    def _stage_of(self, version: str) -> Stage:
        if version in (self._state.production, self._state.staging):
            return self._state.stage_of(version)
        return Stage.ARCHIVED if version in self._sets["archived"] else Stage.NONE


def _ranges(versions: Iterable[str]) -> str:
    numbers = enumerate(sorted(map(int, versions)))
    # Within a run of numbers the difference to their places stays the same.
    runs = [[n for _, n in run] for _, run in groupby(numbers, lambda pair: pair[1] - pair[0])]
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


def _versions(text: str) -> frozenset[str]:
    spans = [span.split("-") for span in text.split(",") if span]
    return frozenset(str(n) for span in spans for n in range(int(span[0]), int(span[-1]) + 1))
