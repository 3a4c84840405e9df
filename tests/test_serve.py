# SPDX-License-Identifier: Apache-2.0
"""`fl-app serve`: a person approves after a run has ended, and what cannot be served is told."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
import urllib.parse
import urllib.request
from http.cookiejar import CookieJar
from pathlib import Path

import numpy as np
import pytest

from fl_app.cli import main
from fl_app.retraining import MonitorStore, RetrainingManager
from fl_app.retraining.memory.store import default_url
from fl_registry import ModelManager
from fl_registry.files.weights import save_weights

TOKEN = "canary-7f3a9c51d2e8b640"  # noqa: S105 - it guards nothing


class Person:
    """A browser without a screen."""

    def __init__(self, url: str) -> None:
        self.url = url
        jar = urllib.request.HTTPCookieProcessor(CookieJar())
        self.open = urllib.request.build_opener(jar).open

    def look(self) -> str:
        with self.open(self.url, timeout=60) as reply:
            return str(reply.read().decode())

    def send(self, what: str, once: bool = True, **fields: str) -> str:
        hidden = dict(re.findall(r'type="hidden" name="(form|once)" value="(\w+)"', self.look()))
        given = {name: value for name, value in hidden.items() if once or name == "form"}
        body = urllib.parse.urlencode({**given, **fields}).encode()
        with self.open(f"{self.url}page/{what}", body, timeout=60) as reply:
            return str(reply.read().decode())


@pytest.mark.slow
def test_a_person_approves_and_asks_after_the_run_has_ended(home: Path, tmp_path: Path) -> None:
    manager, weights = ModelManager(), tmp_path / "weights.safetensors"
    save_weights({"w": np.zeros(3, dtype=np.float32)}, weights)
    manager.save_model_version(weights, metrics={"mAP50": 0.9}, tags={"metric": "mAP50"})
    manager.promote_to_staging("1")
    manager.set_version_tags("1", {"approval": "pending"})
    trained = RetrainingManager(store=MonitorStore(default_url(home)))
    trained.update_metrics(0.875, 1)
    token = tmp_path / "token"
    token.write_text(f"{TOKEN}\n")
    command = [sys.executable, "-m", "fl_app.cli", "serve", "--port", "0"]
    command += ["--token-file", str(token)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            found = re.search(r"http://127\.0\.0\.1:\d+/", server.stdout.readline())
            assert found is not None
            person = Person(found.group())
            assert "waits for approval" not in person.look()
            person.send("sign-in", once=False, token=TOKEN)
            page = person.look()
            assert "Version 1 waits for approval" in page
            assert "0.8750" in page
            assert "the next <code>flwr run</code>" in page
            said = person.send("decide", version="1", decision="approve", by="Ada", note="good")
            assert "Version 1 is approved and in Production now." in said
            said = person.send("trigger", reason="new pictures", by="Ada")
            assert "Retraining is requested." in said
            trained.update_metrics(0.75, 2)
            assert "0.7500" in person.look()
        finally:
            server.send_signal(signal.SIGTERM)
        assert server.wait(20) == 0
    assert manager.history()[-1].actor == "Ada"
    assert manager.get_latest_version("Production") == "1"
    request = trained.take()
    assert request is not None
    assert request.reason == "new pictures (requested by Ada)"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--host", "0.0.0.0"), "without a token"),  # noqa: S104 - that is the test
        (("--token-file", "/nowhere"), "token file"),
        (("--monitor", "gopher://here"), "--monitor"),
        (("--tracking-uri", "gopher://here"), "gopher"),
        (("--allowed-hosts", "*"), "any web page could use the API"),
    ],
)
def test_what_cannot_be_served_gets_one_sentence(
    words: tuple[str, ...],
    said: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("FL_APP_API_TOKEN", raising=False)
    with pytest.raises(SystemExit) as ended:
        main.main(["serve", *words])
    assert ended.value.code == 1
    told = capsys.readouterr().err
    assert said in told
    assert "Traceback" not in told


@pytest.mark.slow
def test_it_starts_without_mlflow_and_says_so(home: Path) -> None:
    away = "http://127.0.0.1:9"
    command = [sys.executable, "-m", "fl_app.cli", "serve", "--port", "0", "--tracking-uri", away]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            found = re.search(r"http://127\.0\.0\.1:\d+/", server.stdout.readline())
            assert found is not None
            assert "Until it answers, the page shows what it can" in server.stdout.readline()
            with urllib.request.urlopen(f"{found.group()}health", timeout=60) as reply:
                assert json.load(reply) == {
                    "status": "degraded",
                    "failing": ["registry"],
                    "backlog": 0,
                }
            with urllib.request.urlopen(found.group(), timeout=60) as reply:
                page = reply.read().decode()
            assert f"MLflow at {away} does not answer" in page
            assert "Nothing was in Production before" not in page
            assert "There is nothing to draw yet" not in page
        finally:
            server.send_signal(signal.SIGTERM)
        assert server.wait(20) == 0


def test_a_port_that_is_taken_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(SystemExit) as ended:
            main.main(["serve", "--port", str(port)])
    assert ended.value.code == 1
    assert f"Port {port} of 127.0.0.1 cannot be opened" in capsys.readouterr().err
