# SPDX-License-Identifier: Apache-2.0
"""All that the page shows, read once for a visit; what cannot be read is a sentence instead."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from fl_app.api.inputs import ApiError
from fl_app.api.page.chart import Chart, draw, metrics_of
from fl_app.api.page.monitor_view import Drift, Requests, drift, requests
from fl_app.api.page.registry_view import MOST_ENTRIES, Row, Stages, stages
from fl_app.retraining.degradation import DegradationRule
from fl_app.retraining.manager import RetrainingManager

if TYPE_CHECKING:
    from fl_registry.journal.entries import Entry


NOTHING = Stages()


@dataclass(frozen=True)
class Look:
    """What the registry answered: versions, newest first, and its journal, oldest first.

    ``fault`` says where the journal breaks off; then only the entries before it are there.
    """

    rows: tuple[Row, ...]
    entries: tuple[Entry, ...]
    fault: str = ""


@dataclass(frozen=True)
class Overview:
    """One visit's view.

    Attributes
    ----------
    read_at : str
        When it was read, in UTC, ISO-8601.
    registry : bool
        Whether there is a registry to show.
    problem, memory_problem : str
        Why the registry or the monitor's memory could not be read; empty where it could.
    fault : str
        Where the ledger breaks off; empty where it verifies.
    stages, chart, metrics, entries, total_entries
        What the registry holds; the newest entries first.
    watching : bool
        Whether the monitor runs in this process.
    failing : Mapping[str, str]
        What does not work at the moment though the run goes on, and why.
    requests, standing, drift
        What the monitor knows.
    probation : Mapping[str, Any] | None
        Where the version in production stands, as ``Probation.status`` tells it.
    """

    read_at: str
    registry: bool
    watching: bool
    failing: Mapping[str, str]
    problem: str = ""
    memory_problem: str = ""
    fault: str = ""
    stages: Stages = NOTHING
    chart: Chart | None = None
    metrics: tuple[str, ...] = ()
    entries: tuple[Entry, ...] = ()
    total_entries: int = 0
    requests: Requests | None = None
    standing: DegradationRule | None = None
    drift: Drift | None = None
    probation: Mapping[str, Any] | None = None


def overview(
    manager: RetrainingManager,
    look: Callable[[], Look] | None,
    metric: str = "",
    *,
    probation: Callable[[], Mapping[str, Any] | None] = lambda: None,
) -> Overview:
    """Read monitor and registry for a page.

    Parameters
    ----------
    manager : RetrainingManager
        The monitor.
    look : Callable[[], Look] | None
        Asks the registry, or raises ``ApiError``; None where there is none.
    metric : str
        What the curves show; by default, and where no version has it, what gates look at.
    probation : Callable[[], Mapping[str, Any] | None]
        Tells where the version in production stands, if that is known.
    """
    now = datetime.now(UTC).isoformat(timespec="seconds")
    page = Overview(
        now,
        registry=look is not None,
        watching=manager.monitoring,
        failing=manager.health.failing,
    )
    page = _with_monitor(page, manager)
    if look is None:
        return page
    return replace(_with_registry(page, look, metric), probation=probation())


def _with_monitor(page: Overview, manager: RetrainingManager) -> Overview:
    from sqlalchemy.exc import SQLAlchemyError

    try:
        rule, check = manager.snapshot()
        return replace(page, requests=requests(manager), standing=rule, drift=drift(check))
    except SQLAlchemyError:
        return replace(page, memory_problem="The monitor's memory does not answer; try again.")


def _with_registry(page: Overview, look: Callable[[], Look], metric: str) -> Overview:
    try:
        seen = look()
    except ApiError as error:
        return replace(page, problem=error.detail)
    metrics = metrics_of(seen.rows)
    chosen = metric if metric in metrics else next(iter(metrics), "")
    return replace(
        page,
        fault=seen.fault,
        stages=stages(seen.rows, seen.entries),
        chart=draw(seen.rows, seen.entries, chosen),
        metrics=metrics,
        entries=seen.entries[: -MOST_ENTRIES - 1 : -1],
        total_entries=len(seen.entries),
    )
