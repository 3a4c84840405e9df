# SPDX-License-Identifier: Apache-2.0
"""Weights as a download: from the API, from the page, and while others are slow to take theirs."""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from flask.testing import FlaskClient
from support.api_client import TOKEN, Client, refused

from fl_app.api import create_trigger_api, serve_api
from fl_app.retraining import RetrainingManager
from fl_registry import InMemoryModelStore
from fl_registry.errors import ArtifactError, MissingExtra
from fl_registry.files.weights import save_weights

BINARY = "application/octet-stream"


def backwards(weights: Path, target: Path) -> None:
    """Stands for what makes a checkpoint."""
    target.write_bytes(weights.read_bytes()[::-1])


@pytest.fixture
def own(manager: RetrainingManager, store: InMemoryModelStore) -> Iterator[Client]:
    app = create_trigger_api(manager, store=store, token=TOKEN, checkpoint=backwards)
    server = serve_api(app, port=0)
    assert server is not None
    yield Client(server.port, TOKEN)
    server.close()


@pytest.mark.parametrize("form", ["", "?format=safetensors", "?format=pt"])
def test_a_version_is_downloaded_as_a_file(
    own: Client, store: InMemoryModelStore, form: str
) -> None:
    got = own.get(f"/versions/2/weights{form}")
    stored = store.weights_path("2").read_bytes()
    ending = form.partition("=")[2] or "safetensors"
    assert got.status == 200
    assert got.body == (stored[::-1] if ending == "pt" else stored)
    assert got.headers["content-type"] == BINARY
    assert got.headers["content-length"] == str(len(stored))
    assert got.headers["content-disposition"] == f"attachment; filename=fl-global-model-2.{ending}"
    assert got.headers["cache-control"] == "no-store"


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/versions/9/weights", 404),
        ("/versions/x/weights", 404),
        ("/versions/2/weights?format=onnx", 400),
        ("/versions/2/weights?format=pt&format=pt", 400),
        ("/versions/2/weights?half=1", 400),
    ],
)
def test_what_is_not_there_is_refused(own: Client, path: str, status: int) -> None:
    assert refused(own.get(path), status)


def test_a_version_whose_file_has_changed_is_not_handed_out(
    own: Client, store: InMemoryModelStore
) -> None:
    path = store.weights_path("2")
    path.write_bytes(path.read_bytes()[:-4] + b"\0\0\1\0")
    for form in ("safetensors", "pt"):
        assert refused(own.get(f"/versions/2/weights?format={form}"), 409)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (MissingExtra("An export needs ultralytics; install fl-app[yolo], which brings it."), 409),
        (ArtifactError("Nothing was exported: its weights are of an unknown model."), 409),
        (None, 409),
    ],
)
def test_why_there_is_no_checkpoint_is_told(
    manager: RetrainingManager,
    store: InMemoryModelStore,
    error: Exception | None,
    status: int,
) -> None:
    def fails(weights: Path, target: Path) -> None:
        assert error is not None
        raise error

    app = create_trigger_api(manager, store=store, checkpoint=fails if error else None)
    for _ in range(2):  # the first has left nothing held
        reply = app.test_client().get("/versions/2/weights?format=pt")
        assert reply.status_code == status
        assert reply.json is not None
        assert reply.json["detail"] == (
            str(error)
            if error
            else "This server makes no checkpoints; download format=safetensors."
        )
    assert app.test_client().get("/versions/2/weights").status_code == 200


def test_one_checkpoint_is_made_at_a_time(
    manager: RetrainingManager, store: InMemoryModelStore
) -> None:
    began, go_on = threading.Event(), threading.Event()

    def slow(weights: Path, target: Path) -> None:
        began.set()
        assert go_on.wait(20)
        backwards(weights, target)

    server = serve_api(create_trigger_api(manager, store=store, checkpoint=slow), port=0)
    assert server is not None
    client = Client(server.port)
    statuses = list[int]()
    path = "/versions/2/weights?format=pt"
    first = threading.Thread(target=lambda: statuses.append(client.get(path).status))
    first.start()
    assert began.wait(20)
    busy = client.get(path)
    assert refused(busy, 503)
    assert busy.headers["retry-after"] == "2"
    assert client.get("/versions").status == 200
    go_on.set()
    first.join(20)
    assert statuses == [200]
    server.close()


def test_slow_clients_hold_up_nobody(
    manager: RetrainingManager, store: InMemoryModelStore, tmp_path: Path
) -> None:
    """More of them than the server has threads, each of a file that no socket's buffer holds."""
    save_weights({"w": np.zeros(8 << 20, np.float32)}, tmp_path / "large.safetensors")
    large = store.save_model_version(tmp_path / "large.safetensors", metrics={"accuracy": 0.5})
    server = serve_api(create_trigger_api(manager, store=store), port=0)
    assert server is not None
    request = f"GET /versions/{large}/weights HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
    with ExitStack() as stack:
        for _ in range(12):
            slow = stack.enter_context(socket.create_connection(("127.0.0.1", server.port)))
            slow.sendall(request)
            assert slow.recv(15) == b"HTTP/1.1 200 OK"
        assert Client(server.port).get("/health").status == 200
        assert Client(server.port).get("/versions").status == 200
    server.close()


def test_the_page_links_each_version_s_files(
    manager: RetrainingManager, store: InMemoryModelStore
) -> None:
    app = create_trigger_api(manager, store=store, token=TOKEN, checkpoint=backwards)
    stranger, visitor = app.test_client(), app.test_client()
    sign_in(visitor)
    links = re.findall(
        r'<a href="(/page/weights[^"]+)"\s+aria-label="([^"]+)"',
        visitor.get("/").get_data(as_text=True),
    )
    assert len(links) == 6
    assert links[0][1] == "Download version 3 as .safetensors"
    for link, name in links:
        path = link.replace("&amp;", "&")
        assert stranger.get(path).status_code == 403
        reply = visitor.get(path)
        assert reply.status_code == 200
        assert reply.headers["Content-Disposition"].endswith(name.split()[-1])
        stored = store.weights_path(name.split()[2]).read_bytes()
        assert reply.data in (stored, stored[::-1])
    bad = visitor.get("/page/weights?version=99")
    assert (bad.status_code, bad.mimetype) == (404, "text/html")


def test_the_page_has_no_links_to_what_cannot_be_made(
    manager: RetrainingManager, store: InMemoryModelStore
) -> None:
    page = create_trigger_api(manager, store=store).test_client().get("/").get_data(as_text=True)
    assert "format=safetensors" in page
    assert "format=pt" not in page


def sign_in(visitor: FlaskClient) -> None:
    found = re.search(r'name="form" value="([0-9a-f]+)"', visitor.get("/").get_data(as_text=True))
    assert found is not None
    visitor.post("/page/sign-in", data={"form": found.group(1), "token": TOKEN})
