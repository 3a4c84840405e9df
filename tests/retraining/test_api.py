# SPDX-License-Identifier: Apache-2.0
"""The API over real HTTP: what it does, what it refuses, and what it remembers."""

from __future__ import annotations

import ast
import json
import logging
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from api_client import JSON, TOKEN, Client, Reply, versions

from fl_app.retraining import MonitorStore, RetrainingManager, create_trigger_api, serve_api
from fl_app.retraining.api_guard import RateLimit, read_token
from registry import InMemoryModelStore, StoreUnavailable

ROOT = Path(__file__).parents[2]
CURL = """
curl -X POST http://localhost:5001/trigger_retrain \\
  -H "Content-Type: application/json" \\
  -d '{"reason": "Manual trigger for testing"}'
curl http://localhost:5001/trigger_history
curl http://localhost:5001/metrics
"""
GUIDE_APP = """
from fl_app import RetrainingManager, create_trigger_api
retrain_mgr = RetrainingManager()
app = create_trigger_api(retrain_mgr)
if __name__ == '__main__':
    app.run(host='0.0.0.0', port=5001)
"""


@pytest.fixture
def manager(tmp_path: Path) -> RetrainingManager:
    return RetrainingManager(store=MonitorStore(f"sqlite:///{tmp_path / 'monitor.db'}"))


@pytest.fixture
def store(tmp_path: Path) -> InMemoryModelStore:
    return versions(tmp_path)


@pytest.fixture
def api(manager: RetrainingManager, store: InMemoryModelStore) -> Iterator[Client]:
    with_token = create_trigger_api(manager, store=store, token=TOKEN)
    server = serve_api(with_token, port=0)
    assert server is not None
    yield Client(server.port, TOKEN)
    server.close()


# What it does


def test_a_request_is_in_the_mailbox_when_it_is_answered(
    api: Client, manager: RetrainingManager
) -> None:
    reply = api.post("/trigger_retrain", {"reason": "new pictures"})
    request = manager.take()
    assert request is not None
    assert (reply.status, reply.json) == (
        202,
        {"status": "accepted", "request_id": request.id, "reason": "new pictures"},
    )


def test_the_second_request_joins_the_first(api: Client) -> None:
    first = api.post("/trigger_retrain", {"reason": "one"}).json
    second = api.post("/trigger_retrain", {"reason": "two"}).json
    assert second["status"] == "joined"
    assert second["request_id"] == first["request_id"]


def test_without_force_the_cooldown_holds_and_the_answer_says_so(
    api: Client, manager: RetrainingManager
) -> None:
    api.post("/trigger_retrain", {"reason": "one"})
    request = manager.take()
    assert request is not None
    with manager.running(request):
        pass
    answer = api.post("/trigger_retrain", {"reason": "two", "force": False})
    assert (answer.status, answer.json["status"]) == (202, "suppressed")
    assert "since the last retraining" in answer.json["why"]
    assert manager.take() is None
    assert api.post("/trigger_retrain", {"reason": "three"}).json["status"] == "accepted"


def test_the_history_is_newest_last_and_paged(api: Client, manager: RetrainingManager) -> None:
    for number in range(5):
        manager.manual_trigger(f"number {number}")
    whole = api.get("/trigger_history").json
    assert [entry["reason"] for entry in whole] == [f"number {n}" for n in range(5)]
    page = api.get("/trigger_history?limit=2").json
    assert page == whole[3:]
    assert api.get(f"/trigger_history?limit=2&before={page[0]['id']}").json == whole[1:3]
    assert api.get(f"/trigger_history?before={whole[0]['id']}").json == []


def test_metrics_and_status(api: Client, manager: RetrainingManager) -> None:
    manager.start_from("1", 0.9)
    manager.update_metrics(0.8, 1)
    manager.manual_trigger("one")
    assert manager.take() is not None
    manager.manual_trigger("two")
    metrics = api.get("/metrics").json
    requests = metrics.pop("requests")
    assert metrics == {
        "best_accuracy": 0.9,
        "current_accuracy": 0.8,
        "accuracy_threshold": 0.05,
        "monitoring": False,
    }
    assert {outcome: n for outcome, n in requests.items() if n} == {"running": 1, "pending": 1}
    status = api.get("/status").json
    assert not status["monitoring"]
    assert [status[name]["reason"] for name in ("running", "pending")] == ["one", "two"]
    assert api.get("/health").json == {"status": "ok"}


