# SPDX-License-Identifier: Apache-2.0
"""What fails while a run goes on: noted once, told by the API, forgotten when it works again."""

from __future__ import annotations

import logging
import threading
import time

import pytest

from fl_app.api import create_trigger_api
from fl_app.api.store_watch import LOOK_AGAIN, StoreWatch
from fl_app.backlog import Backlog
from fl_app.health import Health
from fl_app.retraining import RetrainingManager
from fl_registry import InMemoryModelStore, StoreUnavailable


def test_a_part_that_fails_is_logged_once_until_it_works_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    health = Health()
    with caplog.at_level(logging.INFO, "flwr.fl_app"):
        for _ in range(3):
            with health.going_on("the disk", OSError):
                raise OSError(28, "No space left on device\x1b[2J")
        assert dict(health.failing) == {"the disk": "[Errno 28] No space left on device\\x1b[2J"}
        with health.going_on("the disk", OSError):
            pass
    assert health.failing == {}
    assert [r.levelname for r in caplog.records] == ["WARNING", "INFO"]


def test_other_errors_are_not_swallowed() -> None:
    health = Health()
    with pytest.raises(ValueError, match="x"), health.going_on("a part", OSError):
        raise ValueError("x")
    assert health.failing == {}


def test_health_tells_that_something_fails_and_status_tells_why() -> None:
    manager = RetrainingManager()
    client = create_trigger_api(manager).test_client()
    assert client.get("/health").json == {"status": "ok"}
    manager.health.fails("a round's checkpoint", OSError(28, "No space left on device"))
    assert client.get("/health").json == {
        "status": "degraded",
        "failing": ["a round's checkpoint"],
    }
    told = client.get("/status").json["failing"]
    assert told == {"a round's checkpoint": "[Errno 28] No space left on device"}


class Store(InMemoryModelStore):
    """A registry that fails as it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.trouble = ""
        self.lost: tuple[str, ...] = ()
        self.answers = threading.Event()
        self.answers.set()

    def ping(self) -> None:
        self.answers.wait(30)
        if self.trouble:
            raise StoreUnavailable(self.trouble)

    def losses(self) -> tuple[str, ...]:
        return self.lost


def test_health_tells_that_mlflow_is_away_or_lost_something_and_is_never_slow() -> None:
    store, now = Store(), [0.0]
    watch = StoreWatch(store, clock=lambda: now[0])
    assert watch.problems() == ()
    store.trouble = "MLflow does not answer"
    assert watch.problems() == ()  # looked at a moment ago
    now[0] += LOOK_AGAIN
    assert watch.problems() == ("MLflow does not answer",)
    store.trouble, store.lost = "", ("Version 3 was deleted",)
    store.answers.clear()  # it says nothing, and nobody waits for it
    now[0] += LOOK_AGAIN
    began = time.monotonic()
    assert watch.problems() == ("MLflow does not answer",)
    assert time.monotonic() - began < 5
    store.answers.set()
    until = time.monotonic() + 10
    while watch.problems() != ("Version 3 was deleted",):
        assert time.monotonic() < until


def test_the_api_and_the_page_tell_what_is_wrong_with_the_registry() -> None:
    store = Store()
    store.trouble = "MLflow does not answer"
    client = create_trigger_api(RetrainingManager(), store=store).test_client()
    assert client.get("/health").json == {"status": "degraded", "failing": ["registry"]}
    assert client.get("/status").json["failing"] == {"registry": "MLflow does not answer"}
    store = Store()
    store.lost = ("Version 3, which is in Production, was deleted in MLflow",)
    client = create_trigger_api(
        RetrainingManager(), store=store, waiting=lambda: Backlog(apart=2)
    ).test_client()
    assert client.get("/health").json == {
        "status": "degraded",
        "failing": ["registry", "sessions"],
        "backlog": 0,
    }
    page = client.get("/").text
    assert "Version 3, which is in Production, was deleted in MLflow" in page
    assert "2 sessions set apart" in page
