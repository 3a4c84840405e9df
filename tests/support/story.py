# SPDX-License-Identifier: Apache-2.0
"""A model's life from candidate to production and back, as tests tell it by the real thing.

What is learnt, and by which settings, is for each test to say.
"""

from __future__ import annotations

import json
import sqlite3
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from fl_app.client.data import partition
from fl_app.client.data_yaml import load_data_spec
from fl_app.retraining import MonitorStore
from fl_app.retraining.memory.store import default_url
from fl_models.pictures import label_file
from fl_registry import JournalError, ModelManager, Stage
from support.deployment import process, wait_until
from support.flower import Flower, free_port
from support.page_browser import Visit, chromium

NAME, TOKEN = "story", "a-token-that-nobody-guesses"
NODES, POISONED = 3, (0, 1)


@dataclass(frozen=True)
class Story:
    """What it is told of.

    Attributes
    ----------
    flower, keeper : Flower
        The one runs the sessions, in the home of the other.
    app : Path
        The shipped app's folder.
    data : Path
        A data.yaml; the labels of its training pictures may be changed.
    exchanged : Mapping[str, str]
        The classes, by number, that poisoned nodes take for each other.
    settings : str
        Of all sessions.
    """

    flower: Flower
    keeper: Flower
    app: Path
    data: Path
    exchanged: Mapping[str, str]
    settings: str = "staging-threshold=0.3"

    @property
    def home(self) -> Path:
        """Where the versions are."""
        return self.keeper.fl_app_home

    @property
    def manager(self) -> ModelManager:
        """The versions, as a process that begins now finds them."""
        return ModelManager(None, NAME, home=self.home)

    def train(self, settings: str) -> None:
        """A session of three nodes that starts from what is in production."""
        self.flower.run(
            self.app,
            f'home="{self.home}" data="{self.data}" registered-model-name="{NAME}" '
            f"min-nodes={NODES} max-retrains=0 data-summaries=false "
            f"{self.settings} {settings}",
            "--federation-config",
            f"num-supernodes={NODES} client-resources-num-cpus=1",
        )

    @contextmanager
    def poisoned(self) -> Iterator[None]:
        """On two of the three nodes two classes have each other's labels meanwhile."""
        spec = load_data_spec(self.data, 7)
        before = {}
        for node in POISONED:
            for picture in partition(spec, num_partitions=NODES, partition_id=node, seed=42):
                path = label_file(picture)
                before[path] = path.read_text()
                rows = [row.split(" ", 1) for row in before[path].splitlines()]
                given = [f"{self.exchanged.get(kind, kind)} {box}\n" for kind, box in rows]
                path.write_text("".join(given))
        try:
            yield
        finally:
            for path, text in before.items():
                path.write_text(text)


def tell(story: Story, champion: str, *, poisoned: str, honest: str, folder: Path) -> str:
    """Tell it from the champion on, with settings for the two sessions.

    Returns why the candidate of the poisoned one was refused.
    """
    manager = story.manager
    said = story.keeper.command(
        *("fl-app", "promote", champion, "--name", NAME, "--by", "Ada", "--note", "the first one"),
        cwd=folder,
    )
    assert f"Version {champion} of story is in Production now." in said.stdout

    # A candidate that poisoned nodes made worse in one class is refused.
    with story.poisoned():
        story.train(poisoned)
    refused = manager.get_version(manager.get_latest_version() or "")
    assert refused.stage is Stage.STAGING
    assert refused.tags["approval"] == "none"
    assert "more than 0.1000 of mAP50 is lost" in refused.tags["reason"]

    # A better one passes the gates, and waits.
    story.train(honest)
    waits = manager.get_latest_version(Stage.STAGING)
    assert waits is not None
    assert manager.get_version(waits).tags["approval"] == "pending"
    assert manager.get_latest_version(Stage.PRODUCTION) == champion
    assert "beats production's" in manager.get_version(waits).tags["reason"]

    live_and_fall(story, champion, waits, folder)
    return str(refused.tags["reason"])


def live_and_fall(story: Story, champion: str, waits: str, folder: Path) -> None:
    """Approve on the page, do badly, come back, and find what was altered."""
    manager, home = story.manager, story.home
    with served(story.keeper, folder) as server, chromium() as browser:
        # In production things are well, day by day.
        for day in range(10):
            healthy = server.post("production_metrics", accuracy=0.9 + 0.002 * (day % 3))
            assert healthy["version"] == champion

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
        assert answers[-1]["production"] == champion
        assert len(answers) > 1  # one bad report may be noise
        assert manager.get_latest_version(Stage.PRODUCTION) == champion
        assert manager.get_version(waits).tags["probation"] == "failed"
        (request,) = MonitorStore(default_url(home), NAME).requests.history()
        assert f"version {waits}" in str(request["reason"])

        # The ledger tells all of it, and verifies.
        moves = [e for e in manager.history() if e.op not in ("stage", "lease")]
        assert [(str(e.op), e.version, e.actor) for e in moves] == [
            ("promote", champion, "Ada"),
            ("promote", waits, "Grace"),
            ("rollback", champion, "probation"),
        ]
        assert manager.verify() == len(manager.history())
        visit.page.goto(server.url)
        ledger = visit.page.inner_text("#ledger")
        assert all(word in ledger for word in ("Ada", "Grace", "better in every class"))

        # One altered byte is found, by the page and by the doctor.
        alter_one_byte(home / "mlflow.db", "better in every class")
        with pytest.raises(JournalError):
            story.manager.verify()
        visit.page.goto(server.url)
        assert "entry" in visit.page.inner_text("#ledger").lower()
    examined = story.keeper.command("fl-app", "doctor", "--name", NAME, cwd=folder, ok=False)
    assert examined.returncode == 1
    assert "WRONG" in examined.stdout


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
