# SPDX-License-Identifier: Apache-2.0
"""What the registry's tests start: an MLflow server, and a proxy that drops replies."""

from __future__ import annotations

import contextlib
import http.client
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.request import urlopen

from support.postgres_server import free_port

_STARTED = 120.0  # seconds that a server may take to answer


@contextlib.contextmanager
def mlflow_server(
    folder: Path,
    *,
    database: str = "",
    artifacts: str = "",
    is_proxy: bool = True,
    password: str = "",
) -> Iterator[str]:
    """Run `mlflow server` with one worker; yield its address.

    By default it has SQLite and a folder behind it. Without `is_proxy` its clients go to the
    `artifacts` themselves. With a `password` it is MLflow's `basic-auth`, whose user is `admin`.
    """
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    command = [
        sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port),
        "--workers", "1", "--backend-store-uri", database or f"sqlite:///{folder / 'mlflow.db'}",
        "--artifacts-destination" if is_proxy else "--default-artifact-root",
        artifacts or str(folder / "artifacts"),
        *([] if is_proxy else ["--no-serve-artifacts"]),
    ]  # fmt: skip
    own = {}
    if password:
        settings = folder / "basic_auth.ini"
        # Without the cache each request takes a second of hashing.
        settings.write_text(
            "[mlflow]\n"
            f"database_uri = sqlite:///{folder / 'auth.db'}\n"
            "default_permission = READ\n"
            "admin_username = admin\n"
            "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
            "auth_cache_ttl_seconds = 60\n"
        )
        own = {
            "MLFLOW_AUTH_CONFIG_PATH": str(settings),
            "MLFLOW_AUTH_ADMIN_PASSWORD": password,
            "MLFLOW_FLASK_SERVER_SECRET_KEY": "for this test",
        }
        command += ["--app-name", "basic-auth"]
    quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(
            command, cwd=folder, env=os.environ | quiet | own, stdout=log, stderr=log,
            start_new_session=True,
        )  # fmt: skip
    try:
        _wait(f"{address}/health", process, folder / "server.log")
        yield address
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, 15)
        process.wait(30)


@contextlib.contextmanager
def s3_server(folder: Path, bucket: str) -> Iterator[dict[str, str]]:
    """Run moto's S3 server with an empty bucket; yield the environment of those who use it."""
    import boto3

    address = f"http://127.0.0.1:{free_port()}"
    command = [sys.executable, "-m", "moto.server", "-p", address.rpartition(":")[2]]
    variables = {
        "MLFLOW_S3_ENDPOINT_URL": address,
        "AWS_ACCESS_KEY_ID": "somebody",
        "AWS_SECRET_ACCESS_KEY": "something",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    with (folder / "s3.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    try:
        _wait(f"{address}/moto-api/", process, folder / "s3.log")
        session = boto3.Session("somebody", "something", region_name="us-east-1")
        session.client("s3", endpoint_url=address).create_bucket(Bucket=bucket)
        yield variables
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, 15)
        process.wait(30)


def _wait(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + _STARTED
    while time.monotonic() < until and process.poll() is None:
        with contextlib.suppress(OSError), urlopen(address, timeout=2) as reply:
            if reply.status == 200:
                return
        time.sleep(0.3)
    raise AssertionError(f"the server did not start: {log.read_text()[-2000:]}")


class Proxy:
    """Forwards HTTP to an address; `drop` says how many replies to a path it keeps to itself."""

    def __init__(self, address: str) -> None:
        self.host = address.removeprefix("http://")
        self.drop: dict[str, int] = {}
        self.dropped: list[str] = []
        self._lock = threading.Lock()

    def drops(self, path: str) -> bool:
        with self._lock:
            for ending, left in self.drop.items():
                if left and path.split("?", maxsplit=1)[0].endswith(ending):
                    self.drop[ending] -= 1
                    self.dropped.append(ending)
                    return True
        return False

    @contextlib.contextmanager
    def running(self) -> Iterator[str]:
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def forward(self) -> None:
                size = int(self.headers.get("Content-Length") or 0)
                body = self.rfile.read(size) if size else None
                there = http.client.HTTPConnection(proxy.host, timeout=60)
                headers = {k: v for k, v in self.headers.items() if k.lower() != "host"}
                there.request(self.command, self.path, body, headers)
                reply = there.getresponse()
                content = reply.read()
                there.close()
                if self.command != "GET" and proxy.drops(self.path):
                    self.close_connection = True
                    self.connection.shutdown(socket.SHUT_RDWR)
                    return
                self.send_response(reply.status)
                for key, value in reply.getheaders():
                    if key.lower() in ("content-type", "location"):
                        self.send_header(key, value)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = forward  # noqa: N815

            def log_message(self, *_: object) -> None:
                pass

        with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
            thread = threading.Thread(target=server.serve_forever, daemon=True)
            thread.start()
            yield f"http://127.0.0.1:{server.server_port}"
            server.shutdown()
