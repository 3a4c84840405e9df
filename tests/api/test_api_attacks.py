# SPDX-License-Identifier: Apache-2.0
"""The API under attack, over real sockets on this machine: all bounded in number and time."""

from __future__ import annotations

import contextlib
import http.client
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import settings
from support.api_client import TOKEN, Client, server_process, versions

from fl_app.api import create_trigger_api, serve_api
from fl_app.retraining import MonitorStore, RetrainingManager

pytestmark = [pytest.mark.slow, pytest.mark.chaos]

NIGHTLY = settings().max_examples > 100
HALF = (
    b"POST /trigger_retrain HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    b"Content-Length: 1000\r\n\r\n{"
)
MEGABYTES = 1024 * 1024


def resident(pid: int) -> int:
    """Bytes of memory that a process holds."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def threads(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/task").iterdir()))


def closed(connection: socket.socket) -> bool:
    """Whether the other side has hung up."""
    connection.setblocking(False)
    try:
        return connection.recv(4096) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


def send_large_body(port: int, size: int) -> bytes:
    """Send a body of so many bytes, as far as it is taken, and return how the answer begins."""
    chunk = b"a" * MEGABYTES
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        with contextlib.suppress(OSError):
            connection.sendall(HALF[: HALF.index(b"1000")] + str(size).encode() + b"\r\n\r\n")
            for _ in range(size // MEGABYTES):
                connection.sendall(chunk)
        with contextlib.suppress(OSError):
            return connection.recv(32)
    return b""


def test_half_open_trickling_and_very_large_requests_hold_up_nobody(tmp_path: Path) -> None:
    with server_process(tmp_path) as (child, client):
        for _ in range(20):
            assert client.post("/trigger_retrain", {}).status == 202
        memory, count = resident(child.pid), threads(child.pid)
        held = [socket.create_connection(("127.0.0.1", client.port)) for _ in range(300)]
        for connection in held[:250]:
            connection.sendall(HALF)
        for connection in held[250:]:
            connection.sendall(b"GET /health HT")
        began = time.monotonic()
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(send_large_body, [client.port] * 8, [200 * MEGABYTES] * 8))
        assert {answer[9:12] for answer in answers} <= {b"413", b""}
        asked = time.monotonic()
        assert client.post("/trigger_retrain", {}).status == 202  # while all are still held
        assert time.monotonic() - asked < 1
        while not all(closed(connection) for connection in held):
            assert time.monotonic() - began < 12
            for connection in held[:20]:  # these send a byte now and then, and are cut off too
                connection.setblocking(True)
                with contextlib.suppress(OSError):
                    connection.sendall(b" ")
            time.sleep(0.25)
        asked = time.monotonic()
        assert client.post("/trigger_retrain", {}).status == 202
        assert time.monotonic() - asked < 1
        assert resident(child.pid) - memory < 16 * MEGABYTES
        assert threads(child.pid) == count


@pytest.mark.skipif(not NIGHTLY, reason="ten seconds of waiting; nightly")
def test_more_connections_than_are_held_at_once_wait_and_are_cut_off(tmp_path: Path) -> None:
    with server_process(tmp_path) as (child, client):
        count = threads(child.pid)
        held = [socket.create_connection(("127.0.0.1", client.port)) for _ in range(600)]
        files = len(list(Path(f"/proc/{child.pid}/fd").iterdir()))
        assert files < 500
        assert client.get("/health", timeout=12).status == 200
        assert threads(child.pid) <= count + 8
        for connection in held:
            connection.close()


def test_500_requests_in_a_burst_get_500_answers_that_agree(tmp_path: Path) -> None:
    with server_process(tmp_path) as (_, client):
        began = time.monotonic()
        with ThreadPoolExecutor(25) as pool:
            replies = list(
                pool.map(lambda n: client.post("/trigger_retrain", {"reason": f"{n}"}), range(500))
            )
        assert time.monotonic() - began < 30
    assert Counter(reply.status for reply in replies) == {202: 500}
    assert Counter(reply.json["status"] for reply in replies) == {"accepted": 1, "joined": 499}
    assert len({reply.json["request_id"] for reply in replies}) == 1
    history = MonitorStore(f"sqlite:///{tmp_path / 'monitor.db'}").requests.history()
    assert Counter(entry["outcome"] for entry in history) == {"pending": 1, "joined": 499}


def test_kill_9_right_after_the_answer_loses_nothing(tmp_path: Path) -> None:
    with server_process(tmp_path, TOKEN) as (child, client):
        answer = client.post("/trigger_retrain", {"reason": "x"}, Idempotency_Key="weekly")
        os.kill(child.pid, signal.SIGKILL)
    assert answer.status == 202
    with server_process(tmp_path, TOKEN, name="after") as (_, client):
        again = client.post("/trigger_retrain", {"reason": "x"}, Idempotency_Key="weekly")
        other = client.post("/trigger_retrain", {"reason": "y"}, Idempotency_Key="weekly")
        (entry,) = client.get("/trigger_history").json
    assert (again.status, again.json) == (202, answer.json)
    assert other.status == 422
    assert (entry["id"], entry["outcome"]) == (answer.json["request_id"], "pending")
    said = "".join((tmp_path / f"{name}.log").read_text() for name in ("api", "after"))
    assert "API on" in said
    assert TOKEN not in said


def test_kill_9_at_any_time_leaves_what_was_answered_and_each_key_once(tmp_path: Path) -> None:
    answered: dict[str, str] = {}
    for turn in range(10 if NIGHTLY else 2):
        with server_process(tmp_path, name=f"{turn}") as (child, client):
            threading.Timer(random.uniform(0.02, 0.4), child.kill).start()
            with contextlib.suppress(OSError, http.client.HTTPException):
                for number in range(10_000):
                    key = f"{turn}-{number}"
                    answered[key] = ""
                    reply = client.post("/trigger_retrain", {"reason": key}, Idempotency_Key=key)
                    answered[key] = reply.json["request_id"]
            child.wait()
    with server_process(tmp_path, name="after") as (_, client):
        for key, request_id in answered.items():
            reply = client.post("/trigger_retrain", {"reason": key}, Idempotency_Key=key)
            assert reply.status == 202
            assert request_id in ("", reply.json["request_id"])
    history = MonitorStore(f"sqlite:///{tmp_path / 'monitor.db'}").requests.history()
    assert Counter(entry["reason"] for entry in history) == dict.fromkeys(answered, 1)


def raw_request(chance: random.Random) -> bytes:
    """Return bytes that are a request more or less, or not at all."""
    kind = chance.randrange(4)
    noise = chance.randbytes(chance.randrange(200))
    if kind == 0:
        return noise + b"\r\n\r\n"
    path = chance.choice([b"/trigger_retrain", b"/rollback", b"/versions/1/promote", b"/metrics"])
    if kind == 1:
        path += b"?" + noise[:20].replace(b"\n", b"")
    method = chance.choice([b"POST", b"GET", b"PUT", noise[:3]])
    body = noise if kind != 3 else b'{"reason": "' + noise + b'"}'
    headers = [b"Host: localhost", b"Content-Type: application/json", b"Connection: close"]
    headers.append(b"Content-Length: %d" % len(body))
    if kind == 2:
        name = chance.choice([b"Host", b"Origin", b"Idempotency-Key", b"Accept", b"Content-Type"])
        headers.insert(chance.randrange(4), name + b": " + noise[:30])
    return method + b" " + path + b" HTTP/1.1\r\n" + b"\r\n".join(headers) + b"\r\n\r\n" + body


def ask_raw(port: int, data: bytes) -> bytes:
    connection = socket.create_connection(("127.0.0.1", port), timeout=15)
    with connection, contextlib.suppress(OSError):
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        return connection.recv(12)
    return b""


def test_random_bytes_never_make_the_server_fail(tmp_path: Path) -> None:
    manager = RetrainingManager(store=MonitorStore(f"sqlite:///{tmp_path / 'monitor.db'}"))
    app = create_trigger_api(manager, store=versions(tmp_path), posts_at_once=10**6)
    server = serve_api(app, port=0)
    assert server is not None
    chance = random.Random(4)
    cases = [raw_request(chance) for _ in range(10_000 if NIGHTLY else 1_000)]
    port = server.port
    with ThreadPoolExecutor(4) as pool:
        statuses = Counter(a[9:10] for a in pool.map(lambda data: ask_raw(port, data), cases))
    assert Client(port).get("/health").status == 200
    server.close()
    assert set(statuses) <= {b"2", b"4", b""}
    assert statuses[b"4"] > len(cases) / 2


def test_requests_of_all_kinds_that_the_description_allows_and_forbids(tmp_path: Path) -> None:
    manager = RetrainingManager(store=MonitorStore(f"sqlite:///{tmp_path / 'monitor.db'}"))
    store = versions(tmp_path, 5)
    app = create_trigger_api(
        manager, store=store, token=TOKEN, posts_at_once=10**6, wrong_tokens_at_once=10**6
    )
    server = serve_api(app, port=0)
    assert server is not None
    config = tmp_path / "schemathesis.toml"
    # What is allowed may still name a version that is not there, or use an old Idempotency-Key.
    config.write_text(
        '[checks.positive_data_acceptance]\nexpected-statuses = ["2xx", "404", "409", "422"]\n'
    )
    command = [str(Path(sys.executable).with_name("schemathesis")), "--config-file", str(config)]
    command += ["run", f"http://127.0.0.1:{server.port}/openapi.json", "--checks", "all"]
    command += ["--header", f"Authorization: Bearer {TOKEN}", "--no-color", "--seed", "1"]
    if NIGHTLY:
        command += ["--max-examples", "1000", "--max-time", "900"]
    else:
        command += ["--max-examples", "150", "--max-time", "8"]
        command += ["--phases", "examples,coverage,fuzzing"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    server.close()
    assert done.returncode == 0, done.stdout[-5000:]
    assert TOKEN not in done.stdout
