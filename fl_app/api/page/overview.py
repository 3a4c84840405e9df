# SPDX-License-Identifier: Apache-2.0
"""All that the page shows, read once for a visit; a source that fails gives a sentence instead."""

from __future__ import annotations

import threading
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from sqlalchemy.exc import SQLAlchemyError

from fl_app.api.endpoint import Context
from fl_app.api.monitor import probation_status, requests_now
from fl_app.api.page.chart import MOST_POINTS, PROMOTING, STAGING, Chart, chart_of, svg
from fl_app.api.parsing import ApiError
from fl_app.api.store_watch import UNKNOWN
from fl_app.versions.texts import Row, last_moves
from fl_registry import ModelStore, Stage, UnknownVersion
from fl_registry.journal.entries import Entry, JournalError
from fl_registry.stages import Move

MOST_REQUESTS = 30
MOST_FORMER = 10
"""Versions that are offered for a rollback."""
NEWEST, STEP = 300, 100
"""Versions that each visit reads, and how far the border moves at a time to the older ones.

The numbers of older versions never change, so that the chart reads them once.
"""
KEPT = 8
"""Views and pictures that are remembered, for the chart of a page that was sent just now."""
MARK_SECONDS = 4.0
"""Seconds for which a mark is good: many open pages ask for it."""


@dataclass(frozen=True)
class RegistryView:
    """What the registry holds.

    Attributes
    ----------
    rows : Sequence[Row]
        The newest versions, newest first; as many as are shown.
    others : Mapping[str, Row]
        Older ones that are shown, by version: those that are or were in Production or Staging.
    older : Sequence[Row]
        The versions before these as they once were, newest first; only for the chart.
    total : int
        How many versions there are, and were removed.
    entries : Sequence[Entry]
        The journal, oldest first.
    fault : str
        Where the journal was changed from outside; then only the entries before it are there.
    problem : str
        Why the registry cannot be read; empty where it can.
    key : str
        Names this reading, for the chart of the same page.
    """

    rows: Sequence[Row] = ()
    others: Mapping[str, Row] = field(default_factory=dict)
    older: Sequence[Row] = ()
    total: int = 0
    entries: Sequence[Entry] = ()
    fault: str = ""
    problem: str = ""
    key: str = field(default_factory=lambda: uuid.uuid4().hex)

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
        rows = [*self.rows, *self.older]
        return chart_of(rows, self.entries, metric, known=known, total=self.total)

    @property
    def former(self) -> list[Row]:
        """The versions that a rollback can bring back, the last one in Production first."""
        now = self.staged("Production")
        known = {**self.others, **{row["version"]: row for row in self.rows}}
        served = served_last(self.entries)
        return [known[v] for v in served if v in known and known[v] != now] if now else []

    @property
    def mark(self) -> str:
        """Changes when a version is registered or moved."""
        return _mark(self.rows[0]["version"] if self.rows else "", self.entries)


def served_last(entries: Sequence[Entry]) -> list[str]:
    """Return the versions that have been in Production, the last one there first."""
    return list(dict.fromkeys(e.version for e in reversed(entries) if e.op in PROMOTING))


def _mark(newest: str, entries: Sequence[Entry]) -> str:
    return f"{newest}-{entries[-1].number if entries else 0}"


