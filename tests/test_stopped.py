# SPDX-License-Identifier: AGPL-3.0-or-later
"""A run that Flower stops, and a session that had ended before the server crashed."""

from __future__ import annotations

import threading
from pathlib import Path

import httpx
import pytest

from fl_app.flower_stop import when_stopped
from fl_app.retraining import RetrainRequest, TriggerKind
from fl_app.server_app import is_served
from fl_registry import FederatedLearningTracker, ModelManager


def end_a_thread_with(error: Exception) -> None:
    """What Flower's heartbeat does when the SuperLink answers so."""

    def heartbeat() -> None:
        raise error

    thread = threading.Thread(target=heartbeat)
    thread.start()
    thread.join()


def answer(status: int) -> httpx.HTTPStatusError:
    request = httpx.Request("POST", "http://127.0.0.1:1/v1/runtime/send-task-heartbeat")
    return httpx.HTTPStatusError("refused", request=request, response=httpx.Response(status))


def test_a_heartbeat_that_is_refused_means_that_the_run_is_stopped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    others: list[object] = []
    monkeypatch.setattr(threading, "excepthook", lambda ended: others.append(ended.exc_value))
    stopped: list[int] = []
    with when_stopped(lambda: stopped.append(1)):
        end_a_thread_with(answer(500))
        end_a_thread_with(RuntimeError("not Flower's"))
        assert stopped == []
        end_a_thread_with(answer(401))
    assert stopped == [1]
    end_a_thread_with(answer(401))
    assert stopped == [1]
    assert len(others) == 3


def test_a_request_is_served_when_its_session_s_run_is_finished(home: Path) -> None:
    store = ModelManager(home=home)
    request = RetrainRequest(TriggerKind.MANUAL, "new pictures")
    assert not is_served("fl-app", store, request)
    tracker = FederatedLearningTracker(home=home)
    for status, expected in (("KILLED", False), ("FINISHED", True)):
        tracker.start_run(tags={"request_id": request.id})
        assert not is_served("fl-app", store, request)
        tracker.end_run(status)
        assert is_served("fl-app", store, request) == expected
    assert not is_served("fl-app", store, RetrainRequest(TriggerKind.MANUAL, "another"))
