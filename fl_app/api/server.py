# SPDX-License-Identifier: Apache-2.0
"""`serve_api`: the API in a thread of its own, bounded so that nobody can hold up the training.

Waitress is imported when a server is started, not with this file.
"""

from __future__ import annotations

import logging
import socket
import threading
from typing import TYPE_CHECKING

from fl_app.api.guard import require_token

if TYPE_CHECKING:
    from flask import Flask

    from fl_app.api.bounded_waitress import BoundedServer

logger = logging.getLogger("flwr.fl_app")


class ApiServer:
    """A running API.

    Attributes
    ----------
    host : str
        The address it listens on.
    port : int
        The port, also where any free one was asked for.
    """

    def __init__(self, server: BoundedServer, host: str, port: int) -> None:
        self.host = host
        self.port = port
        self._server = server
        self._stop = threading.Event()
        self._ending = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="fl-app-api", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop listening, cut all connections, and wait for the thread to end. Twice is once."""
        with self._ending:
            if not self._stop.is_set():
                self._stop.set()
                self._server.pull_trigger()
        self._thread.join(timeout=5)

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                self._server.serve_once(1.0)
        finally:
            with self._ending:
                self._stop.set()
            self._server.end()


def serve_api(app: Flask, *, host: str = "127.0.0.1", port: int = 5001) -> ApiServer | None:
    """Serve an app of ``create_trigger_api`` in a daemon thread.

    Eight threads answer, at most 400 connections are held, a request has 8 seconds to arrive, and
    64 KiB. What is beyond is refused or waits.

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
        The server; None, with a warning, where the address cannot be had. Training goes on.

    Raises
    ------
    ValueError
        If others can reach the address and the app has no token.
    """
    from fl_app.api.bounded_waitress import BoundedServer

    guard = app.extensions.get("fl_app")
    require_token(host, guard.token if guard is not None else None)
    if not 0 <= port <= 65535:
        raise ValueError(f"The port of the API is {port}, expected 0 to 65535.")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        bound = socket.create_server((host.strip("[]"), port), family=family)
    except OSError as error:
        logger.warning("no API: %s port %d cannot be had (%s)", host, port, error)
        return None
    server = ApiServer(BoundedServer(app, bound), host, bound.getsockname()[1])
    logger.info("API on http://%s:%d", f"[{host}]" if ":" in host else host, server.port)
    return server
