# SPDX-License-Identifier: Apache-2.0
"""The gateway's configuration in a real nginx: it forwards Flower's Fleet API and nothing else."""

from __future__ import annotations

import http.client
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from flwr.superlink.routers.control.router import router as control
from flwr.superlink.routers.fleet.router import router as fleet
from support.manifests import K8S
from support.postgres_server import free_port

from fl_app.deploy.keys import Keys, make_keys

CONFIG = K8S / "base" / "server" / "nginx.conf"
NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")

needs_nginx = pytest.mark.skipif(NGINX is None, reason="nginx is not here (apt: nginx-light)")


@dataclass
class Gateway:
    """A running gateway, and the requests that it forwarded.

    Attributes
    ----------
    port : int
        Where it listens.
    client : ssl.SSLContext
        Trusts the authority.
    received : list
        Path and length of the body of each request that was forwarded.
    """

    port: int
    client: ssl.SSLContext
    received: list[tuple[str, int]] = field(default_factory=list)

    def post(self, path: str, body: bytes = b"") -> int:
        """Send a request whose path stays as it is; return the status."""
        connection = http.client.HTTPSConnection(
            "localhost", self.port, timeout=10, context=self.client
        )
        try:
            connection.request("POST", path, body, {"flwr-public-key": "k"})
            return connection.getresponse().status
        finally:
            connection.close()


def superlink(received: list[tuple[str, int]], keys: Keys) -> ThreadingHTTPServer:
    """A server behind the gateway, which accepts all requests."""

    class Behind(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            length = int(self.headers["Content-Length"])
            assert self.headers["flwr-public-key"] == "k"
            received.append((self.path, len(self.rfile.read(length))))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Behind)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(keys.certificate, keys.key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def local_config(folder: Path, keys: Keys, port: int, behind: int) -> Path:
    """The configuration with paths and ports of this machine."""
    text = CONFIG.read_text()
    here = {
        "/tmp/": f"{folder}/",  # noqa: S108 - the container's
        "/run/secrets/tls/tls.crt": str(keys.certificate),
        "/run/secrets/tls/tls.key": str(keys.key),
        "/run/secrets/ca/ca.crt": str(keys.authority),
        "listen 8443": f"listen 127.0.0.1:{port}",
        "https://superlink:8000": f"https://127.0.0.1:{behind}",
    }
    for there, place in here.items():
        assert there in text, there
        text = text.replace(there, place)
    path = folder / "nginx.conf"
    path.write_text(text)
    return path


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    folder = tmp_path_factory.mktemp("gateway")
    folder.chmod(0o755)
    keys = Keys(folder / "keys")
    make_keys(keys.folder, ["localhost", "superlink"])
    found = Gateway(free_port(), ssl.create_default_context(cafile=str(keys.authority)))
    server = superlink(found.received, keys)
    config = local_config(folder, keys, found.port, server.server_port)
    command = [str(NGINX), "-e", "stderr", "-c", str(config), "-g", "daemon off;"]
    with (folder / "nginx.log").open("w") as log:
        child = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        wait_for(found.port, child, folder / "nginx.log")
        yield found
    finally:
        child.terminate()
        child.wait(10)
        server.shutdown()
        server.server_close()


def wait_for(port: int, child: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 20
    while True:
        assert child.poll() is None, log.read_text()
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)


@needs_nginx
def test_a_model_of_any_size_is_forwarded(gateway: Gateway) -> None:
    model = b"w" * 3_000_000  # nginx itself would refuse more than one
    assert gateway.post(f"{fleet.prefix}/push-object", model) == 200
    assert gateway.received[-1] == ("/v1/fleet/push-object", len(model))


@needs_nginx
@pytest.mark.parametrize(
    "path",
    [
        f"{control.prefix}/start-run",
        "/v1/runtime/acquire-task",
        "/v1/fleet/../control/start-run",
        "/v1/fleet/%2e%2e/control/start-run",
        "/v1/fleet/..%2fcontrol/start-run",
        "/v1/fleet//../../v1/control/start-run",
        "//v1/control/start-run",
        "/v1/control/start-run?/v1/fleet/",
        "/v1/fleet",
        "/v1/fleetX/start-run",
        "/docs",
        "/openapi.json",
        "/",
    ],
)
def test_nothing_else_is_forwarded(gateway: Gateway, path: str) -> None:
    before = list(gateway.received)
    assert gateway.post(path) in (301, 404)
    assert gateway.received == before


@needs_nginx
def test_a_path_that_nginx_resolves_to_fleet_is_forwarded_as_fleet(gateway: Gateway) -> None:
    assert gateway.post("/v1/control/start-run/../../fleet/pull-messages") == 200
    assert gateway.received[-1] == ("/v1/fleet/pull-messages", 0)


@needs_nginx
def test_it_has_a_health_check(gateway: Gateway) -> None:
    assert gateway.post("/health") == 200


def test_flower_s_fleet_api_has_a_prefix_of_its_own() -> None:
    assert fleet.prefix == "/v1/fleet"
    assert all(route.path.startswith("/v1/fleet/") for route in fleet.routes)  # type: ignore[attr-defined]
    assert not control.prefix.startswith("/v1/fleet")
    assert f"location {fleet.prefix}/ {{" in CONFIG.read_text()
