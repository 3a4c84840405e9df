# SPDX-License-Identifier: Apache-2.0
"""All that the page shows, read once for a visit; a source that fails gives a sentence instead."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy.exc import SQLAlchemyError

from fl_app.api.endpoint import Context
from fl_app.api.monitor import probation_status, requests_now
from fl_app.api.page.chart import PROMOTING, STAGING, chart_of
from fl_app.api.parsing import ApiError
from fl_app.api.store_watch import UNKNOWN
from fl_app.api.version_texts import Row
from fl_registry.journal.entries import Entry, JournalError

MOST_REQUESTS = 30


@dataclass(frozen=True)
class RegistryView:
    """What the registry holds.

    Attributes
    ----------
    rows : Sequence[Row]
        The versions, newest first.
    entries : Sequence[Entry]
        The journal, oldest first.
    fault : str
        Where the journal was changed from outside; then only the entries before it are there.
    problem : str
        Why the registry cannot be read; empty where it can.
    """

    rows: Sequence[Row] = ()
    entries: Sequence[Entry] = ()
    fault: str = ""
    problem: str = ""

    def staged(self, stage: str) -> Row | None:
        """The version in a stage."""
        return next((row for row in self.rows if row["stage"] == stage), None)

    def came(self, row: Row, stage: str) -> Entry | None:
        """The entry of a version's last move to Staging or to Production, if there is one."""
        moves = STAGING if stage == "Staging" else PROMOTING
        mine = (e for e in reversed(self.entries) if e.version == row["version"] and e.op in moves)
        return next(mine, None)

    @property
    def former(self) -> list[Row]:
        """The versions that a rollback can bring back, the last one in Production first."""
        now = self.staged("Production")
        known = {row["version"]: row for row in self.rows if row is not now}
        served = dict.fromkeys(e.version for e in reversed(self.entries) if e.op in PROMOTING)
        return [known[version] for version in served if version in known] if now else []


def read_registry(context: Context) -> RegistryView:
    """Read all versions and the journal."""
    try:
        with context.registry() as store:
            try:  # one call for both, so that they fit each other
                entries = store.history()
                return RegistryView(store.list_all_versions(), entries)
            except JournalError as error:
                return RegistryView((), error.before, fault=str(error))
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
    rows, entries = (registry.rows, registry.entries) if registry is not None else ((), ())
    values = {
        "read_at": context.now().isoformat(),
        "monitor": manager,
        "registry": registry,
        "chart": chart_of(rows, entries, metric),
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
