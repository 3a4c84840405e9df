# SPDX-License-Identifier: Apache-2.0
"""What fails while a run goes on: noted once, told by the API, forgotten when it works again."""

from __future__ import annotations

import logging

import pytest

from fl_app.api import create_trigger_api
from fl_app.health import Health
from fl_app.retraining import RetrainingManager


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
