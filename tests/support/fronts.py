# SPDX-License-Identifier: Apache-2.0
"""What stands in front of people's MLflow servers: a reverse proxy with one habit of theirs."""

from __future__ import annotations

import base64
import contextlib
import http.client
import ssl
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

FILES = "/mlflow-artifacts/artifacts/"
"""In the paths of files that go through the server; listings have no name behind it."""
HIDDEN_PATHS = ("/health", "/version")


@dataclass
class Front:
    """Passes HTTP on to an address.

    Attributes
    ----------
    address : str
        MLflow's.
    authorization : str
        What the header of each request must be; empty for anything.
    prefix : str
        What the path of each request must begin with; MLflow gets it without.
    hides_health : bool
        Whether MLflow's own health checks are answered with a 404.
    slow, seconds : int, float
        How many downloads wait, and for how long, before their first byte.
    cut : int
        How many downloads end half way, as if they were whole.
    tls : ssl.SSLContext | None
        For https.
    asked : list[str]
        What was passed on, by method and path.
    """

    address: str
    authorization: str = ""
    prefix: str = ""
    hides_health: bool = False
    slow: int = 0
    seconds: float = 0.0
    cut: int = 0
    tls: ssl.SSLContext | None = None
    asked: list[str] = field(default_factory=list)

    @contextlib.contextmanager
    def running(self) -> Iterator[str]:
        """Serve on a port of its own; yield the address, with the prefix."""
        front = self

        class Handler(_Handler):
            passes_on = front

        with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
            server.daemon_threads = True
            if self.tls is not None:
                server.socket = self.tls.wrap_socket(server.socket, server_side=True)
            thread = threading.Thread(target=server.serve_forever, daemon=True)
            thread.start()
            scheme = "https" if self.tls else "http"
            yield f"{scheme}://127.0.0.1:{server.server_port}{self.prefix}"
            server.shutdown()

    def takes(self, what: str) -> bool:
        """Return whether a download is one of those that are slow, or cut; it is counted."""
        left: int = getattr(self, what)
        setattr(self, what, max(0, left - 1))
        return left > 0


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    passes_on: Front

    def forward(self) -> None:
        front, path = self.passes_on, self.path
        size = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(size) if size else None
        if front.authorization and self.headers.get("Authorization") != front.authorization:
            return self.say(401, b"Authorization Required")
        if not path.startswith(f"{front.prefix}/"):
            return self.say(404, b"not here")
        path = path.removeprefix(front.prefix)
        if front.hides_health and path in HIDDEN_PATHS:
            return self.say(404, b"not found")
        front.asked.append(f"{self.command} {path.partition('?')[0]}")
        is_download = self.command == "GET" and FILES in path
        if is_download and front.takes("slow"):
            time.sleep(front.seconds)
        there = http.client.HTTPConnection(front.address.removeprefix("http://"), timeout=120)
        headers = {k: v for k, v in self.headers.items() if k not in ("Host", "Authorization")}
        there.request(self.command, path, body, headers)
        reply = there.getresponse()
        content = reply.read()
        there.close()
        if is_download and front.takes("cut"):
            self.send_response(reply.status)
            self.send_header("Connection", "close")
            self.end_headers()
            self.wfile.write(content[: len(content) // 2])
            self.close_connection = True
            return None
        kept = [(k, v) for k, v in reply.getheaders() if k.lower() in ("content-type", "date")]
        return self.say(reply.status, content, kept)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = forward  # noqa: N815

    def say(
        self, status: int, content: bytes, headers: list[tuple[str, str]] | None = None
    ) -> None:
        self.send_response_only(status)
        for key, value in headers or []:
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


def self_signed(path: Path) -> Path:
    """Write a key and its own certificate, for a client, into one file; return the file."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a client")])
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(now - timedelta(hours=1))
    certificate = builder.not_valid_after(now + timedelta(days=1)).sign(key, hashes.SHA256())
    pem, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    secret = key.private_bytes(pem, form, serialization.NoEncryption())
    path.write_bytes(secret + certificate.public_bytes(pem))
    return path


def basic(user: str, password: str) -> str:
    """Return the header of a user and a password."""
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()
