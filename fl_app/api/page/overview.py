# SPDX-License-Identifier: Apache-2.0
"""All that the page shows, read once for a visit; a source that fails gives a sentence instead."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from sqlalchemy.exc import SQLAlchemyError

from fl_app.api.endpoint import Context
from fl_app.api.monitor import probation_status, requests_now
from fl_app.api.page.chart import MOST_POINTS, PROMOTING, STAGING, Chart, chart_of
from fl_app.api.parsing import ApiError
from fl_app.api.store_watch import UNKNOWN
from fl_app.versions.texts import Row, last_moves
from fl_registry import Stage, UnknownVersion
from fl_registry.journal.entries import Entry, JournalError

MOST_REQUESTS = 30
MOST_FORMER = 10
"""Versions that are offered for a rollback."""


@dataclass(frozen=True)
class RegistryView:
    """What the registry holds.

    Attributes
    ----------
    rows : Sequence[Row]
        The newest versions, newest first; as many as are shown.
    others : Mapping[str, Row]
        Older ones that are shown, by version: those that are or were in Production or Staging.
    total : int
        How many versions there are, and were removed.
    entries : Sequence[Entry]
        The journal, oldest first.
    fault : str
        Where the journal was changed from outside; then only the entries before it are there.
    problem : str
        Why the registry cannot be read; empty where it can.
    """

    rows: Sequence[Row] = ()
    others: Mapping[str, Row] = field(default_factory=dict)
    total: int = 0
    entries: Sequence[Entry] = ()
    fault: str = ""
    problem: str = ""

    def staged(self, stage: str) -> Row | None:
        """The version in a stage."""
        rows = (*self.rows, *self.others.values())
        return next((row for row in rows if row["stage"] == stage), None)

    def came(self, row: Row, stage: str) -> Entry | None:
        """The entry of a version's last move to Staging or to Production, if there is one."""
        moves = STAGING if stage == "Staging" else PROMOTING
        mine = (e for e in reversed(self.entries) if e.version == row["version"] and e.op in moves)
        return next(mine, None)

    @cached_property
    def moves(self) -> Mapping[str, Entry]:
        """The entry that brought each version where it is."""
        return last_moves(self.entries)

    def chart(self, metric: str) -> Chart | None:
        """The chart of a metric."""
        known = [*self.rows, *self.others.values()]
        return chart_of(self.rows, self.entries, metric, known=known, total=self.total)

    @property
    def former(self) -> list[Row]:
        """The versions that a rollback can bring back, the last one in Production first."""
        now = self.staged("Production")
        known = {**self.others, **{row["version"]: row for row in self.rows}}
        served = served_last(self.entries)
        return [known[v] for v in served if v in known and known[v] != now] if now else []


def served_last(entries: Sequence[Entry]) -> list[str]:
    """Return the versions that have been in Production, the last one there first."""
    return list(dict.fromkeys(e.version for e in reversed(entries) if e.op in PROMOTING))


def read_registry(context: Context) -> RegistryView:
    """Read the versions that are shown, and the journal."""
    try:
        with context.registry() as store:
            try:
                entries = store.history()
                with store.one_reading():
                    rows = store.list_versions(limit=MOST_POINTS)
                    listed = {row["version"] for row in rows}
                    staging = store.get_latest_version(Stage.STAGING)
                    shown = [*served_last(entries)[: MOST_FORMER + 1], *filter(None, [staging])]
                    others = {}
                    for version in shown:
                        with suppress(UnknownVersion):  # somebody has deleted it
                            if version not in listed:
                                others[version] = store.get_version(version).as_row()
                total = int(rows[0]["version"]) if len(rows) == MOST_POINTS else len(rows)
                return RegistryView(rows, others, total, entries)
            except JournalError as error:
                return RegistryView(entries=error.before, fault=str(error))
    except ApiError as error:
        return RegistryView(problem=error.detail)


def notices(context: Context) -> list[str]:
    """Return what people have deleted or renamed, and which sessions were set apart."""
    problems = () if context.watch is None else context.watch.problems()
    problems = tuple(each for each in problems if each != UNKNOWN)
    backlog = None if context.backlog is None else context.backlog()
    return [*problems, *filter(None, (backlog.problem,) if backlog is not None else ())]


def overview(context: Context, metric: str) -> dict[str, Any]:
    """Read monitor and registry into the values of the page's templates.

    Parameters
    ----------
    context : Context
        What the routes work with.
    metric : str
        What the chart shows; by default, and where no version has it, what gates look at.
    """
    manager = context.manager
    registry = read_registry(context) if context.store is not None else None
    values = {
        "read_at": context.now().isoformat(),
        "monitor": manager,
        "registry": registry,
        "chart": None if registry is None else registry.chart(metric),
        "probation": probation_status(context),
        "notices": notices(context) if registry is not None and not registry.problem else [],
    }
    try:
        rule, drift = manager.snapshot()
        return {
            **values,
            "database_works": True,
            "rule": rule,
            "drift": drift if drift is not None and drift.features else None,
            **requests_now(manager),
            "newest_requests": manager.store.requests.history(MOST_REQUESTS)[::-1],
            "total_requests": sum(manager.store.requests.counts().values()),
        }
    except SQLAlchemyError:
        return {**values, "database_works": False, "drift": None}