SCRAPERS = [
    "text/plain;version=0.0.4",
    "application/openmetrics-text; version=0.0.1,text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
    "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,"
    "text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
    "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited;"
    "q=0.6,application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,"
    "text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2",
]
OTHERS = [
    "*/*",
    "application/json, text/plain, */*",
    "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,*/*;q=0.8",
    "application/json",
    "text/plain;q=0.5, application/json",
    "",
]


@pytest.mark.parametrize("accept", SCRAPERS)
def test_prometheus_gets_text(api: Client, manager: RetrainingManager, accept: str) -> None:
    manager.start_from("1", 0.875)
    reply = api.get("/metrics", Accept=accept)
    assert reply.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert reply.headers["vary"] == "Accept"
    sample = re.compile(r'[a-z_]+(\{outcome="[a-z]+"\})? [0-9.]+')
    lines = reply.body.decode().splitlines()
    assert all(line.startswith("# ") or sample.fullmatch(line) for line in lines)
    assert "fl_app_best_accuracy 0.875" in lines
    assert 'fl_app_retrain_requests{outcome="pending"} 0' in lines


@pytest.mark.parametrize("accept", OTHERS)
def test_everybody_else_gets_json(api: Client, accept: str) -> None:
    assert "best_accuracy" in api.get("/metrics", Accept=accept).json


def test_the_format_can_be_named(api: Client) -> None:
    assert api.get("/metrics?format=prometheus").body.startswith(b"# HELP")
    assert api.get("/metrics?format=json", Accept="text/plain").json
    assert api.get("/metrics?format=xml").status == 400


def test_versions_are_listed_promoted_and_rolled_back(
    api: Client, store: InMemoryModelStore
) -> None:
    assert [row["version"] for row in api.get("/versions").json] == ["3", "2", "1"]
    assert [row["version"] for row in api.get("/versions?limit=1&before=3").json] == ["2"]
    staged = api.post("/versions/1/promote", {"to": "staging"})
    assert (staged.status, staged.json) == (200, {"version": "1", "stage": "Staging"})
    for version in "12":
        api.post(f"/versions/{version}/promote", {"by": "Ada", "note": "looked at the picture"})
    assert store.get_version("2").tags["approval"] == "approved"
    back = api.post("/rollback", {"by": "Ada", "note": "it misses ships"})
    assert back.json == {"version": "1", "stage": "Production"}
    last = store.history()[-1]
    assert (last.actor, last.reason) == ("Ada", "it misses ships")
    assert api.post("/rollback", {"to": "2"}).json["version"] == "2"


def test_only_a_version_that_waits_is_approved(api: Client, store: InMemoryModelStore) -> None:
    refused = api.post("/versions/2/approve", {"by": "Ada"})
    assert (refused.status, refused.json["error"]) == (409, "conflict")
    store.set_version_tags("2", {"approval": "superseded"})
    assert api.post("/versions/2/approve", {}).status == 409
    store.set_version_tags("3", {"approval": "pending"})
    assert api.post("/versions/3/approve", {"by": "Ada"}).status == 200
    assert store.get_latest_version("Production") == "3"
    assert store.get_version("3").tags["approval"] == "approved"


