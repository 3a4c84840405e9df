# SPDX-License-Identifier: Apache-2.0
"""All that the page shows, read once for a visit; a source that fails gives a sentence instead."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from sqlalchemy.exc import SQLAlchemyError

from fl_app.api.endpoint import Context
from fl_app.api.monitor import requests_now
from fl_app.api.page.chart import chart_of, metrics_of
from fl_app.api.page.registry_view import Row, registry_values
from fl_app.api.parsing import ApiError
from fl_app.api.production import probation_status
from fl_app.api.registry_calls import RegistryCalls
from fl_app.retraining.manager import RetrainingManager
from fl_registry import JournalError

if TYPE_CHECKING:
    from fl_registry.journal.entries import Entry

MOST_REQUESTS = 30
MOST_FEATURES = 40


@dataclass(frozen=True)
class Snapshot:
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


def read_registry(registry: RegistryCalls) -> Snapshot:
    """Read all versions and the journal."""
    try:
        with registry.call() as store:
            try:  # one call for both, so that they fit each other
                entries = store.history()
                return Snapshot(store.list_all_versions(), entries)
            except JournalError as error:
                return Snapshot((), error.before, fault=str(error))
    except ApiError as error:
        return Snapshot(problem=error.detail)


def overview(context: Context, metric: str, now: datetime) -> dict[str, Any]:
    """Read monitor and registry into the values of the page's templates.

    Parameters
    ----------
    context : Context
        What the routes work with.
    metric : str
        What the chart shows; by default, and where no version has it, what gates look at.
    now : datetime
        The time, in UTC.
    """
    manager, registry = context.manager, context.registry
    snapshot = read_registry(registry) if registry.exists else Snapshot()
    return {
        "read_at": now.isoformat(timespec="seconds"),
        "monitoring": manager.monitoring,
        "failing": manager.health.failing,
        **_monitor_values(manager),
        "registry": registry.exists,
        "problem": snapshot.problem,
        "fault": snapshot.fault,
        **registry_values(snapshot.rows, snapshot.entries),
        "metrics": metrics_of(snapshot.rows),
        "chart": chart_of(snapshot.rows, snapshot.entries, metric),
        "probation": probation_status(context),
    }


def _monitor_values(manager: RetrainingManager) -> dict[str, Any]:
    values: dict[str, Any] = {
        "state": None,
        "drift": None,
        "requests": None,
        "database_problem": "",
    }
    try:
        rule, check = manager.snapshot()
        requests = {
            **requests_now(manager),
            "newest": manager.store.requests.history(MOST_REQUESTS)[::-1],
            "total": sum(manager.store.requests.counts().values()),
        }
    except SQLAlchemyError:
        return {**values, "database_problem": "The monitor's database does not answer; try again."}
    values.update(state=rule, requests=requests)
    if check is not None and check.features:
        strongest = sorted(check.features, key=lambda feature: -feature.evidence)
        values.update(drift=check, strongest=strongest[:MOST_FEATURES])
    return values
