# SPDX-License-Identifier: Apache-2.0
"""The API over real HTTP: what it does, and what its errors tell."""

from __future__ import annotations

import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.api_client import Client

from fl_app.api import create_trigger_api, serve_api
from fl_app.backlog import Backlog
from fl_app.retraining import RetrainingManager
from fl_registry import InMemoryModelStore, StoreUnavailable
from fl_registry.files.weights import save_weights


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


def test_health_counts_the_rounds_that_wait(manager: RetrainingManager) -> None:
    known = [Backlog(), Backlog(1), Backlog(12, "MLflow does not answer"), Backlog(2)]
    client = create_trigger_api(manager, waiting=lambda: known.pop(0)).test_client()
    answers = [client.get("/health").json for _ in range(3)]
    assert answers == [
        {"status": "ok", "backlog": 0},
        {"status": "ok", "backlog": 1},
        {"status": "degraded", "failing": ["registry"], "backlog": 12},
    ]
    manager.health.fails("round checkpoints", "the disk is full")
    assert client.get("/health").json == {
        "status": "degraded",
        "failing": ["round checkpoints"],
        "backlog": 2,
    }


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
    assert 'fl_app_retrain_requests{outcome="pending"} 0.0' in lines


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


def test_a_version_that_waits_can_be_rejected(api: Client, store: InMemoryModelStore) -> None:
    assert api.post("/versions/3/reject", {"by": "Ada"}).status == 409
    store.promote_to_staging("3")
    store.set_version_tags("3", {"approval": "pending"})
    said = api.post("/versions/3/reject", {"by": "Ada", "note": "misses ships"})
    assert said.json == {"version": "3", "stage": "Archived"}
    assert (store.history()[-1].actor, store.history()[-1].reason) == ("Ada", "misses ships")
    assert api.post("/versions/3/approve", {"by": "Ada"}).status == 409


def test_errors_of_the_registry_have_a_status_of_their_own(
    api: Client, store: InMemoryModelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert api.post("/versions/99/promote", {}).status == 404
    assert api.post("/rollback", {}).status == 409

    def down(**_: object) -> list[dict[str, Any]]:
        raise StoreUnavailable("MLflow at http://ada:***@host does not answer.")

    monkeypatch.setattr(store, "list_versions", down)
    reply = api.get("/versions")
    assert (reply.status, reply.json["error"]) == (503, "service unavailable")


def test_a_slow_registry_holds_up_nothing_else(manager: RetrainingManager, tmp_path: Path) -> None:
    go_on = threading.Event()

    class Slow(InMemoryModelStore):
        def list_versions(self, **_: object) -> list[dict[str, Any]]:
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
        if not rule.endpoint.startswith("page.")  # which is for people
    }
    assert routes == {(path, method) for path, methods in described.items() for method in methods}


def test_lists_name_their_next_part(manager: RetrainingManager, tmp_path: Path) -> None:
    store = InMemoryModelStore(tmp_path / "store")
    for number in range(5):
        file = tmp_path / f"{number}.safetensors"
        save_weights({"w": np.full(2, number, np.float32)}, file)
        store.save_model_version(file)
    store.promote_to_production("1")
    store.promote_to_production("3")
    for _ in range(5):
        manager.manual_trigger("new pictures")
    client = create_trigger_api(manager, store=store).test_client()

    def parts(path: str, key: str) -> list[list[str]]:
        found: list[list[str]] = []
        following: str | None = path
        while following:
            answer = client.get(following, headers={"Host": "localhost"})
            assert answer.status_code == 200, answer.get_json()
            found.append([row[key] for row in answer.get_json()])
            link = answer.headers.get("Link", "")
            assert not link or link.endswith('>; rel="next"')
            following = link.partition(">")[0].removeprefix("<")
        return found

    assert parts("/versions?limit=2", "version") == [["5", "4"], ["3", "2"], ["1"]]
    assert parts("/versions?limit=5", "version") == [["5", "4", "3", "2", "1"]]
    assert parts("/versions?limit=2&stage=None", "version") == [["5", "4"], ["2"]]
    assert parts("/versions?stage=Archived", "version") == [["1"]]
    assert parts("/versions?since=2100-01-01", "version") == [[]]
    for wrong in ("since=soon", "stage=None2", "since=2026-13-01"):
        assert client.get(f"/versions?{wrong}", headers={"Host": "localhost"}).status_code == 400
    requests = [row["id"] for row in manager.store.requests.history()]
    assert parts("/trigger_history?limit=2", "id") == [requests[3:], requests[1:3], requests[:1]]


