# SPDX-License-Identifier: Apache-2.0
"""Who may ask the API: tokens, hosts, origins, methods, rates; and that the token stays secret."""

from __future__ import annotations

import logging
import socket
from typing import Any

import pytest
from flask import Request
from support.api_client import ROUTES, TOKEN, Client, refused
from werkzeug.test import EnvironBuilder

from fl_app.api import create_trigger_api, serve_api
from fl_app.api.guard import Guard, RateLimit
from fl_app.retraining import RetrainingManager
from fl_registry import InMemoryModelStore


def body_for(method: str) -> Any:
    return {} if method == "POST" else None


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


def asked(token: str = TOKEN, sender: str = "10.0.0.1", **headers: str) -> dict[str, Any]:
    """What a request of Flask's client is sent with."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return {
        "headers": {"Authorization": f"Bearer {token}", **named},
        "environ_overrides": {"REMOTE_ADDR": sender},
    }


def test_wrong_tokens_are_limited_and_the_right_one_is_accepted_all_the_same(
    manager: RetrainingManager,
) -> None:
    client = create_trigger_api(manager, token=TOKEN).test_client()
    tried = [client.get("/status", **asked("x" * 20)) for _ in range(30)]
    assert [reply.status_code for reply in tried] == [401] * 20 + [429] * 10
    assert tried[-1].headers["Retry-After"] == "1"
    assert "without the right token" in tried[-1].json["detail"]
    assert client.get("/status", **asked()).status_code == 200
    assert client.get("/health", **asked("x" * 20)).status_code == 200
    # Each address has its own limit, and all have one together.
    many = [client.get("/status", **asked("x" * 20, f"10.0.1.{n}")) for n in range(250)]
    assert [reply.status_code for reply in many].count(429) > 50
    assert many[0].status_code == 401
    assert client.get("/status", **asked(sender="10.0.1.9")).status_code == 200


def test_those_without_the_token_take_nothing_from_those_with_it(
    manager: RetrainingManager,
) -> None:
    app = create_trigger_api(manager, token=TOKEN, posts_per_second=0.5, posts_at_once=3)
    client = app.test_client()
    for _ in range(50):
        assert client.post("/trigger_retrain", json={}, **asked("y" * 20)).status_code in (401, 429)
    for _ in range(5):
        assert client.post("/page/trigger", data={"by": "x"}, **asked()).status_code in (303, 429)
    replies = [client.post("/trigger_retrain", json={}, **asked()) for _ in range(4)]
    assert [reply.status_code for reply in replies] == [202, 202, 202, 429]


def test_wrong_tokens_on_the_page_are_limited(manager: RetrainingManager) -> None:
    client = create_trigger_api(manager, token=TOKEN).test_client()
    client.get("/")
    with client.session_transaction() as session:
        form = session["form"]
    sent = {"token": "z" * 20, "form": form}
    codes = [client.post("/page/sign-in", data=sent).status_code for _ in range(25)]
    assert codes == [303] * 20 + [429] * 5
    assert client.post("/page/sign-in", data={**sent, "token": TOKEN}).status_code == 303
    assert b"Sign out" in client.get("/").data


PROXIES = ("10.0.0.7", "10.1.0.0/16")


@pytest.mark.parametrize(
    ("sender", "told", "client"),
    [
        ("192.0.2.1", "198.51.100.9", "192.0.2.1"),
        ("10.0.0.7", "198.51.100.9", "198.51.100.9"),
        ("10.0.0.7", "6.6.6.6, 198.51.100.9", "198.51.100.9"),
        ("10.0.0.7", "198.51.100.9:4711", "198.51.100.9"),
        ("10.0.0.7", "6.6.6.6, 198.51.100.9, 10.1.2.3", "198.51.100.9"),
        ("10.0.0.7", "10.1.2.3", "10.1.2.3"),
        ("10.0.0.7", "6.6.6.6, unknown", "10.0.0.7"),
        ("10.0.0.7", "", "10.0.0.7"),
        ("::ffff:10.0.0.7", "198.51.100.9", "198.51.100.9"),
        ("10.0.0.7", "[2001:db8::7]:80", "2001:db8::/64"),
        ("10.0.0.7", "2001:db8::9", "2001:db8::/64"),
        ("2001:db8::9", "198.51.100.9", "2001:db8::/64"),
    ],
)
def test_a_client_is_who_a_trusted_proxy_says(sender: str, told: str, client: str) -> None:
    guard = Guard(None, ["localhost"], RateLimit(1, 1), proxies=PROXIES)
    environ = EnvironBuilder(
        headers={"X-Forwarded-For": told}, environ_base={"REMOTE_ADDR": sender}
    ).get_environ()
    assert guard.client(Request(environ)) == client


@pytest.mark.parametrize("name", ["proxy", "10.0.0.0/33", "", "10.0.0.1/8"])
def test_a_proxy_has_an_address(manager: RetrainingManager, name: str) -> None:
    with pytest.raises(ValueError, match="is not the address of a proxy"):
        create_trigger_api(manager, trusted_proxies=[name])


def test_a_server_reads_the_proxy_s_header(manager: RetrainingManager) -> None:
    app = create_trigger_api(
        manager, token=TOKEN, posts_per_second=0.01, posts_at_once=1, trusted_proxies=["127.0.0.1"]
    )
    server = serve_api(app, port=0)
    assert server is not None
    client = Client(server.port, TOKEN)
    codes = [
        client.post("/trigger_retrain", {}, X_Forwarded_For=told).status
        for told in ("192.0.2.1", "192.0.2.1", "192.0.2.2", "192.0.2.1, 192.0.2.3")
    ]
    server.close()
    assert codes == [202, 429, 202, 202]


INNER = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
TWICE = (
    b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
    b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n",
    b"transfer-encoding:chunked\r\nCONTENT-LENGTH:5\r\n",
    b"Content-Length: 5\r\nContent-Length: 5\r\n",
    b"Content-Length: 5\r\nContent-Length: 50\r\n",
    b"Content-Length: 5, 5\r\n",
    b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n",
)


@pytest.mark.parametrize("lengths", TWICE)
@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
def test_a_request_with_two_lengths_ends_its_connection(
    api: Client, lengths: bytes, version: bytes
) -> None:
    head = b"POST /trigger_retrain HTTP/" + version + b"\r\nHost: localhost\r\n"
    head += b"Connection: keep-alive\r\n" + lengths + b"\r\n0\r\n\r\n"
    with socket.create_connection(("127.0.0.1", api.port), timeout=10) as connection:
        connection.sendall(head + INNER)
        said = b""
        while part := connection.recv(4096):
            said += part
    assert said.startswith(b"HTTP/1.")
    assert said.count(b"HTTP/1.") == 1
    assert said.split()[1] in (b"400", b"501")


def test_transfer_encoding_of_an_old_client_ends_its_connection(api: Client) -> None:
    head = b"POST /trigger_retrain HTTP/1.0\r\nHost: localhost\r\nConnection: keep-alive\r\n"
    with socket.create_connection(("127.0.0.1", api.port), timeout=10) as connection:
        connection.sendall(head + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + INNER)
        answer = b"".join(iter(lambda: connection.recv(4096), b""))  # until it is closed
    assert answer.split()[1] == b"400"
    assert answer.count(b"HTTP/1.") == 1


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
    assert "RuntimeError: secret ***" in caplog.text
    assert TOKEN not in caplog.text
    assert TOKEN not in repr(app.extensions["fl_app"])
