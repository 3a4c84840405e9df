# SPDX-License-Identifier: Apache-2.0
"""What the API's tests share: a plain client, versions to move, and a server of its own process."""

from __future__ import annotations

import http.client
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fl_registry import InMemoryModelStore
from fl_registry.files.weights import save_weights

TOKEN = "canary-7f3a9c51d2e8b640"  # noqa: S105 - it guards nothing
JSON = "application/json"

ROUTES = [
    ("GET", "/health"),
    ("GET", "/status"),
    ("GET", "/metrics"),
    ("GET", "/trigger_history"),
    ("GET", "/openapi.json"),
    ("GET", "/versions"),
    ("GET", "/versions/1/weights"),
    ("POST", "/trigger_retrain"),
    ("POST", "/versions/1/promote"),
    ("POST", "/versions/1/approve"),
    ("POST", "/versions/1/reject"),
    ("POST", "/rollback"),
    ("POST", "/production_metrics"),
    ("GET", "/nowhere"),
]
"""Every route, and one that is none."""

SERVER = """
import logging, sys, time
from fl_app.api import create_trigger_api, serve_api
from fl_app.retraining import MonitorStore, RetrainingManager
manager = RetrainingManager(store=MonitorStore(sys.argv[1]))
logging.basicConfig(level=logging.INFO)
server = serve_api(create_trigger_api(manager, token=sys.argv[2] or None), port=0)
print(server.port, flush=True)
time.sleep(600)
"""


@dataclass(frozen=True)
class Reply:
    """What came back."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body, which must be JSON."""
        assert self.headers["content-type"] == JSON
        return json.loads(self.body)


@dataclass(frozen=True)
class Client:
    """Asks a server on this machine; each question is a connection of its own."""

    port: int
    token: str | None = None

    def ask(
        self, method: str, path: str, body: object = None, *, timeout: float = 20, **headers: str
    ) -> Reply:
        """Send a request; a body that is not bytes is sent as JSON."""
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        if self.token is not None:
            sent.setdefault("Authorization", f"Bearer {self.token}")
        if body is not None:
            sent.setdefault("Content-Type", JSON)
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            connection.request(method, path, data, sent)
            reply = connection.getresponse()
            found = {name.lower(): value for name, value in reply.getheaders()}
            return Reply(reply.status, found, reply.read())
        finally:
            connection.close()

    def get(self, path: str, **headers: str) -> Reply:
        """Ask a question."""
        return self.ask("GET", path, **headers)

    def post(self, path: str, body: object, **headers: str) -> Reply:
        """Ask for a change."""
        return self.ask("POST", path, body, **headers)


def refused(reply: Reply, status: int) -> bool:
    """Whether a reply is an error in the one form that errors have."""
    assert set(reply.json) == {"error", "detail"}
    assert reply.json["detail"].endswith(".")
    return reply.status == status


def versions(folder: Path, count: int = 3) -> InMemoryModelStore:
    """Return a registry with some versions."""
    store = InMemoryModelStore()
    for number in range(count):
        path = folder / f"{number}.safetensors"
        save_weights({"w": np.full(3, number, dtype=np.float32)}, path)
        store.save_model_version(path, metrics={"accuracy": number / 10})
    return store


@contextmanager
def server_process(
    folder: Path, token: str = "", *, name: str = "api"
) -> Iterator[tuple[subprocess.Popen[str], Client]]:
    """Run the API in a process of its own, to measure it or to kill it.

    Its memory is ``folder/monitor.db``, and what it says is in ``folder/<name>.log``.
    """
    command = [sys.executable, "-c", SERVER, f"sqlite:///{folder / 'monitor.db'}", token]
    with (
        (folder / f"{name}.log").open("w") as log,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True) as child,
    ):
        try:
            assert child.stdout is not None
            yield child, Client(int(child.stdout.readline()), token or None)
        finally:
            child.kill()
