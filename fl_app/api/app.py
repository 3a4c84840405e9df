# SPDX-License-Identifier: Apache-2.0
"""`create_trigger_api` makes the REST API and the status page, and `serve_api` serves them.

What this needs of Flask, Waitress and pydantic is imported when it is used, not with this file,
since `import fl_app` reads it.
"""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Callable, Collection, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fl_app.retraining.manager import RetrainingManager
from fl_app.retraining.probation.probation import Probation
from fl_registry.errors import require

if TYPE_CHECKING:
    from flask import Flask
    from prometheus_client.registry import Collector

    from fl_app.api.people import People
    from fl_app.backlog import Backlog
    from fl_app.progress import SessionProgress
    from fl_registry import ModelStore


def create_trigger_api(
    manager: RetrainingManager,
    *,
    store: ModelStore | None = None,
    token: str | None = None,
    allowed_hosts: Collection[str] | None = None,
    trusted_proxies: Collection[str] = (),
    posts_per_second: float = 100.0,
    posts_at_once: float = 1000.0,
    wrong_tokens_at_once: float = 20.0,
    registry_calls_at_once: int = 4,
    collectors: Iterable[Collector] = (),
    probation: Probation | None = None,
    waiting: Callable[[], Backlog] | None = None,
    checkpoint: Callable[[Path, Path], None] | None = None,
    people: People | None = None,
    live: Callable[[], SessionProgress | None] = lambda: None,
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
        The registry; adds ``/versions``, ``/versions/<version>/promote``, ``/approve``,
        ``/reject`` and ``/weights``, ``/rollback`` and ``/production_metrics``.
    token : str | None
        What ``Authorization: Bearer`` must hold on all routes but ``/health``; at least 16
        characters.
    allowed_hosts : Collection[str] | None
        Names, without port, that clients may call the server by, by default this machine's own;
        others are rejected, so that a web page cannot reach it under a name of its own. ``"*"``
        allows any, with a token.
    trusted_proxies : Collection[str]
        Addresses or networks of proxies in front of the server. What they tell in
        ``X-Forwarded-For`` is the client that limits count for; that of others is ignored.
    posts_per_second, posts_at_once : float
        How many requests a client may make that change something; more get a 429.
    wrong_tokens_at_once : float
        How many requests without the right token a client may make, and then one a second; ten
        times as many for all clients together. More get a 429.
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
    checkpoint : Callable[[Path, Path], None] | None
        Makes a file for Ultralytics, the second path, of a version's weights, the first; adds
        ``?format=pt`` to the downloads.
    people : People | None
        People with tokens of their own, whose names the journal gets. As ``token``, they are needed
        from then on.
    live : Callable[[], SessionProgress | None]
        How far the session under way is; for the page and ``/status``.
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
        If the token is short, any host is allowed without one, a proxy is no address, or the
        monitor keeps the requests of another model than the store's.
    """
    require("The API", "flask", "prometheus_client")
    from fl_app.api.endpoint import Context
    from fl_app.api.flask_app import flask_app
    from fl_app.api.guard import LOOPBACK, Guard, RateLimit
    from fl_app.api.monitor import all_metrics
    from fl_app.api.store_watch import StoreWatch

    hosts = LOOPBACK if allowed_hosts is None else allowed_hosts
    limit = RateLimit(posts_per_second, posts_at_once)
    guard = Guard(
        token,
        hosts,
        limit,
        proxies=trusted_proxies,
        people=people,
        failures_at_once=wrong_tokens_at_once,
    )
    if store is not None:
        manager.require_model_of(store)
        probation = probation or Probation(store, manager)
    context = Context(
        manager=manager,
        guard=guard,
        metrics=all_metrics(manager, collectors),
        store=store,
        slots=threading.BoundedSemaphore(registry_calls_at_once),
        probation=probation,
        backlog=waiting,
        checkpoint=checkpoint,
        watch=None if store is None else StoreWatch(store),
        live=live,
        now=now,
    )
    return flask_app(context)


if TYPE_CHECKING:
    from flask import Flask

logger = logging.getLogger("flwr.fl_app")


class ApiServer:
    """A running API: a thread of its own, with bounds, so that training goes on undisturbed.

    Parameters
    ----------
    app : Flask
        The app.
    bound : socket.socket
        The socket to listen on.
    host : str
        What its address was called.

    Attributes
    ----------
    host : str
        The address that it listens on.
    port : int
        The port.
    """

    def __init__(self, app: Flask, bound: socket.socket, host: str) -> None:
        from fl_app.api.bounded_waitress import bounded_server

        self.host = host
        self.port: int = bound.getsockname()[1]
        self._sockets: dict[int, Any] = {}
        self._server = bounded_server(app, bound, self._sockets)
        self._stop = threading.Event()
        self._ending = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="fl-app-api", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop listening, close all connections and wait for the thread. Twice is once."""
        with self._ending:
            if not self._stop.is_set():
                self._stop.set()
                self._server.pull_trigger()
        self._thread.join(timeout=5)

    def _run(self) -> None:
        from waitress import wasyncore

        try:
            while not self._stop.is_set():
                wasyncore.loop(timeout=1.0, use_poll=True, map=self._sockets, count=1)
        finally:
            with self._ending:
                self._stop.set()
            dispatcher = self._server.task_dispatcher
            dispatcher.shutdown(cancel_pending=True, timeout=2)
            # A thread that is late wakes the server by the trigger's file number, which must not
            # be another file's by then, so that the trigger stays open for it.
            if not dispatcher.threads:
                self._server.trigger.close()
            for channel in list(self._server.active_channels.values()):
                channel.handle_close()
            wasyncore.dispatcher.close(self._server)


def serve_api(app: Flask, *, host: str = "127.0.0.1", port: int = 5001) -> ApiServer | None:
    """Serve an app of ``create_trigger_api`` in a daemon thread.

    Eight threads answer, at most 400 connections are open, and a request has 8 seconds to arrive
    and at most 64 KiB. What is beyond is rejected or waits.

    Parameters
    ----------
    app : Flask
        What ``create_trigger_api`` made.
    host : str
        The address to listen on. Others than this machine's own need the app to have a token.
    port : int
        The port; 0 takes any that is free.

    Returns
    -------
    ApiServer | None
        The server; None, with a warning, where the address is not available. Training goes on.

    Raises
    ------
    MissingExtra
        If the extra ``server`` is not installed.
    ValueError
        If others can reach the address and the app has no token, or the port is no port.
    """
    require("The API's server", "waitress")
    from fl_app.api.guard import require_token

    require_token(host, app.extensions["fl_app"].needs_token)
    if not 0 <= port <= 65535:
        raise ValueError(f"The port of the API is {port}, expected 0 to 65535.")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        bound = socket.create_server((host.strip("[]"), port), family=family)
    except OSError as error:
        logger.warning("no API: %s port %d is not available (%s)", host, port, error)
        return None
    server = ApiServer(app, bound, host)
    logger.info("API on http://%s:%d", f"[{host}]" if ":" in host else host, server.port)
    return server
