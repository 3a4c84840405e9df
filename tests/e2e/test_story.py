# SPDX-License-Identifier: Apache-2.0
"""A model's life from candidate to production and back, told once by the real thing.

A champion; a candidate that poisoned nodes made worse in one class, and that is refused; a better
one that waits and is approved on the page; production that degrades and comes back by itself; and a
ledger that tells all of it, and tells when it was altered.
"""

from __future__ import annotations

import json
import shutil
import sqlite3
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from deployment import process, wait_until
from flower import ROOT, Flower, free_port
from page_browser import Visit, chromium

from fl_app.client.data import load_data_spec, partition
from fl_app.retraining import MonitorStore
from fl_app.retraining.store import default_url
from models.pictures import label_file
from registry import JournalError, ModelManager, Stage

pytestmark = pytest.mark.slow

NAME, TOKEN = "story", "a-token-that-nobody-guesses"
NODES, POISONED = 3, (0, 1)
FLIPPED = {"0": "1", "1": "0"}  # circles and squares


def own_pictures(trained: Flower, folder: Path) -> Path:
    """The generated pictures, copied so that their labels may be changed; returns data.yaml."""
    (drawn,) = (trained.fl_app_home / "data").glob("*/data.yaml")
    shutil.copytree(drawn.parent, folder)
    return folder / "data.yaml"


@contextmanager
def poison(data: Path) -> Iterator[None]:
    """On two of the three nodes circles are called squares meanwhile, and squares circles."""
    spec = load_data_spec(data, 7)
    before = {}
    for node in POISONED:
        for picture in partition(spec, num_partitions=NODES, partition_id=node, seed=42):
            path = label_file(picture)
            before[path] = path.read_text()
            rows = [row.split(" ", 1) for row in before[path].splitlines()]
            path.write_text("".join(f"{FLIPPED.get(kind, kind)} {box}\n" for kind, box in rows))
    try:
        yield
    finally:
        for path, text in before.items():
            path.write_text(text)


def train(flower: Flower, home: Path, data: Path, rounds: int) -> None:
    """A session of three nodes that starts from what is in production."""
    flower.run(
        ROOT,
        f'home="{home}" data="{data}" registered-model-name="{NAME}" min-nodes={NODES} '
        f"num-server-rounds={rounds} max-retrains=0 data-summaries=false staging-threshold=0.3",
        "--federation-config",
        f"num-supernodes={NODES} client-resources-num-cpus=1",
    )


class Server:
    """`fl-app serve`: the page and the API of what was trained."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}/"

    def post(self, path: str, **fields: Any) -> dict[str, Any]:
        """Ask the API for something, as an operator's job does."""
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {TOKEN}"}
        body = json.dumps(fields).encode()
        request = urllib.request.Request(f"{self.url}{path}", body, headers)
        with urllib.request.urlopen(request, timeout=20) as answer:
            found: dict[str, Any] = json.load(answer)
        return found


@contextmanager
def served(flower: Flower, folder: Path) -> Iterator[Server]:
    """Start the server, and end it."""
    (folder / "token").write_text(TOKEN)
    port = free_port()
    words = ("fl-app", "serve", "--name", NAME, "--port", str(port))
    with process(flower, folder / "serve.log", (*words, "--token-file", str(folder / "token"))):
        server = Server(port)
        wait_until(lambda: urllib.request.urlopen(f"{server.url}health"), 60, "the server")
        yield server


def alter_one_byte(database: Path, reason: str) -> None:
    """Change one letter of a journal entry, as somebody with the database in hand could."""
    with sqlite3.connect(database) as connection:
        rows = connection.execute(
            "SELECT run_uuid, key, value FROM params WHERE key LIKE 'op.%' AND value LIKE ?",
            (f"%{reason}%",),
        ).fetchall()
        assert len(rows) == 1
        run, key, value = rows[0]
        connection.execute(
            "UPDATE params SET value = ? WHERE run_uuid = ? AND key = ?",
            (value.replace(reason, reason.swapcase()[:1] + reason[1:]), run, key),
        )


