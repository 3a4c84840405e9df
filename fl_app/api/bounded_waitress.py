# SPDX-License-Identifier: Apache-2.0
"""Waitress with bounds, a deadline for requests that trickle in, and errors as JSON."""

from __future__ import annotations

import json
import logging
import re
import socket
from http import HTTPStatus
from typing import Any

import waitress.server
from waitress.channel import HTTPChannel
from waitress.parser import HTTPRequestParser, ParsingError
from waitress.task import ErrorTask

from fl_app.api.parsing import DETAILS, MAX_BODY, MAX_HEADERS, ApiError

# Waitress reads requests in one thread and gives whole ones to the others, so that half-open
# connections hold none of them.
THREADS = 8
MAX_CONNECTIONS = 400
"""More clients wait in the system's queue until connections are closed."""
SECONDS = 8
"""For a request to arrive whole, and for a connection to be idle."""


class JsonErrors(ErrorTask):  # type: ignore[misc]
    """The answer to a request that is rejected before the app gets it."""

    def execute(self) -> None:
        self.request.path = ""  # waitress reads it for its log where the client has disconnected
        code = self.request.error.code
        error = ApiError(code if code in DETAILS else 400)
        body = json.dumps(error.answer).encode()
        self.status = f"{error.status} {HTTPStatus(error.status).phrase}"
        self.response_headers.append(("Content-Type", "application/json"))
        self.set_close_on_finish()
        self.content_length = len(body)
        self.write(body)


_LENGTH = re.compile(rb"^(?:content-length|transfer-encoding)[ \t]*:", re.I | re.M)


class OneLength(HTTPRequestParser):  # type: ignore[misc]
    """Reads requests of which the end is told once."""

    def parse_header(self, header_plus: bytes) -> None:
        # A proxy that goes by the other length takes the rest for another client's request.
        # Waitress goes on with the connection, and in HTTP/1.0 it ignores Transfer-Encoding.
        lengths = _LENGTH.findall(header_plus)
        old = header_plus.partition(b"\n")[0].rstrip().endswith(b"HTTP/1.0")
        if lengths[1:] or (old and lengths and lengths[0][:1] in b"Tt"):
            raise ParsingError("more than one length")
        super().parse_header(header_plus)


class Channel(HTTPChannel):  # type: ignore[misc]
    """One connection."""

    parser_class = OneLength
    error_task_class = JsonErrors
    last_activity: float

    def handle_read(self) -> None:
        # Waitress closes a connection after SECONDS without activity, and counts every byte as
        # activity, so that a client could send one now and then for ever. Here only the first
        # bytes of a request count.
        request, began = self.request, self.last_activity
        super().handle_read()
        if request is not None and self.request is request:
            self.last_activity = began


def bounded_server(app: Any, bound: socket.socket, sockets: dict[int, Any]) -> Any:
    """Make a Waitress server on a bound socket, with bounds on threads, connections and sizes.

    Parameters
    ----------
    app : Any
        The WSGI app.
    bound : socket.socket
        The socket.
    sockets : dict[int, Any]
        Empty; Waitress registers all its sockets in it.
    """
    server = waitress.server.create_server(
        app,
        map=sockets,
        sockets=[bound],
        threads=THREADS,
        connection_limit=MAX_CONNECTIONS,
        channel_timeout=SECONDS,
        cleanup_interval=1,
        max_request_header_size=MAX_HEADERS,
        max_request_body_size=MAX_BODY + MAX_BODY // 2,  # a little over the limit of the app
        inbuf_overflow=MAX_BODY // 2,  # the rest of a body goes to disk
        asyncore_use_poll=True,  # file numbers above 1,023 are common in a training process
        # `Guard.client` alone reads one of them, and knows of whom.
        clear_untrusted_proxy_headers=False,
        ident=None,
    )
    server.channel_class = Channel
    # Waitress warns of each request that waits for a thread, which is normal.
    server.task_dispatcher.queue_logger = logging.Logger("fl_app.api_queue", logging.ERROR)
    return server