class RegistryReader:
    """Reads the registry for the page, and remembers what was shown just now.

    A page and its chart are two requests: the second one finds the reading of the first.

    Parameters
    ----------
    context : Context
        What the routes work with.
    clock : Callable[[], float]
        Seconds that only grow.
    """

    def __init__(self, context: Context, clock: Callable[[], float] = time.monotonic) -> None:
        self._context = context
        self._clock = clock
        self._lock = threading.Lock()
        self._views: OrderedDict[str, RegistryView] = OrderedDict()
        self._drawn: OrderedDict[tuple[str, str], bytes] = OrderedDict()
        self._older: tuple[object, Sequence[Row]] = (None, ())
        self._marked: tuple[float, str] = (float("-inf"), "")

    def read(self) -> RegistryView:
        """Read the versions that are shown, and the journal."""
        view = self._read()
        self._keep(self._views, view.key, view)
        return view

    def of_page(self, key: str) -> RegistryView:
        """Return the reading that a page was made of; a new one if it was long ago."""
        return self._views.get(key) or self.read()

    def picture(self, chart: Chart, theme: str) -> bytes:
        """Draw a chart; one that is equal to one of the last few is not drawn again."""
        key = repr(chart), theme
        if key not in self._drawn:
            self._keep(self._drawn, key, svg(chart, theme))
        return self._drawn[key]

    def warm_up(self) -> None:
        """Import and read now what the first visitor would wait for: MLflow and matplotlib."""
        chart = overview(self._context, self, "")["chart"]
        if chart is not None:
            self.picture(chart, "light")

    def mark(self) -> str:
        """Return the `RegistryView.mark` of now, cheaply; empty while it is not known."""
        if self._clock() - self._marked[0] >= MARK_SECONDS:
            mark = ""
            with suppress(ApiError, JournalError), self._context.registry() as store:
                mark = _mark(store.get_latest_version() or "", store.history())
            self._marked = self._clock(), mark
        return self._marked[1]

    def _keep(self, known: OrderedDict[Any, Any], key: object, value: object) -> None:
        with self._lock:
            known[key] = value
            while len(known) > KEPT:
                known.popitem(last=False)

    def _read(self) -> RegistryView:
        try:
            with self._context.registry() as store:
                try:
                    entries = store.history()
                    with store.one_reading():
                        return self._rows(store, entries)
                except JournalError as error:
                    return RegistryView(entries=error.before, fault=str(error))
        except ApiError as error:
            return RegistryView(problem=error.detail)

    def _rows(self, store: ModelStore, entries: Sequence[Entry]) -> RegistryView:
        older: Sequence[Row] = ()
        rows: Sequence[Row] = store.list_versions(limit=NEWEST)
        if len(rows) == NEWEST:
            border = -(-int(rows[-1]["version"]) // STEP) * STEP
            older = self._before(store, border, sum(e.op == Move.RETIRE for e in entries))
            rows = [row for row in rows if int(row["version"]) >= border]
        listed = {row["version"] for row in rows}
        staging = store.get_latest_version(Stage.STAGING)
        shown = [*served_last(entries)[: MOST_FORMER + 1], *filter(None, [staging])]
        others = {}
        for version in shown:
            with suppress(UnknownVersion):  # somebody has deleted it
                if version not in listed:
                    others[version] = store.get_version(version).as_row()
        total = int(rows[0]["version"]) if older else len(rows)
        return RegistryView(rows, others, older, total, entries)

    def _before(self, store: ModelStore, border: int, removed: int) -> Sequence[Row]:
        """Return the versions before a border, read again once some were removed."""
        known, rows = self._older
        if known != (border, removed):
            rows = store.list_versions(limit=MOST_POINTS, before=border)
            self._older = (border, removed), rows
        return rows


def notices(context: Context) -> list[str]:
    """Return what people have deleted or renamed, and which sessions were set apart."""
    problems = () if context.watch is None else context.watch.problems()
    problems = tuple(each for each in problems if each != UNKNOWN)
    backlog = None if context.backlog is None else context.backlog()
    return [*problems, *filter(None, (backlog.problem,) if backlog is not None else ())]


def mark_of(context: Context, registry: str) -> str:
    """Return what changes when anything on the page does, given the registry's mark."""
    try:
        counts = context.manager.store.requests.counts()
    except SQLAlchemyError:
        return registry
    return "-".join((registry, *map(str, counts.values())))


def overview(context: Context, reader: RegistryReader, metric: str) -> dict[str, Any]:
    """Read monitor and registry into the values of the page's templates.

    Parameters
    ----------
    context : Context
        What the routes work with.
    reader : RegistryReader
        Reads the registry.
    metric : str
        What the chart shows; by default, and where no version has it, what gates look at.
    """
    manager = context.manager
    registry = reader.read() if context.store is not None else None
    values = {
        "read_at": context.now().isoformat(),
        "mark": mark_of(context, "" if registry is None else registry.mark),
        "live": context.live(),
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