def test_errors_of_the_registry_have_a_status_of_their_own(
    api: Client, store: InMemoryModelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert api.post("/versions/99/promote", {}).status == 404
    assert api.post("/rollback", {}).status == 409

    def down() -> list[dict[str, Any]]:
        raise StoreUnavailable("MLflow at http://ada:***@host does not answer.")

    monkeypatch.setattr(store, "list_all_versions", down)
    reply = api.get("/versions")
    assert (reply.status, reply.json["error"]) == (503, "service unavailable")


def test_a_slow_registry_holds_up_nothing_else(manager: RetrainingManager, tmp_path: Path) -> None:
    go_on = threading.Event()

    class Slow(InMemoryModelStore):
        def list_all_versions(self) -> list[dict[str, Any]]:
            go_on.wait(20)
            return []

    server = serve_api(create_trigger_api(manager, store=Slow(tmp_path / "slow")), port=0)
    assert server is not None
    client = Client(server.port)
    with ThreadPoolExecutor(12) as pool:
        asked = [pool.submit(client.get, "/versions") for _ in range(12)]
        began = time.monotonic()
        time.sleep(0.3)
        assert client.post("/trigger_retrain", {"reason": "now"}).status == 202
        assert time.monotonic() - began < 5
        go_on.set()
        statuses = sorted(reply.result().status for reply in asked)
    server.close()
    assert statuses == [200] * 4 + [503] * 8


def test_an_app_without_a_registry_has_and_describes_only_the_monitor() -> None:
    client = create_trigger_api(RetrainingManager()).test_client()
    described = client.get("/openapi.json", headers={"Host": "localhost"}).get_json()
    assert "/trigger_retrain" in described["paths"]
    assert "/openapi.json" in described["paths"]
    assert "/rollback" not in described["paths"]
    assert "security" not in described
    assert client.get("/versions", headers={"Host": "localhost"}).status_code == 404


def test_the_description_has_every_route_and_no_other(store: InMemoryModelStore) -> None:
    app = create_trigger_api(RetrainingManager(), store=store)
    described = app.test_client().get("/openapi.json").get_json()["paths"]
    routes = {
        (re.sub("<(.*?)>", r"{\1}", rule.rule), method.lower())
        for rule in app.url_map.iter_rules()
        for method in (rule.methods or set()) - {"HEAD"}
    }
    assert routes == {(path, method) for path, methods in described.items() for method in methods}


# Who may ask

ROUTES = [
    ("GET", "/health"),
    ("GET", "/status"),
    ("GET", "/metrics"),
    ("GET", "/trigger_history"),
    ("GET", "/openapi.json"),
    ("GET", "/versions"),
    ("POST", "/trigger_retrain"),
    ("POST", "/versions/1/promote"),
    ("POST", "/versions/1/approve"),
    ("POST", "/rollback"),
    ("GET", "/nowhere"),
]


def body_for(method: str) -> Any:
    return {} if method == "POST" else None


def refused(reply: Reply, status: int) -> bool:
    """Whether a reply is an error in the one form that errors have."""
    assert set(reply.json) == {"error", "detail"}
    assert reply.json["detail"].endswith(".")
    return reply.status == status


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_every_route_has_its_guards(
    api: Client, manager: RetrainingManager, method: str, path: str
) -> None:
    body = body_for(method)
    nobody = Client(api.port)
    if path != "/health":
        reply = nobody.ask(method, path, body)
        assert refused(reply, 401)
        assert reply.headers["www-authenticate"] == "Bearer"
        for wrong in ("Bearer x", f"Bearer {TOKEN}x", f"Basic {TOKEN}", "Bearer", "Bearer \xe4"):
            assert refused(nobody.ask(method, path, body, Authorization=wrong), 401)
    for host in ("evil.example", "localhost.evil.example", "127.0.0.1@evil.example", "", "::1"):
        assert refused(api.ask(method, path, body, Host=host), 403)
    for origin in ("http://evil.example", "null", f"http://localhost:{api.port + 1}"):
        assert refused(api.ask(method, path, body, Origin=origin), 403)
    if method == "POST":
        for kind in ("text/plain", "application/x-www-form-urlencoded", "", "application/jsonx"):
            assert refused(api.ask(method, path, b"{}", Content_Type=kind), 415)
        assert refused(api.ask(method, path, b"{}", Content_Encoding="gzip"), 415)
        assert refused(api.ask(method, path), 415)
    assert manager.trigger_history == []


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:5001", "127.0.0.1", "[::1]:80"])
def test_this_machine_s_own_names_are_allowed(api: Client, host: str) -> None:
    assert api.get("/status", Host=host, Origin=f"http://{host}").status == 200


@pytest.mark.parametrize(("method", "path"), ROUTES[:-1])
def test_other_methods_are_told_which_are_allowed(api: Client, method: str, path: str) -> None:
    others = {"GET", "POST", "PUT", "PATCH", "DELETE", "TRACE", "OPTIONS", "BREW"} - {method}
    for other in sorted(others):
        reply = api.ask(other, path)
        assert refused(reply, 405)
        assert method in reply.headers["allow"]


def test_a_host_by_another_name_has_to_be_named(manager: RetrainingManager) -> None:
    app = create_trigger_api(manager, token=TOKEN, allowed_hosts=["fl-server"])
    client, sent = app.test_client(), {"Authorization": f"Bearer {TOKEN}"}
    assert client.get("/status", headers={**sent, "Host": "FL-server:5001"}).status_code == 200
    assert client.get("/status", headers={**sent, "Host": "localhost"}).status_code == 403


def test_any_host_needs_a_token(manager: RetrainingManager) -> None:
    with pytest.raises(ValueError, match="any web page"):
        create_trigger_api(manager, allowed_hosts=["*"])
    assert create_trigger_api(manager, allowed_hosts=["*"], token=TOKEN)


@pytest.mark.parametrize("token", ["", "short", "a" * 15, "a b" * 20, "ä" * 20, "a" * 20 + "\n"])
def test_a_token_that_can_be_guessed_or_not_be_sent_is_refused(
    manager: RetrainingManager, token: str
) -> None:
    with pytest.raises(ValueError, match="16 to 512") as caught:
        create_trigger_api(manager, token=token)
    assert not token or token not in str(caught.value)


def test_too_many_requests_are_told_when_to_come_back(manager: RetrainingManager) -> None:
    client = create_trigger_api(manager, posts_per_second=0.5, posts_at_once=3).test_client()
    replies = [client.post("/trigger_retrain", json={}) for _ in range(5)]
    assert [reply.status_code for reply in replies] == [202, 202, 202, 429, 429]
    assert replies[-1].headers["Retry-After"] == "2"
    assert len(manager.trigger_history) == 3
    assert client.get("/status").status_code == 200


def test_a_bucket_fills_again_each_client_has_one_and_their_number_has_an_end() -> None:
    now = [0.0]
    limit = RateLimit(2, 4, clock=lambda: now[0])
    assert [limit.wait("a") > 0 for _ in range(5)] == [False] * 4 + [True]
    assert limit.wait("b") == 0
    now[0] += 0.5
    assert [limit.wait("a") > 0 for _ in range(2)] == [False, True]
    for number in range(2 * RateLimit.MOST_CLIENTS):
        limit.wait(str(number))
    assert len(limit._clients) == RateLimit.MOST_CLIENTS


def test_the_token_is_in_no_answer_and_no_log(
    manager: RetrainingManager, store: InMemoryModelStore, caplog: pytest.LogCaptureFixture
) -> None:
    def fails() -> None:
        raise RuntimeError(f"secret {TOKEN}")

    app = create_trigger_api(manager, store=store, token=TOKEN)
    app.add_url_rule("/fails", "fails", fails)
    server = serve_api(app, port=0)
    assert server is not None
    seen = []
    with caplog.at_level(logging.DEBUG):
        for client in (Client(server.port), Client(server.port, TOKEN)):
            for method, path in ROUTES:
                for wrong in ({}, {"Host": "x"}, {"Authorization": f"Basic {TOKEN}"}):
                    seen.append(client.ask(method, path, body_for(method), **wrong))
        failed = Client(server.port, TOKEN).get("/fails")
    server.close()
    assert refused(failed, 500)
    told = b"".join(reply.body + repr(reply.headers).encode() for reply in (*seen, failed))
    assert TOKEN.encode() not in told
    ours = [r for r in caplog.records if r.exc_info is None or "/fails" not in str(r.exc_info)]
    assert not [r.getMessage() for r in ours if TOKEN in r.getMessage()]
    assert TOKEN not in repr(app.extensions["fl_app"])


# What is asked

BAD_BODIES = [
    b"",
    b"{",
    b"null",
    b"[1]",
    b'"text"',
    b"1",
    b"NaN",
    b'{"reason": NaN}',
    b'{"reason": Infinity}',
    b'{"reason": 1e999}',
    b'{"reason": ' + b"9" * 6000 + b"}",
    b'{"reason": null}',
    b'{"reason": ["x"]}',
    b'{"reason": "a", "reason": "b"}',
    b'{"reason": {"a": 1, "a": 2}}',
    b'{"reason": "\\ud800"}',
    b'{"\\ud800": 1}',
    b'{"reason": "\xff"}',
    b'\xef\xbb\xbf{"reason": "x"}',
    b'{"reason": "x"} x',
    b"{'reason': 'x'}",
    b'{"force": 1}',
    b'{"force": "true"}',
    b'{"unknown": 1}',
    b"[" * 20_000 + b"]" * 20_000,
    b'{"a":' * 10_000 + b"1" + b"}" * 10_000,
    b'{"reason": "' + b"[" * 60_000,
    b'{"reason": "' + b"x" * 501 + b'"}',
    b'{"reason": "' + b"x" * 60_000 + b'"}',
    json.dumps({"x" * 300: "y"}).encode(),
]


@pytest.mark.parametrize("body", BAD_BODIES, ids=lambda body: repr(body[:24]))
def test_a_body_that_could_mean_something_else_is_refused(
    api: Client, manager: RetrainingManager, body: bytes
) -> None:
    reply = api.post("/trigger_retrain", body)
    assert refused(reply, 400)
    assert len(reply.body) < 400
    assert manager.trigger_history == []


def test_brackets_in_a_text_are_no_nesting(api: Client) -> None:
    assert api.post("/trigger_retrain", {"reason": '{[{[{["\\"[[[[{{{{' * 20}).status == 202


@pytest.mark.parametrize("size", [64 * 1024 + 1, 90_000, 500_000])
def test_a_body_over_64_kib_is_too_large(api: Client, size: int) -> None:
    text = b'{"reason": "' + b" " * (size - 14) + b'"}'
    try:
        assert refused(api.post("/trigger_retrain", text), 413)
    except (BrokenPipeError, ConnectionResetError):
        assert size > 96 * 1024  # it need not be read to its end
    chunks = (text[n : n + 30_000] for n in range(0, len(text), 30_000))
    connection = socket.create_connection(("127.0.0.1", api.port), timeout=5)
    head = f"POST /trigger_retrain HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\n"
    with connection:
        connection.sendall(
            f"{head}Content-Type: {JSON}\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
        )
        try:
            for chunk in chunks:
                connection.sendall(b"%x\r\n%s\r\n" % (len(chunk), chunk))
            connection.sendall(b"0\r\n\r\n")
            assert b" 413 " in connection.recv(100)
        except (BrokenPipeError, ConnectionResetError):
            assert size > 96 * 1024


def test_control_characters_are_kept_as_escapes(api: Client, manager: RetrainingManager) -> None:
    reason = "a\r\nSet-Cookie: x=1\n2026 ERROR forged\x00\x1b[31m \u202egnp.exe \u2028 ünï 🚢"
    reply = api.post("/trigger_retrain", {"reason": reason})
    kept = manager.trigger_history[0]["reason"]
    assert kept == reply.json["reason"]
    assert kept == (
        r"a\r\nSet-Cookie: x=1\n2026 ERROR forged\x00\x1b[31m \u202egnp.exe \u2028 ünï 🚢"
    )


@pytest.mark.parametrize(
    "path",
    [
        "/trigger_history?limit=0",
        "/trigger_history?limit=1001",
        "/trigger_history?limit=-1",
        "/trigger_history?limit=1.5",
        "/trigger_history?limit=%D9%A3",
        "/trigger_history?limit=1&limit=2",
        "/trigger_history?before=",
        "/trigger_history?before=x'--",
        "/trigger_history?limt=1",
        "/metrics?format=",
        "/status?x=1",
    ],
)
def test_a_query_without_sense_is_refused(api: Client, path: str) -> None:
    assert refused(api.get(path), 400)


@pytest.mark.parametrize("version", ["0", "-1", "01", "1e3", "x", "..%2f..", "9" * 10, "%D9%A3"])
def test_what_is_no_version_is_not_found(api: Client, version: str) -> None:
    assert refused(api.post(f"/versions/{version}/promote", {}), 404)


def test_paths_do_not_lead_anywhere_else(api: Client) -> None:
    for path in ("/health/", "/../health", "/%2e%2e/health", "/health%00"):
        assert refused(api.get(path), 404)


# Idempotency-Key


def test_the_same_key_gets_the_same_answer_and_one_request(
    api: Client, manager: RetrainingManager
) -> None:
    first = api.post("/trigger_retrain", {"reason": "x", "force": True}, Idempotency_Key='"a-1"')
    again = api.post("/trigger_retrain", b'{"force":true,"reason":"x"}', Idempotency_Key="a-1")
    assert (again.status, again.json) == (202, first.json)
    assert again.headers["idempotency-replayed"] == "true"
    assert len(manager.trigger_history) == 1
    other = api.post("/trigger_retrain", {"reason": "x", "force": True}, Idempotency_Key="a-2")
    assert other.json["status"] == "joined"


def test_the_same_key_for_something_else_is_refused(api: Client) -> None:
    api.post("/trigger_retrain", {"reason": "x"}, Idempotency_Key="a")
    assert refused(api.post("/trigger_retrain", {"reason": "y"}, Idempotency_Key="a"), 422)
    assert refused(api.post("/rollback", {}, Idempotency_Key="a"), 422)


@pytest.mark.parametrize("key", ["", '"', '"a', "a b", "a" * 256, "ä"])
def test_a_key_without_sense_is_refused(api: Client, manager: RetrainingManager, key: str) -> None:
    assert refused(api.post("/trigger_retrain", {}, Idempotency_Key=key), 400)
    assert manager.trigger_history == []


def test_a_rollback_that_is_sent_twice_goes_back_once(
    api: Client, store: InMemoryModelStore
) -> None:
    for version in "12":
        store.promote_to_production(version)
    answers = [api.post("/rollback", {}, Idempotency_Key="back").json for _ in range(3)]
    assert answers == [{"version": "1", "stage": "Production"}] * 3
    assert store.get_latest_version("Production") == "1"


def test_a_refusal_is_kept_too_and_an_outage_is_not(
    api: Client, store: InMemoryModelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = api.post("/rollback", {}, Idempotency_Key="a")
    for version in "12":
        store.promote_to_production(version)
    assert first.status == api.post("/rollback", {}, Idempotency_Key="a").status == 409

    def down(*_: object, **__: object) -> str:
        raise StoreUnavailable("MLflow does not answer.")

    with monkeypatch.context() as patch:
        patch.setattr(store, "rollback", down)
        assert api.post("/rollback", {}, Idempotency_Key="b").status == 503
    assert api.post("/rollback", {}, Idempotency_Key="b").json["version"] == "1"


def test_a_key_that_is_being_worked_on_waits_for_its_answer(
    manager: RetrainingManager, tmp_path: Path
) -> None:
    began, go_on = threading.Event(), threading.Event()

    class Slow(InMemoryModelStore):
        def rollback(self, *_: Any, **__: Any) -> str:
            began.set()
            go_on.wait(20)
            return "1"

    server = serve_api(create_trigger_api(manager, store=Slow(tmp_path / "slow")), port=0)
    assert server is not None
    client = Client(server.port)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(client.post, "/rollback", {}, Idempotency_Key="a")
        assert began.wait(10)
        second = client.post("/rollback", {}, Idempotency_Key="a")
        go_on.set()
        assert first.result().status == 200
    third = client.post("/rollback", {}, Idempotency_Key="a")
    server.close()
    assert refused(second, 409)
    assert second.headers["retry-after"] == "1"
    assert third.json == first.result().json


def test_20_at_once_with_one_key_make_one_request(api: Client, manager: RetrainingManager) -> None:
    with ThreadPoolExecutor(20) as pool:
        replies = list(
            pool.map(
                lambda _: api.post("/trigger_retrain", {"reason": "x"}, Idempotency_Key="one"),
                range(20),
            )
        )
    (entry,) = manager.trigger_history
    assert {reply.status for reply in replies} <= {202, 409}
    assert {r.json["request_id"] for r in replies if r.status == 202} == {entry["id"]}


def orphan(manager: RetrainingManager, api: Client, path: str) -> str:
    """Claim a key as a process that is gone, for ``{}`` sent to a path."""
    import hashlib

    digest = hashlib.sha256(f"{path}\n{{}}".encode()).hexdigest()
    claim = manager.store.claim_key("k", digest, owner="gone", now=datetime.now(UTC))
    return claim.id


def test_what_a_crash_cut_short_before_the_answer_is_done_once(
    api: Client, manager: RetrainingManager
) -> None:
    new_id = orphan(manager, api, "/trigger_retrain")
    manager.manual_trigger("", request_id=new_id)  # written down, and then the process is gone
    request = manager.take()
    assert request is not None
    with manager.running(request):
        pass
    reply = api.post("/trigger_retrain", {}, Idempotency_Key="k")
    assert (reply.status, reply.json["request_id"]) == (202, new_id)
    assert [entry["outcome"] for entry in manager.trigger_history] == ["done"]


def test_a_rollback_that_a_crash_cut_short_is_not_guessed_at(
    api: Client, manager: RetrainingManager, store: InMemoryModelStore
) -> None:
    for version in "12":
        store.promote_to_production(version)
    orphan(manager, api, "/rollback")
    assert refused(api.post("/rollback", {}, Idempotency_Key="k"), 409)
    assert store.get_latest_version("Production") == "2"


def test_a_key_lasts_24_hours() -> None:
    store, now = MonitorStore(), datetime(2026, 3, 29, tzinfo=UTC)
    first = store.claim_key("k", "d", owner="me", now=now)
    store.answer_key("k", 202, "{}")
    late = store.claim_key("k", "d", owner="me", now=now + timedelta(hours=23, minutes=59))
    assert (late.mine, late.status, late.id) == (False, 202, first.id)
    after = store.claim_key("k", "d", owner="me", now=now + timedelta(hours=24, minutes=1))
    assert after.mine
    assert after.id != first.id


# What it stands on


def test_a_memory_that_fails_is_told_as_that(api: Client, manager: RetrainingManager) -> None:
    with manager.store._engine.begin() as connection:
        connection.exec_driver_sql("drop table requests")
    reply = api.post("/trigger_retrain", {"reason": "x"})
    assert refused(reply, 503)
    assert "requests" not in reply.json["detail"]
    assert api.get("/health").status == 200


def test_threads_on_a_memory_in_memory_do_not_undo_one_another() -> None:
    manager = RetrainingManager(min_hours_between_retrain=0)
    done = threading.Event()

    def look() -> None:
        while not done.is_set():
            assert manager.trigger_history is not None
            time.sleep(0.001)

    readers = [threading.Thread(target=look) for _ in range(4)]
    for reader in readers:
        reader.start()
    try:
        for number in range(200):
            manager.manual_trigger(f"number {number}")
    finally:
        done.set()
        for reader in readers:
            reader.join()
    assert len(manager.trigger_history) == 200


def test_a_port_that_is_taken_is_a_warning_and_no_more(
    manager: RetrainingManager, caplog: pytest.LogCaptureFixture
) -> None:
    before = threading.active_count()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert serve_api(create_trigger_api(manager), port=port) is None
    (warning,) = [r for r in caplog.records if r.levelno == logging.WARNING]
    assert str(port) in warning.getMessage()
    assert threading.active_count() == before


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "192.0.2.1", "fl-server"])  # noqa: S104
def test_an_open_address_without_a_token_is_refused(manager: RetrainingManager, host: str) -> None:
    with pytest.raises(ValueError, match="FL_APP_API_TOKEN"):
        serve_api(create_trigger_api(manager), host=host, port=0)


