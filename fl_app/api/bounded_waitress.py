# SPDX-License-Identifier: Apache-2.0
"""Waitress with two things it has not: an end to requests that trickle in, and errors as JSON."""

from __future__ import annotations

import json
import logging
import socket
import time
from http import HTTPStatus
from typing import Any

from waitress.adjustments import Adjustments
from waitress.channel import HTTPChannel
from waitress.server import TcpWSGIServer
from waitress.task import ErrorTask

from fl_app.api.inputs import MAX_BODY, error_answer

THREADS = 8
MAX_CONNECTIONS = 400
"""Beyond it new callers wait in the system's queue until others are cut off."""
SECONDS = 8
"""For a request to arrive whole, and for a connection to lie idle."""
MAX_HEADERS = 16 * 1024


class Channel(HTTPChannel):  # type: ignore[misc]
    """One connection, which knows when the request that is arriving began."""

    began = 0.0

    def received(self, data: bytes) -> bool:
        if self.request is None:
            self.began = time.time()
        return bool(super().received(data))


class JsonErrors(ErrorTask):  # type: ignore[misc]
    """The answer to what never reached the app: no HTTP, or too much of it."""

    DETAILS = {  # noqa: RUF012 - a constant
        400: "This is not an HTTP request that can be read.",
        413: f"The body is larger than {MAX_BODY // 1024} KiB; send a shorter one.",
        431: f"The headers are larger than {MAX_HEADERS // 1024} KiB; send shorter ones.",
        500: "Something went wrong here; the server's log tells more.",
    }

    def execute(self) -> None:
        self.request.path = ""  # waitress names it in its log where the client has gone
        code = self.request.error.code
        code = code if code in self.DETAILS else 400
        answer = error_answer(code, self.DETAILS[code])
        body = json.dumps(answer).encode()
        self.status = f"{code} {HTTPStatus(code).phrase}"
        self.response_headers.append(("Content-Type", "application/json"))
        self.set_close_on_finish()
        self.content_length = len(body)
        self.write(body)


Channel.error_task_class = JsonErrors


class BoundedServer(TcpWSGIServer):  # type: ignore[misc]
    """A server on a bound socket, with bounds on threads, connections, sizes and times."""

    channel_class = Channel

    def __init__(self, app: Any, bound: socket.socket) -> None:
        settings = Adjustments(
            sockets=[bound],
            threads=THREADS,
            connection_limit=MAX_CONNECTIONS,
            channel_timeout=SECONDS,
            cleanup_interval=1,
            max_request_header_size=MAX_HEADERS,
            max_request_body_size=MAX_BODY + MAX_BODY // 2,  # a little over: the app says no itself
            inbuf_overflow=MAX_BODY // 2,  # and the rest on disk
            asyncore_use_poll=True,  # file numbers above 1,023 are common in a training process
            clear_untrusted_proxy_headers=True,
            ident=None,
        )
        super().__init__(
            app,
            {},
            _sock=bound,
            adj=settings,
            sockinfo=(bound.family, bound.type, bound.proto, bound.getsockname()),
            bind_socket=False,
        )
        quiet = logging.Logger("fl_app.api_queue", logging.ERROR)  # a queue is no news
        self.task_dispatcher.queue_logger = quiet

    def maintenance(self, now: float) -> None:
        super().maintenance(now)
        for channel in self.active_channels.values():
            if channel.request is not None and channel.began < now - SECONDS:
                channel.will_close = True

    def serve_once(self, seconds: float) -> None:
        """Wait for something to do, that long at most, and do it."""
        self.asyncore.loop(timeout=seconds, use_poll=True, map=self._map, count=1)

    def end(self) -> None:
        """Cut all connections and end the threads.

        A thread that is late wakes the server by a file number, which must not be another file's
        by then, so it stays open for it.
        """
        self.task_dispatcher.shutdown(cancel_pending=True, timeout=2)
        if not self.task_dispatcher.threads:
            self.trigger.close()
        for channel in list(self.active_channels.values()):
            channel.handle_close()
        self.asyncore.dispatcher.close(self)