def live_and_fall(first: Flower, manager: ModelManager, waits: str, tmp_path: Path) -> None:
    """Approve on the page, do badly, come back, and find what was altered."""
    home = first.fl_app_home
    with served(first, tmp_path) as server, chromium() as browser:
        # In production things are well, day by day.
        for day in range(10):
            healthy = server.post("production_metrics", accuracy=0.9 + 0.002 * (day % 3))
            assert healthy["version"] == "1"

        # A person looks at the page and approves.
        visit = Visit(browser.new_page(), server.url)
        visit.begin(TOKEN)
        assert f"Version {waits} waits for approval" in visit.page.inner_text("main")
        done = visit.decide("approve", by="Grace", note="better in every class")
        assert f"Version {waits} is approved and in Production now." in done
        assert visit.complaints() == []
        assert manager.get_latest_version(Stage.PRODUCTION) == waits

        # It does badly where it is used: the version before is back by itself.
        answers = [server.post("production_metrics", accuracy=0.61)]
        while answers[-1]["status"] == "watching" and len(answers) < 10:
            answers.append(server.post("production_metrics", accuracy=0.61))
        assert answers[-1]["status"] == "rolled_back"
        assert answers[-1]["production"] == "1"
        assert len(answers) > 1  # one bad report may be noise
        assert manager.get_latest_version(Stage.PRODUCTION) == "1"
        assert manager.get_version(waits).tags["probation"] == "failed"
        (request,) = MonitorStore(default_url(home), NAME).history()
        assert f"version {waits}" in str(request["reason"])

        # The ledger tells all of it, and verifies.
        moves = [e for e in manager.history() if e.op not in ("stage", "lease")]
        told = [(str(e.op), e.version, e.actor) for e in moves]
        assert told == [("promote", "1", "Ada"), ("promote", waits, "Grace"), *told[2:]]
        assert told[2:] == [("rollback", "1", "probation")]
        assert manager.verify() == len(manager.history())
        visit.page.goto(server.url)
        ledger = visit.page.inner_text("#ledger")
        assert all(word in ledger for word in ("Ada", "Grace", "better in every class"))

        # One altered byte is found, by the page and by the doctor.
        alter_one_byte(home / "mlflow.db", "better in every class")
        with pytest.raises(JournalError):
            ModelManager(None, NAME, home=home).verify()
        visit.page.goto(server.url)
        assert "entry" in visit.page.inner_text("#ledger").lower()
    examined = first.command("fl-app", "doctor", "--name", NAME, cwd=tmp_path, ok=False)
    assert examined.returncode == 1
    assert "WRONG" in examined.stdout


def test_from_candidate_to_production_and_back(
    trained: tuple[Flower, str], flower: Flower, tmp_path: Path
) -> None:
    first, home = trained[0], trained[0].fl_app_home
    data = own_pictures(first, tmp_path / "shapes")
    manager = ModelManager(None, NAME, home=home)

    # The first session gave a champion: a version of the main job, promoted by a person.
    learnt = ModelManager(home=home).get_version("3")
    manager.save_model_version(
        ModelManager(home=home).weights_path("3"), learnt.run_id, learnt.metrics, {"round": "3"}
    )
    said = first.command(
        *("fl-app", "promote", "1", "--name", NAME, "--by", "Ada", "--note", "the first one"),
        cwd=tmp_path,
    )
    assert "Version 1 of story is in Production now." in said.stdout

    # A candidate that poisoned nodes made worse in one class is refused, and the class named.
    with poison(data):
        train(flower, home, data, rounds=1)
    refused = manager.get_version("2")
    assert refused.stage is Stage.STAGING
    assert refused.tags["approval"] == "none"
    assert "more than 0.10 of mAP50 is lost" in refused.tags["reason"]
    assert "class circle goes from 0.8" in refused.tags["reason"]

    # A better one passes the gates, and waits.
    train(flower, home, data, rounds=2)
    (waits,) = [v for v in ("3", "4") if manager.get_version(v).tags["approval"] == "pending"]
    assert manager.get_latest_version(Stage.PRODUCTION) == "1"
    assert manager.get_latest_version(Stage.STAGING) == waits
    assert "beats production's" in manager.get_version(waits).tags["reason"]

    live_and_fall(first, manager, waits, tmp_path)
