# SPDX-License-Identifier: Apache-2.0
"""`serve_api`: the API in a thread of its own, with bounds, so that training goes on undisturbed.

Waitress is imported when a server is started, not with this file, since `import fl_app` reads it.
"""

from __future__ import annotations

import logging
import socket
import threading
from typing import TYPE_CHECKING, Any

from fl_app.api.guard import require_token

if TYPE_CHECKING:
    from flask import Flask

logger = logging.getLogger("flwr.fl_app")


class ApiServer:
    """A running API.

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
    ValueError
        If others can reach the address and the app has no token, or the port is no port.
    """
    guard = app.extensions.get("fl_app")
    require_token(host, guard.token if guard is not None else None)
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
