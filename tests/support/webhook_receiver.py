# SPDX-License-Identifier: Apache-2.0
"""A receiver of webhooks on this machine, which answers as it is told and keeps what it got."""

from __future__ import annotations

import http.server
import json
import ssl
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

Answer = tuple[int, dict[str, str]]
OK: Answer = (204, {})


@dataclass(frozen=True)
class Delivery:
    """One request, as it came."""

    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Receiver:
    """Answers in turn with ``answers``, then with 204; ``hold`` keeps every answer back."""

    answers: list[Answer] = field(default_factory=list)
    got: list[Delivery] = field(default_factory=list)
    hold: threading.Event = field(default_factory=threading.Event)
    came: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    port: int = 0

    def url(self, host: str = "127.0.0.1", scheme: str = "http") -> str:
        return f"{scheme}://{host}:{self.port}/hook?key=1"

    @property
    def events(self) -> list[dict[str, Any]]:
        return [delivery.json for delivery in self.got]

    def told(self, kind: str, **data: object) -> list[dict[str, Any]]:
        """The data of the events of a kind that have these values."""
        found = [event["data"] for event in self.events if event["type"] == kind]
        return [each for each in found if data.items() <= each.items()]

    @property
    def ids(self) -> list[str]:
        return [delivery.headers["webhook-id"] for delivery in self.got]


@contextmanager
def receiving(
    *answers: Answer, held: bool = False, tls: ssl.SSLContext | None = None
) -> Iterator[Receiver]:
    """Run a receiver in threads."""
    receiver = Receiver(list(answers))
    if not held:
        receiver.hold.set()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _handler(receiver))
    server.daemon_threads, server.block_on_close = True, False
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    receiver.port = server.server_address[1]
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield receiver
    finally:
        receiver.hold.set()
        server.shutdown()
        server.server_close()


def _handler(receiver: Receiver) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            headers = {name.lower(): value for name, value in self.headers.items()}
            receiver.got.append(Delivery(self.path, headers, body))
            receiver.came.release()
            receiver.hold.wait(30)
            status, more = receiver.answers.pop(0) if receiver.answers else OK
            self.send_response(status)
            for name, value in {"Content-Length": "0", **more}.items():
                self.send_header(name, value)
            self.end_headers()

        do_GET = do_POST  # noqa: N815  (a redirect that is followed may turn into it)

        def log_message(self, *args: object) -> None:
            """Say nothing."""

    return Handler


def no_waiting(tries: int = 4) -> Sequence[float]:
    """Pauses that are over at once."""
    return (0.0,) * (tries - 1)