def test_with_a_token_it_listens_where_it_is_told(manager: RetrainingManager) -> None:
    app = create_trigger_api(manager, token=TOKEN)
    server = serve_api(app, host="0.0.0.0", port=0)  # noqa: S104 - that is the test
    assert server is not None
    assert Client(server.port, TOKEN).get("/status").status == 200
    server.close()


def test_close_frees_the_port_and_ends_the_threads(manager: RetrainingManager) -> None:
    before = threading.active_count()
    server = serve_api(create_trigger_api(manager), port=0)
    assert server is not None
    with socket.create_connection(("127.0.0.1", server.port)):
        began = time.monotonic()
        server.close()
        server.close()
        assert time.monotonic() - began < 3
    assert threading.active_count() == before
    with socket.create_server(("127.0.0.1", server.port)):
        pass


def test_the_token_comes_from_a_file_else_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FL_APP_API_TOKEN", raising=False)
    assert read_token() is None
    monkeypatch.setenv("FL_APP_API_TOKEN", f"{TOKEN}\n")
    assert read_token() == TOKEN
    path = tmp_path / "token"
    path.write_text(f"other-{TOKEN}\n")
    assert read_token(str(path)) == f"other-{TOKEN}"
    path.write_text("\n")
    for wrong in (path, tmp_path / "nowhere"):
        with pytest.raises(ValueError, match="token file"):
            read_token(str(wrong))


