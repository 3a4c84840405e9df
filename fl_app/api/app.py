# SPDX-License-Identifier: Apache-2.0
"""`create_trigger_api`: the REST API of the monitor as a Flask app; its routes are beside it.

Flask is imported when an app is made, not with this file.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import TYPE_CHECKING

from fl_app.api.guard import LOOPBACK, Guard, RateLimit
from fl_app.retraining.manager import RetrainingManager

if TYPE_CHECKING:
    from flask import Flask
    from prometheus_client.registry import Collector

    from fl_app.retraining.probation.probation import Probation
    from fl_app.strategy.checkpoints.backlog import Backlog
    from fl_registry import ModelStore


def create_trigger_api(
    manager: RetrainingManager,
    *,
    store: ModelStore | None = None,
    token: str | None = None,
    allowed_hosts: Collection[str] = LOOPBACK,
    posts_per_second: float = 100.0,
    posts_at_once: float = 1000.0,
    collectors: Iterable[Collector] = (),
    probation: Probation | None = None,
    waiting: Callable[[], Backlog] | None = None,
) -> Flask:
    """Make the REST API of a monitor.

    ``POST /trigger_retrain``, ``GET /trigger_history`` and ``GET /metrics``, with ``/health``,
    ``/status`` and ``/openapi.json``, which describes them all. Run it with ``serve_api``; Flask's
    own ``app.run()`` works too, but refuses no open address and has no limits for slow clients.

    Parameters
    ----------
    manager : RetrainingManager
        The mailbox that requests go to. They are on disk, if its store is, when they are answered.
    store : ModelStore | None
        The registry; adds ``/versions``, ``/versions/<version>/promote`` and ``/approve``,
        ``/rollback`` and ``/production_metrics``.
    token : str | None
        What ``Authorization: Bearer`` must name on all routes but ``/health``; at least 16
        characters.
    allowed_hosts : Collection[str]
        Names, without port, that clients may call the server by; others are refused, so that a web
        page cannot reach it under a name of its own. ``"*"`` allows any, with a token.
    posts_per_second, posts_at_once : float
        How many requests a client may make that change something; beyond it gets a 429.
    collectors : Iterable[Collector]
        Whose numbers ``/metrics`` adds where Prometheus asks, for instance ``PrometheusMetrics``.
    probation : Probation | None
        What ``/production_metrics`` tells; with ``store``, one with the settings' defaults.
    waiting : Callable[[], Backlog] | None
        Counts closed rounds that wait for MLflow; adds ``backlog`` to ``/health``.

    Raises
    ------
    ValueError
        If the token is short, or any host is allowed without one.
    """
    from fl_app.api.monitor import make_app

    limit = RateLimit(posts_per_second, posts_at_once)
    guard = Guard.of(token, allowed_hosts, limit)
    return make_app(manager, store, guard, collectors, probation=probation, waiting=waiting)
