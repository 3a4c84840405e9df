# SPDX-License-Identifier: Apache-2.0
"""`create_trigger_api` makes the REST API and the status page.

Flask is imported when an app is made, not with this file, since `import fl_app` reads it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from fl_app.api.guard import LOOPBACK, Guard, RateLimit
from fl_app.retraining.manager import RetrainingManager
from fl_app.retraining.probation.probation import Probation
from fl_registry.errors import require

if TYPE_CHECKING:
    from flask import Flask
    from prometheus_client.registry import Collector

    from fl_app.strategy.checkpoints.folder import Backlog
    from fl_registry import ModelStore


def create_trigger_api(
    manager: RetrainingManager,
    *,
    store: ModelStore | None = None,
    token: str | None = None,
    allowed_hosts: Collection[str] = LOOPBACK,
    posts_per_second: float = 100.0,
    posts_at_once: float = 1000.0,
    registry_calls_at_once: int = 4,
    collectors: Iterable[Collector] = (),
    probation: Probation | None = None,
    waiting: Callable[[], Backlog] | None = None,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> Flask:
    """Make the REST API of a monitor.

    ``POST /trigger_retrain``, ``GET /trigger_history`` and ``GET /metrics``, with ``/health``,
    ``/status`` and ``/openapi.json``, which describes them all. Run it with ``serve_api``; Flask's
    own ``app.run()`` works too, but accepts open addresses and has no limits for slow clients.

    Parameters
    ----------
    manager : RetrainingManager
        The monitor that requests go to. They are on disk, if its store is, when they are answered.
    store : ModelStore | None
        The registry; adds ``/versions``, ``/versions/<version>/promote``, ``/approve`` and
        ``/reject``, ``/rollback`` and ``/production_metrics``.
    token : str | None
        What ``Authorization: Bearer`` must hold on all routes but ``/health``; at least 16
        characters.
    allowed_hosts : Collection[str]
        Names, without port, that clients may call the server by; others are rejected, so that a
        web page cannot reach it under a name of its own. ``"*"`` allows any, with a token.
    posts_per_second, posts_at_once : float
        How many requests a client may make that change something; more get a 429.
    registry_calls_at_once : int
        Calls to the registry at the same time; more get a 503, so that a slow MLflow does not hold
        all threads of the server.
    collectors : Iterable[Collector]
        Whose numbers ``/metrics`` adds for Prometheus, for instance ``PrometheusMetrics``.
    probation : Probation | None
        What ``/production_metrics`` reports to; with ``store``, by default one with default
        settings.
    waiting : Callable[[], Backlog] | None
        Counts closed rounds that wait for MLflow; adds ``backlog`` to ``/health``.
    now : Callable[[], datetime]
        The wall clock, for the time that the page was read.

    Returns
    -------
    Flask
        The app.

    Raises
    ------
    MissingExtra
        If the extra ``server`` is not installed.
    ValueError
        If the token is short, or any host is allowed without one.
    """
    require("The API", "flask", "prometheus_client")
    from fl_app.api.endpoint import Context
    from fl_app.api.flask_app import flask_app
    from fl_app.api.monitor import all_metrics

    guard = Guard(token, allowed_hosts, RateLimit(posts_per_second, posts_at_once))
    if store is not None and probation is None:
        probation = Probation(store, manager)
    context = Context(
        manager=manager,
        guard=guard,
        metrics=all_metrics(manager, collectors),
        store=store,
        slots=threading.BoundedSemaphore(registry_calls_at_once),
        probation=probation,
        backlog=waiting,
        now=now,
    )
    return flask_app(context)
