# SPDX-License-Identifier: Apache-2.0
"""What the monitor's tests do in other processes, which are forked from one that is warmed up."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import croniter  # noqa: F401 - what takes long is imported once
import filelock  # noqa: F401
import sqlalchemy  # noqa: F401

from fl_app.retraining import MonitorStore, RetrainRequest
from fl_app.retraining.requests import Outcome, TriggerKind
from support.fork_context import fork_context

DUE = datetime(2026, 1, 4, tzinfo=UTC)


def at_once(what: str, url: str, model: str, count: int) -> list[Any]:
    """Do something in several processes at the same time; return what each of them got."""
    processes = fork_context("support.monitor_children")
    barrier, results = processes.Barrier(count), processes.Queue()
    made = [
        processes.Process(target=_one, args=(what, url, model, barrier, results))
        for _ in range(count)
    ]
    for process in made:
        process.start()
    found = [results.get(timeout=60) for _ in made]
    for process in made:
        process.join(60)
    return found


def _one(what: str, url: str, model: str, barrier: Any, results: Any) -> None:
    try:
        barrier.wait(60)
        store = MonitorStore(url, model)  # the tables may be missing still
        barrier.wait(60)
        results.put(ACTIONS[what](store))
        barrier.wait(60)  # nobody is gone before all are done
    except BaseException:  # noqa: BLE001 - whatever it is, the parent tells of it
        results.put(traceback.format_exc())


def _add(store: MonitorStore) -> str:
    request = RetrainRequest(TriggerKind.MANUAL, "several ask at once")
    waiting = store.requests.add(request, Outcome.PENDING)
    return request.id if waiting is None else waiting.id


def _take(store: MonitorStore) -> str | None:
    request = store.requests.take(DUE)
    return None if request is None else request.id


def _claim(store: MonitorStore) -> bool:
    return store.note("weekly", datetime).swap(1, DUE + timedelta(days=7))


def _key(store: MonitorStore) -> tuple[str, bool]:
    owner = str(os.getpid())
    claim = store.keys.claim("a key", "digest", owner=owner, now=DUE, retake=False)
    return claim.id, claim.mine


def _state(store: MonitorStore) -> None:
    store.note("process", int).write(os.getpid())


def _count(store: MonitorStore) -> int:
    """Add ten, one by one, to what all have in common, however often others are first."""
    note = store.note("count", int)
    for _ in range(10):
        revision, count = note.read()
        while not note.swap(revision, (count or 0) + 1):
            revision, count = note.read()
    return note.read()[0]


ACTIONS: dict[str, Callable[[MonitorStore], Any]] = {
    "add": _add,
    "take": _take,
    "claim": _claim,
    "key": _key,
    "state": _state,
    "count": _count,
}
