# SPDX-License-Identifier: Apache-2.0
"""The journal of stage moves: its entries, its hash chain, the rules and the fold. Pure.

Where entries are kept (MLflow run params, a list) is the business of the stores.
"""

from __future__ import annotations

import hashlib
import json
import re
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum

from registry.errors import JournalError, StageError
from registry.records import Stage

_LIMITS = {"actor": 200, "reason": 2000}  # keeps an entry below MLflow's 6,000 characters
_CONTROL = re.compile(r"[\x00-\x1f\x7f]+")


class Move(StrEnum):
    """What an entry does."""

    STAGE = "stage"
    PROMOTE = "promote"
    ARCHIVE = "archive"
    ROLLBACK = "rollback"


@dataclass(frozen=True)
class Entry:
    """One committed move.

    Attributes
    ----------
    number : int
        Its place in the journal, from 1.
    op : Move
        What was done.
    version : str
        The version that moved.
    displaced : str
        The version that left the stage for it ("from" in the stored text); empty for none.
    actor, reason : str
        Who did it, and why.
    time : str
        When, in UTC, ISO-8601.
    previous_hash : str
        SHA-256 of the stored text of the entry before; empty for the first.
    id : str
        Unique; tells two equal moves apart.
    """

    number: int
    op: Move
    version: str
    displaced: str
    actor: str
    reason: str
    time: str
    previous_hash: str
    id: str

    def encode(self) -> str:
        """Return the text that is stored; the same entry always gives the same text."""
        fields = {("from" if k == "displaced" else k): v for k, v in asdict(self).items()}
        return json.dumps(fields, sort_keys=True, ensure_ascii=False, separators=(",", ":"))


@dataclass(frozen=True)
class State:
    """What the journal says now.

    Attributes
    ----------
    production, previous, staging : str | None
        The version in production, the one before it, and the one in staging.
    archived : frozenset[str]
        Versions that left Staging or Production, or were archived.
    served : frozenset[str]
        Versions that have been in production at some time.
    """

    production: str | None = None
    previous: str | None = None
    staging: str | None = None
    archived: frozenset[str] = frozenset()
    served: frozenset[str] = frozenset()

    def stage_of(self, version: str) -> Stage:
        """Return the stage of `version`."""
        if version == self.production:
            return Stage.PRODUCTION
        if version == self.staging:
            return Stage.STAGING
        return Stage.ARCHIVED if version in self.archived else Stage.NONE


def fold(entries: Sequence[Entry]) -> State:
    """Return the state that a journal leads to."""
    state = State()
    for entry in entries:
        state = _step(state, entry.op, entry.version)
    return state


def _step(state: State, op: Move, version: str) -> State:
    if op is Move.STAGE:
        return _archive(replace(state, staging=version), state.staging, unless=version)
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


def _archive(state: State, version: str | None, *, unless: str | None = None) -> State:
    if version is None or version == unless:
        return state
    return replace(state, archived=state.archived | {version})


def plan(state: State, op: Move, version: str) -> str | None:
    """Return the version that `version` would displace ("" for none), or None if nothing changes.

    Raises
    ------
    StageError
        The move is not allowed; the message says what is.
    """
    now = state.stage_of(version)
    if op is Move.STAGE:
        return _plan_stage(state, version, now)
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
        hint = (
            f"rollback(to={version!r}) puts it back"
            if version in state.served
            else "save the file again as a new version"
        )
        raise StageError(f"Version {version} is archived and cannot be promoted; {hint}.")
    if op is Move.ROLLBACK and version not in state.served:
        raise StageError(
            f"Version {version} has never been in production, so there is nothing to roll back "
            "to; promote it instead."
        )
    return state.production or ""


def _plan_stage(state: State, version: str, now: Stage) -> str | None:
    if now is Stage.STAGING:
        return None
    if now is Stage.PRODUCTION:
        raise StageError(
            f"Version {version} is in production and cannot go back to staging; "
            "promote another version or roll back."
        )
    if now is Stage.ARCHIVED:
        raise StageError(
            f"Version {version} is archived and cannot go to staging; "
            "save the file again as a new version."
        )
    return state.staging or ""


def rollback_target(state: State) -> str:
    """Return the version that a rollback without a target goes to."""
    if state.previous is None:
        raise StageError(
            "There is no earlier production version to roll back to; "
            "promote two versions to production first, or name one with to=."
        )
    return state.previous


def new_entry(
    texts: Sequence[str],
    op: Move,
    *,
    version: str,
    displaced: str,
    actor: str = "",
    reason: str = "",
) -> Entry:
    """Return the entry that would follow `texts`; too long a reason is cut."""
    return Entry(
        number=len(texts) + 1,
        op=op,
        version=version,
        displaced=displaced,
        actor=_clean(actor, _LIMITS["actor"]),
        reason=_clean(reason, _LIMITS["reason"]),
        time=datetime.now(UTC).isoformat(timespec="milliseconds"),
        previous_hash=_digest(texts[-1]) if texts else "",
        id=uuid.uuid4().hex,
    )


def read_chain(texts: Sequence[str]) -> tuple[Entry, ...]:
    """Decode a journal and check that each entry follows from the one before.

    Raises
    ------
    JournalError
        An entry is unreadable, out of place, or does not name the hash of the one before.
    """
    entries, previous = [], ""
    for number, text in enumerate(texts, start=1):
        entry = _decode(number, text)
        if entry.number != number or entry.previous_hash != previous:
            raise JournalError(
                f"Entry {number} of the journal does not follow from entry {number - 1}: "
                "it was changed from outside; restore the registry's database from a backup."
            )
        entries.append(entry)
        previous = _digest(text)
    return tuple(entries)


def _decode(number: int, text: str) -> Entry:
    try:
        fields = json.loads(text)
        fields["displaced"] = fields.pop("from")
        fields["op"] = Move(fields["op"])
        return Entry(**fields)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise JournalError(
            f"Entry {number} of the journal cannot be read: it was changed from outside, "
            "or a newer version of the app wrote it."
        ) from error


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _clean(text: str, limit: int) -> str:
    line = _CONTROL.sub(" ", str(text)).encode("utf-8", "replace").decode().strip()
    return line if len(line) <= limit else line[: limit - 3] + "..."