def test_the_server_app_opens_it_for_a_server_that_waits(
    manager: RetrainingManager, store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fl_app.config import ServerConfig
    from fl_app.server_app import api_token, start_api

    monkeypatch.delenv("FL_APP_API_TOKEN", raising=False)

    def settings(**changes: Any) -> ServerConfig:
        given = {"continuous": True, **changes}
        return ServerConfig.from_run_config({k.replace("_", "-"): v for k, v in given.items()})

    assert start_api(settings(continuous=False), manager, store, None) is None
    assert start_api(settings(api_port=0), manager, store, None) is None
    with pytest.raises(ValueError, match="without a token"):
        api_token(settings(api_host="0.0.0.0"))  # noqa: S104 - that is the test
    monkeypatch.setenv("FL_APP_API_TOKEN", TOKEN)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    config = settings(api_port=port, api_allowed_hosts="fl-server, other")
    server = start_api(config, manager, store, api_token(config))
    assert server is not None
    client = Client(port, TOKEN)
    answers = [client.get("/versions", Host=host).status for host in ("other", "fl-server", "no")]
    server.close()
    assert answers == [200, 200, 403]


# The guide


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not here")
def test_the_guide_s_own_lines(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    script = tmp_path / "app.py"
    script.write_text(GUIDE_APP.replace("5001", port))
    with subprocess.Popen(
        [sys.executable, str(script)], cwd=ROOT, env=None, stderr=subprocess.DEVNULL
    ) as child:
        try:
            deadline = time.monotonic() + 30
            while True:
                try:
                    socket.create_connection(("127.0.0.1", int(port)), timeout=1).close()
                    break
                except OSError:
                    assert time.monotonic() < deadline
                    time.sleep(0.1)
            lines = CURL.replace("5001", port).replace("curl ", "curl -sS -w '\\n' ")
            said = subprocess.run(
                ["bash", "-ec", lines], capture_output=True, text=True, check=True
            ).stdout.splitlines()
        finally:
            child.terminate()
    asked, history, metrics = (json.loads(line) for line in said)
    assert (asked["status"], asked["reason"]) == ("accepted", "Manual trigger for testing")
    assert history[0]["id"] == asked["request_id"]
    assert metrics["best_accuracy"] is None


# Rules of the house


def test_flask_and_waitress_are_the_api_s_alone_and_loaded_when_used() -> None:
    for path in sorted((ROOT / "fl_app").rglob("*.py")):
        tree = ast.parse(path.read_text())
        names = {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.module}
        names |= {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
        tops = {name.partition(".")[0] for name in names}
        if tops & {"flask", "waitress", "werkzeug"}:
            assert path.parent.name == "retraining"
            assert path.name.startswith("api")
    code = "import fl_app, fl_app.retraining, sys; print(*{'flask','waitress'} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.split() == []