ALERT = {
    "version": "4",
    "groupKey": "{}:{alertname='mAP50Low'}",
    "truncatedAlerts": 0,
    "status": "firing",
    "receiver": "fl-app",
    "groupLabels": {"alertname": "mAP50Low"},
    "commonLabels": {"alertname": "mAP50Low", "severity": "page"},
    "commonAnnotations": {"summary": "mAP50 of line 3 is below 0.6"},
    "externalURL": "http://alertmanager:9093",
    "alerts": [
        {
            "status": "firing",
            "labels": {"alertname": "mAP50Low", "instance": "line-3"},
            "annotations": {"summary": "mAP50 of line 3 is below 0.6"},
            "startsAt": "2026-11-30T10:00:00Z",
            "endsAt": "0001-01-01T00:00:00Z",
            "generatorURL": "http://prometheus:9090/graph",
            "fingerprint": "7ec4",
        }
    ],
}
"""As Alertmanager posts it, by its documentation of webhooks, version 4."""


@pytest.fixture
def served(manager: RetrainingManager) -> Any:
    """Flask's client of a monitor that has just served a request."""
    manager.manual_trigger("the first one")
    taken = manager.take()
    assert taken is not None
    with manager.running(taken):
        pass
    return create_trigger_api(manager).test_client()


def test_alertmanager_s_own_body_is_a_request_within_the_limits(
    manager: RetrainingManager, served: Any
) -> None:
    answers = [served.post("/trigger_retrain", json=ALERT) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [202] * 3
    assert {answer.json["status"] for answer in answers} == {"suppressed"}
    assert answers[0].json["reason"] == "Alertmanager: mAP50Low: mAP50 of line 3 is below 0.6"
    resolved = served.post("/trigger_retrain", json={**ALERT, "status": "resolved"})
    assert (resolved.status_code, resolved.json["status"]) == (202, "ignored")
    assert len(manager.trigger_history) == 4
    assert served.post("/trigger_retrain", json={**ALERT, "status": "?"}).status_code == 400


@pytest.mark.parametrize(
    ("body", "header", "status"),
    [
        ({}, {}, "accepted"),
        ({"force": False}, {}, "suppressed"),
        ({"source": "alert"}, {}, "suppressed"),
        ({}, {"X-Trigger-Source": "alert"}, "suppressed"),
        ({"source": "person"}, {"X-Trigger-Source": "alert"}, "suppressed"),
        ({"source": "person", "force": True}, {}, "accepted"),
        ({"source": "alert", "status": "resolved"}, {}, "ignored"),
    ],
)
def test_alerts_do_not_pass_the_limits(
    served: Any, body: dict[str, Any], header: dict[str, str], status: str
) -> None:
    reply = served.post("/trigger_retrain", json=body, headers=header)
    assert reply.json["status"] == status


@pytest.mark.parametrize(
    ("body", "header"),
    [
        ({"source": "alert", "force": True}, {}),
        ({"force": True}, {"X-Trigger-Source": "alert"}),
        ({}, {"X-Trigger-Source": "robot"}),
        ({"source": "robot"}, {}),
    ],
)
def test_what_cannot_be_honoured_of_an_alert_is_refused(
    manager: RetrainingManager, body: dict[str, Any], header: dict[str, str]
) -> None:
    client = create_trigger_api(manager).test_client()
    reply = client.post("/trigger_retrain", json=body, headers=header)
    assert reply.status_code == 400
    assert manager.trigger_history == []
