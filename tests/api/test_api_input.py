# SPDX-License-Identifier: Apache-2.0
"""What may be asked of the API: bodies, queries and paths that are refused."""

from __future__ import annotations

import json
import socket

import pytest
from support.api_client import JSON, TOKEN, Client, refused

from fl_app.retraining import RetrainingManager

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
