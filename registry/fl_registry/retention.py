# SPDX-License-Identifier: Apache-2.0
"""Which versions may be removed, and which stay and why. Pure; `ModelStore.prune` removes them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from fl_registry.errors import RegistryError
from fl_registry.stages import State
from fl_registry.versions import ModelVersion

_NO = ("", "0", "false", "no")


@dataclass(frozen=True)
class PruneReport:
    """What a clean-up removed, or would remove.

    Attributes
    ----------
    dry_run : bool
        Whether nothing was touched.
    versions : tuple[str, ...]
        The versions that went, or would go, oldest first. Some may be left from a clean-up that
        was interrupted.
    freed : int
        Bytes of the files that are really gone; in a dry run, of those that would go.
    kept : Mapping[str, str]
        Why each of the other versions stays.
    left : Mapping[str, str]
        Versions whose files could not be removed, or are still needed, and why.
    """

    dry_run: bool
    versions: tuple[str, ...] = ()
    freed: int = 0
    kept: Mapping[str, str] = field(default_factory=dict)
    left: Mapping[str, str] = field(default_factory=dict)


def reasons_to_stay(
    records: Iterable[ModelVersion],
    state: State,
    keep: int,
    older_than: timedelta | None,
    *,
    restorable: Callable[[ModelVersion], bool],
) -> dict[str, str]:
    """Return why each version stays; the ones not in it may go.

    Parameters
    ----------
    records : Iterable[ModelVersion]
        All versions, newest first.
    state : State
        The state by the journal.
    keep : int
        How many of the newest that can be restored stay.
    older_than : timedelta | None
        Only versions older than this go.
    restorable : Callable[[ModelVersion], bool]
        Whether a version's files are there and whole; called only until there are enough.

    Raises
    ------
    RegistryError
        `keep` or `older_than` is nothing of the kind.
    """
    if isinstance(keep, bool) or not isinstance(keep, int) or keep < 0:
        raise RegistryError(f"keep is {keep!r}; expected a number of versions, 0 or more.")
    if older_than is not None and not isinstance(older_than, timedelta):
        raise RegistryError(
            f"older_than is {older_than!r}; expected a timedelta, such as timedelta(days=30)."
        )
    stay, newest = {}, 0
    now = datetime.now(UTC)
    for record in records:
        counts = newest < keep and restorable(record)
        newest += counts
        rules = {
            "in production": record.version == state.production,
            "in staging": record.version == state.staging,
            "the previous production version": record.version == state.previous,
            "has been in production": record.version in state.served,
            "has the tag keep": record.tags.get("keep", "").strip().lower() not in _NO,
            "was not saved by this app": not record.sha256,
            f"one of the newest {keep} that can be restored": counts,
            f"younger than {older_than}": older_than and now - record.created < older_than,
        }
        why = next((why for why, holds in rules.items() if holds), "")
        if why:
            stay[record.version] = why
    return stay
