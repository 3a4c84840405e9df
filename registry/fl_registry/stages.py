# SPDX-License-Identifier: Apache-2.0
"""Stage moves and the state they lead to: what is allowed, and what it displaces. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import pairwise

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
    LEASE = "lease"  # moves nothing: another server writes from here on
    CARRY = "carry"  # moves nothing: the first entry of a further page


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

    def encode(self) -> str:
        """Return the state as one line; runs of versions are written as ``first-last``."""
        fields = {
            "production": self.production,
            "previous": self.previous,
            "staging": self.staging,
            "pending": self.pending,
            "archived": _ranges(self.archived),
            "rejected": _ranges(self.rejected),
            "served": _ranges(self.served),
            "retired": _ranges(self.retired),
        }
        if self.lease.epoch:
            fields["lease"] = f"{self.lease.epoch} {self.lease.owner}"
        return json.dumps(fields, sort_keys=True, separators=(",", ":"))

    @classmethod
    def decode(cls, text: str) -> State:
        """Return the state that `encode` wrote; `ValueError` or `KeyError` for any other text."""
        fields = json.loads(text)
        return cls(
            production=fields["production"],
            previous=fields["previous"],
            staging=fields["staging"],
            pending=fields["pending"],
            archived=_versions(fields["archived"]),
            rejected=_versions(fields["rejected"]),
            served=_versions(fields["served"]),
            retired=_versions(fields["retired"]),
            lease=_lease(fields.get("lease", "0 ")),
        )


@dataclass(frozen=True)
class Drift:
    """An alias that differs from the journal; None stands for no version."""

    alias: str
    journal: str | None
    mlflow: str | None

    def __str__(self) -> str:
        """Return it in words."""
        ours, theirs = self.journal or "none", self.mlflow or "none"
        return f"{self.alias} names {theirs}, the journal says {ours}"


@dataclass(frozen=True)
class StageMark:
    """What is to be displayed of one version.

    Attributes
    ----------
    version : str
        The version.
    stage, before : Stage
        Its stage, and the one that is displayed now.
    approval : str
        Its approval, if that changed; empty if not.
    """

    version: str
    stage: Stage
    before: Stage
    approval: str = ""


def alias_changes(state: State, now: Mapping[str, str | None]) -> dict[str, str | None]:
    """Return the aliases to set, in an order in which production always has one; None: remove.

    Before the first move there are none: aliases may be those of other tools.
    """
    if state.untouched:
        return {}
    return {
        name: version
        for name, version in state.aliases.items()
        # A production alias is never removed: without a version, it is from before the journal.
        if now.get(name) != version and (version is not None or name == "staging")
    }


def marks_of_move(before: State, after: State, versions: Iterable[str]) -> list[StageMark]:
    """Return what a move from `before` to `after` changed of the versions that it moved."""
    marks = []
    for version in versions:
        saved = "pending" if version == before.pending else ""
        approval = after.approval_of(version, saved)
        changed = "" if approval == before.approval_of(version, saved) else approval
        stages = after.stage_of(version), before.stage_of(version)
        marks.append(StageMark(version, *stages, changed))
    return marks


def drifts(state: State, aliases: Mapping[str, str]) -> tuple[Drift, ...]:
    """Return the aliases that differ from the journal."""
    pairs = ((name, version, aliases.get(name)) for name, version in state.aliases.items())
    return tuple(Drift(name, ours, theirs) for name, ours, theirs in pairs if ours != theirs)


def step(state: State, op: Move, version: str, approval: str = "") -> State:
    """Return the state after a move; `approval` is what its entry records of the version's."""
    after = _step(state, op, version)
    pending = version if approval == "pending" else state.pending
    rejected = after.rejected | {version} if approval == "rejected" else after.rejected
    return replace(after, pending=pending if pending == after.staging else None, rejected=rejected)


def _step(state: State, op: Move, version: str) -> State:
    if op in (Move.CARRY, Move.LEASE):
        return state
    if op is Move.RETIRE:
        return replace(state, retired=state.retired | {version})
    if op is Move.STAGE or op is Move.RESTORE:
        moved = replace(state, staging=version, archived=state.archived - {version})
        return _archive(moved, state.staging, unless=version)
    if op is Move.ARCHIVE:
        staging = None if state.staging == version else state.staging
        return _archive(replace(state, staging=staging), version)
    if version == state.production:
        return state
    moved = replace(
        state,
        production=version,
        previous=state.production or state.previous,
        staging=None if state.staging == version else state.staging,
        archived=state.archived - {version},
        served=state.served | {version},
    )
    return _archive(moved, state.production)


