# SPDX-License-Identifier: Apache-2.0
"""A server that waits: a request over HTTP starts a session at once, and `flwr stop` ends it."""

from __future__ import annotations

import socket
import urllib.request
from datetime import datetime
from pathlib import Path

import pytest
from hypothesis import settings
from support.deployment import WaitingRun, deployment, start, start_waiting, wait_until
from support.flower import Flower
from support.webhook_receiver import Receiver, receiving

from fl_app.client.generated_shapes import shapes_data
from fl_app.retraining import MonitorStore, RetrainingManager
from fl_app.retraining.memory.store import default_url
from fl_registry import ModelManager

pytestmark = pytest.mark.slow
NIGHTLY = settings.get_current_profile_name() == "nightly"

SMALL = "num-server-rounds=1 image-size=32 local-epochs=1 batch-size=8 fraction-evaluate=0.0"


def few_shapes(folder: Path, seed: int = 0) -> Path:
    return shapes_data(folder, train=16, val=8, image_size=32, seed=seed)


def serves_requests_until_it_is_stopped(run: WaitingRun, *reasons: str) -> None:
    """Ask, see a session for each request, stop the run, and see that nothing is left or lost."""
    for number, reason in enumerate(reasons, start=2):
        answer, answered = run.trigger(reason)
        assert answer["status"] == "accepted"
        asked = answer["request_id"]
        (session,) = wait_until(lambda a=asked: run.sessions(request_id=a), 30, "the session")
        tags = session.data.tags
        assert (tags["trigger"], tags["session"]) == (reason, str(number))
        assert tags["flower_run_id"] == run.run_id
        row = next(row for row in run.get("/trigger_history") if row["id"] == asked)
        assert datetime.fromisoformat(row["started"]).timestamp() - answered < 5
        assert session.info.start_time / 1000 - answered < 5
        wait_until(lambda a=asked: run.ended(request_id=a), 120, "the end of the session")
        wait_until(lambda: run.get("/status")["running"] is None, 10, "the end of the request")
    assert "running" in run.status()

    run.stop()
    wait_until(lambda: not run.processes(), 60, "the end of the server")
    assert "finished:stopped" in run.status()
    with socket.create_server(("127.0.0.1", run.port)):
        pass  # the port is free
    home = run.flower.fl_app_home
    numbers = [str(number + 1) for number in range(len(reasons) + 1)]
    assert [r.info.status for r in run.sessions()] == ["FINISHED"] * len(numbers)
    rows = ModelManager(home=home).list_all_versions()
    assert [row["tags"]["session"] for row in reversed(rows)] == numbers
    history = MonitorStore(default_url(home)).requests.history()
    assert [(row["reason"], row["outcome"]) for row in history] == [(r, "done") for r in reasons]


def is_told_of_a_move_by_another_process(run: WaitingRun, receiver: Receiver) -> None:
    """Approve by the command line while the server waits: its hooks hear of it."""
    run.flower.command("fl-app", "approve", "1", "--by", "Ada", cwd=run.flower.folder)
    wait_until(lambda: receiver.told("stage.moved", op="promote"), 30, "the webhook")
    (moved,) = receiver.told("stage.moved", op="promote")
    assert (moved["actor"], moved["production"], moved["staging"]) == ("Ada", "1", None)
    address = f"http://127.0.0.1:{run.port}/metrics?format=prometheus"
    with urllib.request.urlopen(address, timeout=5) as reply:
        lines = reply.read().decode().splitlines()
    for line in (
        'fl_app_version{stage="production"} 1.0',
        'fl_app_rounds_total{result="ok"} 1.0',
        'fl_app_sessions_total{status="finished"} 1.0',
        'fl_app_retrain_requests{outcome="pending"} 0.0',
    ):
        assert line in lines


def test_in_simulation(own: Flower, app: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("canary-0c2f6d1b9e8a4735f1\n")
    with receiving() as receiver:
        told = f'webhook-url="{receiver.url()}" webhook-hosts="127.0.0.1"'
        told += f' webhook-secret-file="{secret}" staging-threshold=0.0'
        run = start_waiting(own, app, f'{SMALL} data="{few_shapes(tmp_path)}" {told}')
        is_told_of_a_move_by_another_process(run, receiver)
        serves_requests_until_it_is_stopped(run, "new pictures")
        assert [event["type"] for event in receiver.events if event["type"] != "stage.moved"] == [
            *("session.started", "round.finished", "session.ended"),
            "retraining.requested",
            *("session.started", "round.finished", "session.ended"),
        ]
        assert len(set(receiver.ids)) == len(receiver.ids)
        assert {event["model"] for event in receiver.events} == {"fl-global-model"}
        assert receiver.told("session.started", parent_version="1", trigger="new pictures")


def test_on_a_superlink_with_two_supernodes(own: Flower, app: Path, tmp_path: Path) -> None:
    data = [few_shapes(tmp_path / f"{number}", seed=number) for number in range(3)]
    with deployment(own, data[:2], supernode="torch") as superlink:
        run = start_waiting(own, app, f'{SMALL} data="{data[2]}"', superlink)
        serves_requests_until_it_is_stopped(run, "new pictures")


@pytest.mark.skipif(not NIGHTLY, reason="two minutes of waiting for Flower; nightly")
def test_a_session_that_is_stopped_in_the_middle_is_run_again_by_the_next_run(
    own: Flower, app: Path, tmp_path: Path
) -> None:
    own.fl_app_home.mkdir()
    store = MonitorStore(default_url(own.fl_app_home))
    asked = RetrainingManager(store=store).manual_trigger("stopped in the middle")
    config = f'{SMALL} data="{few_shapes(tmp_path)}"'
    run = start(own, app, config.replace("num-server-rounds=1", "num-server-rounds=500"))
    wait_until(lambda: run.sessions(request_id=asked), 120, "the session")
    run.stop()
    wait_until(lambda: not run.processes(), 90, "the end of the server")
    assert [row["outcome"] for row in store.requests.history()] == ["running"]
    assert [r.info.status for r in run.sessions(request_id=asked)] == ["KILLED"]
    printed = own.run(app, config)
    assert f"request {asked} was interrupted and is served again" in printed
    assert [row["outcome"] for row in store.requests.history()] == ["done"]
    assert [r.info.status for r in run.sessions(request_id=asked)] == ["KILLED", "FINISHED"]
