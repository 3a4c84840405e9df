# SPDX-License-Identifier: Apache-2.0
"""Idempotency keys: once is once, whatever happens in between."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from support.api_client import Client, refused

from fl_app.api import create_trigger_api, serve_api
from fl_app.retraining import MonitorStore, RetrainingManager
from fl_registry import InMemoryModelStore, StoreUnavailable


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
    claim = manager.store.keys.claim("k", digest, owner="gone", now=datetime.now(UTC))
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
    first = store.keys.claim("k", "d", owner="me", now=now)
    store.keys.answer("k", 202, "{}")
    late = store.keys.claim("k", "d", owner="me", now=now + timedelta(hours=23, minutes=59))
    assert (late.mine, late.status, late.id) == (False, 202, first.id)
    after = store.keys.claim("k", "d", owner="me", now=now + timedelta(hours=24, minutes=1))
    assert after.mine
    assert after.id != first.id
