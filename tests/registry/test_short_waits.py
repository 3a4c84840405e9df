# SPDX-License-Identifier: Apache-2.0
"""How long calls to an MLflow server in trouble take, and how often it hears them."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import requests
from mlflow.utils import request_utils

from fl_registry import FederatedLearningTracker, ModelManager, StoreUnavailable
from fl_registry.mlflow import internals, timeouts
from fl_registry.mlflow.internals import TRANSIENT_CODES
from fl_registry.patience import reply_within

pytestmark = pytest.mark.chaos

NOBODY = {"run": {"info": {"run_id": "0" * 32, "experiment_id": "1"}, "data": {}}}


class Stub(ThreadingHTTPServer):
    """Answers when it is asked whether it is there; to all else as `mode` says, and counts it."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.mode = "ok"
        self.asked: list[tuple[str, str]] = []
        self.address = f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, *_: object) -> None:
        """A client that has hung up is what these tests are about."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Stub

    def answer(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if "/experiments/search" in self.path:
            return self.say(200, {})
        self.server.asked.append((self.command, self.path.partition("?")[0].rpartition("/")[2]))
        if self.server.mode == "silent":
            time.sleep(30)
        if self.server.mode.isdigit():
            return self.say(int(self.server.mode), {"error_code": "INTERNAL_ERROR", "message": "x"})
        return self.say(200, NOBODY)

    do_GET = do_POST = answer  # noqa: N815

    def say(self, status: int, content: object) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def stub() -> Iterator[Stub]:
    with Stub() as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()


@pytest.fixture
def tracker(stub: Stub) -> Iterator[FederatedLearningTracker]:
    made = FederatedLearningTracker(stub.address)
    made.start_run(run_id="0" * 32)
    stub.asked.clear()
    with reply_within(0.5):
        yield made


@pytest.mark.parametrize("mode", ["500", "429", "503", "silent"])
def test_a_server_in_trouble_is_told_within_seconds(
    stub: Stub, tracker: FederatedLearningTracker, mode: str
) -> None:
    stub.mode = mode
    began = time.monotonic()
    with pytest.raises(StoreUnavailable, match="check that it runs"):
        tracker.log_metrics({"m": 1.0})
    assert time.monotonic() - began < 10
    assert {asked for asked in stub.asked if asked[0] == "POST"} == {("POST", "log-batch")}


def test_what_failed_a_moment_ago_fails_at_once(
    stub: Stub, tracker: FederatedLearningTracker
) -> None:
    stub.mode = "500"
    with pytest.raises(StoreUnavailable):
        tracker.log_metrics({"m": 1.0})
    tracker.connection._breaker = tracker.connection._breaker.failed(time.monotonic() + 60, 1.0)
    stub.mode = "ok"
    stub.asked.clear()
    with pytest.raises(StoreUnavailable, match="could not log metrics"):
        tracker.log_metrics({"m": 1.0})
    assert stub.asked == []


def test_it_is_used_again_once_it_answers(stub: Stub, tracker: FederatedLearningTracker) -> None:
    stub.mode = "500"
    with pytest.raises(StoreUnavailable):
        tracker.log_metrics({"m": 1.0})
    stub.mode = "ok"
    until = time.monotonic() + 10
    while not tracker.connection._breaker.allows(time.monotonic()):
        assert time.monotonic() < until
        time.sleep(0.05)
    tracker.log_metrics({"m": 1.0})
    assert tracker.connection._breaker.failures == 0


def test_a_post_whose_reply_does_not_come_is_not_sent_again_by_the_transport(
    stub: Stub, tracker: FederatedLearningTracker
) -> None:
    tracker.connection.patience = 0.0  # so that we do not repeat it either
    stub.mode = "silent"
    with pytest.raises(StoreUnavailable):
        tracker.log_metrics({"m": 1.0})
    assert stub.asked == [("POST", "log-batch")]


def test_only_writes_of_a_round_are_short_and_large_files_get_more_time(
    stub: Stub, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[float, float]] = []
    reply = requests.Response()
    reply.status_code = 200

    def send(*_: object, timeout: tuple[float, float], **__: object) -> requests.Response:
        seen.append(timeout)
        return reply

    monkeypatch.setattr(timeouts.KeepAliveAdapter, "send", send)
    api = f"{stub.address}/api/2.0/mlflow"
    file = requests.Request("PUT", stub.address, data=b"0" * 3_000_000).prepare()
    search = requests.Request("POST", f"{api}/runs/search").prepare()
    write = requests.Request("POST", f"{api}/runs/log-parameter").prepare()
    with reply_within(0.5):
        for sent in (file, write, search):
            timeouts.BriefAdapter().send(sent, timeout=120)
    for sent in (file, write):
        timeouts.BriefAdapter().send(sent, timeout=120)
    connect = timeouts.CONNECT_SECONDS
    assert seen == [(connect, 3.5), (connect, 0.5), (120, 120), (120, 123), (120, 120)]


def test_only_our_address_is_limited_and_the_environment_stays(stub: Stub) -> None:
    before = dict(os.environ)
    assert ModelManager(stub.address).client is not None
    # The settings of MLflow 3.17 are the first, those of 3.18 the others.
    for codes, raises in ((TRANSIENT_CODES, True), (TRANSIENT_CODES, False), ({408, 429}, False)):
        session = request_utils._get_request_session(7, 2, 1.0, frozenset(codes), raises, True)
        ours = session.get_adapter(f"{stub.address}/api/2.0/mlflow")
        assert isinstance(ours, timeouts.BriefAdapter)
        elsewhere = session.get_adapter("http://127.0.0.2:5000/api/2.0/mlflow")
        assert not isinstance(elsewhere, timeouts.BriefAdapter)
    changed = {key for key, value in os.environ.items() if before.get(key) != value}
    assert [key for key in changed if key.startswith("MLFLOW_HTTP")] == []


def test_what_the_environment_says_of_requests_holds(
    stub: Stub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "7")
    address = stub.address.replace("127.0.0.1", "localhost")
    assert ModelManager(address).client is not None
    session = request_utils._get_request_session(7, 2, 1.0, TRANSIENT_CODES, True, True)
    assert not isinstance(session.get_adapter(f"{address}/api"), timeouts.BriefAdapter)


def test_an_mlflow_that_makes_its_sessions_otherwise_is_reported(
    stub: Stub, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert internals.lost() == ()
    monkeypatch.setattr(request_utils, "_get_request_session", lambda *_: requests.Session())
    assert "a server that does not answer delays a round by minutes" in internals.lost()[0]
    connection = FederatedLearningTracker(stub.address.replace("127.0.0.1", "localhost")).connection
    assert connection.client is not None
    assert "makes its HTTP sessions in another way" in caplog.text
    assert connection._repeats