def plan(state: State, op: Move, version: str) -> str | None:
    """Return the version that `version` would displace ("" for none), or None if nothing changes.

    Raises
    ------
    StageError
        The move is not allowed; the message names what is.
    """
    now = state.stage_of(version)
    if op is Move.RETIRE or version in state.retired:
        return _plan_retire(state, op, version)
    if op is Move.STAGE or op is Move.RESTORE:
        return _plan_stage(state, op, version)
    if op is Move.ARCHIVE:
        if now is Stage.PRODUCTION:
            raise StageError(
                f"Version {version} is in production, and there must always be one; "
                "promote another version or roll back, and it is archived by itself."
            )
        return None if now is Stage.ARCHIVED else ""
    if now is Stage.PRODUCTION:
        return None
    if op is Move.PROMOTE and now is Stage.ARCHIVED:
        raise StageError(
            f"Version {version} is archived and has never been in production, so it cannot be "
            f"promoted; restore_version({version!r}) puts it back into staging first."
        )
    if op is Move.ROLLBACK and version not in state.served:
        raise StageError(
            f"Version {version} has never been in production, so there is nothing to roll back "
            "to; promote it instead."
        )
    return state.production or ""


def under_its_name(state: State, op: Move, version: str) -> Move:
    """Return the move to journal: promoting what has once been in production is a rollback."""
    was_there = version in state.served and state.stage_of(version) is Stage.ARCHIVED
    return Move.ROLLBACK if op is Move.PROMOTE and was_there else op


def require_production(state: State, version: str) -> None:
    """Raise `StageError` unless `version`, if it is given, is the one in production."""
    if version and state.production != version:
        raise StageError(
            f"Version {version} is not in production any more, {state.production or 'none'} is; "
            "nothing was moved."
        )


def rollback_target(state: State) -> str:
    """Return the version that a rollback without a target goes to."""
    if state.previous is None:
        raise StageError(
            "There is no earlier production version to roll back to; "
            "promote two versions to production first, or name one with to=."
        )
    return state.previous


def adoptions(drifts: Sequence[Drift], state: State) -> list[tuple[Move, str]]:
    """Return the moves that accept what MLflow displays."""
    wanted: list[tuple[Move, str]] = []
    for drift in drifts:
        if drift.alias == "production" and drift.mlflow:
            wanted.append((Move.ADOPT, drift.mlflow))
        if drift.alias == "staging" and drift.mlflow:
            archived = state.stage_of(drift.mlflow) is Stage.ARCHIVED
            wanted.append((Move.RESTORE if archived else Move.STAGE, drift.mlflow))
        if drift.alias == "staging" and drift.journal and not drift.mlflow:
            wanted.append((Move.ARCHIVE, drift.journal))
    return wanted


def _plan_stage(state: State, op: Move, version: str) -> str | None:
    now = state.stage_of(version)
    if now is Stage.STAGING:
        return None
    if now is Stage.PRODUCTION:
        raise StageError(
            f"Version {version} is in production and cannot go back to staging; "
            "promote another version or roll back."
        )
    if op is Move.STAGE and now is Stage.ARCHIVED:
        raise StageError(
            f"Version {version} is archived and cannot go to staging; "
            f"restore_version({version!r}) is the way back."
        )
    if op is Move.RESTORE and now is Stage.NONE:
        raise StageError(
            f"Version {version} is not archived, so there is nothing to restore; "
            "promote_to_staging is the way into staging."
        )
    return state.staging or ""


def _plan_retire(state: State, op: Move, version: str) -> str | None:
    if version in state.retired:
        if op is Move.RETIRE:
            return None
        raise StageError(f"Version {version} was removed for good; use another version.")
    if version in state.served | {state.staging}:
        raise StageError(
            f"Version {version} is in staging, or has been in production, so it is kept; "
            "only other versions can be removed."
        )
    return ""


def _archive(state: State, version: str | None, *, unless: str | None = None) -> State:
    if version is None or version == unless:
        return state
    return replace(state, archived=state.archived | {version})


def _ranges(versions: Iterable[str]) -> str:
    numbers = sorted(int(version) for version in versions)
    if not numbers:
        return ""
    breaks = [(a, b) for a, b in pairwise(numbers) if b != a + 1]
    firsts, lasts = [numbers[0], *(b for _, b in breaks)], [*(a for a, _ in breaks), numbers[-1]]
    spans = zip(firsts, lasts, strict=True)
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in spans)


def _lease(text: str) -> Lease:
    epoch, _, owner = text.partition(" ")
    return Lease(int(epoch), owner)


def _versions(text: str) -> frozenset[str]:
    versions: set[str] = set()
    for span in filter(None, text.split(",")):
        first, _, last = span.partition("-")
        versions.update(str(n) for n in range(int(first), int(last or first) + 1))
    return frozenset(versions)
