# SPDX-License-Identifier: Apache-2.0
"""Who may ask the API: tokens, hosts, origins, methods, rates; and that the token stays secret."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from support.api_client import ROUTES, TOKEN, Client, refused

from fl_app.api import create_trigger_api, serve_api
from fl_app.api.guard import RateLimit
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
