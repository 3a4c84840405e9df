# SPDX-License-Identifier: Apache-2.0
"""CPU seconds in a store with 10,000 versions and 10,000 moves; 1,000 rounds with retention, twice.

The store is a SQLite file that is filled by SQL: saving as many versions would take an hour. CPU
seconds, since a busy machine changes them little. Commands are processes of their own; what a
server does is measured in this process, after a first time. Each figure is the median.
"""

from __future__ import annotations

import logging
import os
import resource
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks.table import Row, parser, report
from fl_registry import ModelManager
from fl_registry.files.weights import save_weights
from fl_registry.home import DEFAULT_MODEL_NAME
from fl_registry.journal.entries import (
    Entry,
    Ledger,
    Page,
    appended,
    carried_over,
    new_entry,
    read_page,
)
from fl_registry.stages import Move

VERSIONS = MOVES = 10_000
SERVED = 900
ROUNDS, SESSION, FLOATS, KEEP = 1_000, 20, 250_000, 20
WAITING, SLOW, TRAINING = 5, 40, 0.2
PAGE, CHUNK = 1_000, 5_000
IMPORTS = (
    "fl_app.cli.status",
    "fl_app.retraining.memory.requests",
    "fl_registry.mlflow.internals",
    "mlflow.store.model_registry.sqlalchemy_store",
    "mlflow.store.tracking.sqlalchemy_store",
)
"""What `fl-app status` imports where there is something to read."""
TODAY = {"promote": 0.6, "rollback": 0.3}
"""Before this benchmark was there, on the same machine."""


def fill(home: Path, versions: int, moves: int) -> None:
    """Make a store with so many versions, each with its files, and a journal with so many moves."""
    store, weights = ModelManager(home=home), home / "w.safetensors"
    save_weights({"w": np.arange(8, dtype=np.float32)}, weights)
    store.save_model_version(weights, metrics={"accuracy": 0.5}, tags={"round": "1"})
    store.promote_to_production("1")
    folder = store.weights_path("1").parent
    model_id, root = folder.parent.name, folder.parents[1]
    database = sqlite3.connect(home / "mlflow.db")

    def rows(table: str, **where: str) -> list[dict[str, object]]:
        condition = " and ".join(f"{name} = ?" for name in where)
        query = f"select * from {table} where {condition}"  # noqa: S608 - our own names
        found = database.execute(query, [*where.values()])
        names = [column[0] for column in found.description]
        return [dict(zip(names, row, strict=True)) for row in found]

    def insert(table: str, new: list[dict[str, object]]) -> None:
        places = ",".join("?" * len(new[0]))
        names = ",".join(new[0])
        values = [[*row.values()] for row in new]
        query = f"insert into {table} ({names}) values ({places})"  # noqa: S608 - our own names
        database.executemany(query, values)

    (version,) = rows("model_versions", version="1")
    (model,) = rows("logged_models", model_id=model_id)
    tags = rows("model_version_tags", version="1")
    made: dict[str, list[dict[str, object]]] = {
        name: [] for name in ("model_versions", "logged_models", "model_version_tags")
    }
    for number in range(2, versions + 1):
        new_id = f"m-{uuid.uuid4().hex}"
        target = root / new_id / "artifacts"
        target.mkdir(parents=True)
        for file in folder.iterdir():
            (target / file.name).write_bytes(file.read_bytes())
        place = str(version["source"]).replace(model_id, new_id)
        created = int(str(version["creation_time"])) + 1000 * number
        made["model_versions"].append(
            {**version, "version": number, "source": place, "storage_location": place}
            | {"creation_time": created, "current_stage": "None"}
        )
        made["logged_models"].append({**model, "model_id": new_id, "artifact_location": place})
        changed = {"model_id": new_id, "save_key": uuid.uuid4().hex, "round": str(number % 50)}
        made["model_version_tags"] += [
            {**tag, "version": number, "value": changed.get(str(tag["key"]), tag["value"])}
            for tag in tags
            if tag["key"] != "stage"
        ]
    for table, new in made.items():
        insert(table, new)
    fill_journal(database, rows, insert, moves)
    database.commit()
    database.close()


def fill_journal(
    database: sqlite3.Connection,
    rows: Callable[..., list[dict[str, object]]],
    insert: Callable[[str, list[dict[str, object]]], None],
    moves: int,
) -> None:
    """Put a journal in the place of the one that is there."""
    pages, ledger, count = list[Page](), Ledger(), 0
    while count + len(ledger.entries) < moves:
        if len(ledger.entries) >= PAGE:
            count += len(ledger.entries)
            pages.append(ledger.page)
            ledger = read_page(carried_over(ledger))
        number, state = count + len(ledger.entries), ledger.state
        first = number < SERVED
        version = str(number + 1 if first else (number * 7) % SERVED + 1)
        if version == state.production:
            version = str(int(version) % SERVED + 1)
        draft = Entry(
            Move.PROMOTE if first else Move.ROLLBACK,
            version,
            state.production or "",
            actor="policy",
            reason="x" * 80,
        )
        ledger = appended(ledger, new_entry(ledger, draft))
    pages.append(ledger.page)
    (tag,) = rows("registered_model_tags", key="journal")
    run_id = str(tag["value"])
    (run,), run_tags = rows("runs", run_uuid=run_id), rows("tags", run_uuid=run_id)
    database.execute("delete from params where run_uuid = ?", (run_id,))
    ids = [run_id, *(uuid.uuid4().hex for _ in pages[1:])]
    params = list[dict[str, object]]()
    for place, page in enumerate(pages):
        mine: dict[str, str] = {f"op.{page.first + n:06d}": t for n, t in enumerate(page.texts)}
        if place:
            insert("runs", [{**run, "run_uuid": ids[place]}])
            insert("tags", [{**each, "run_uuid": ids[place]} for each in run_tags])
            mine["before"] = ids[place - 1]
            for n in range(0, len(page.carried), CHUNK):
                mine[f"state.{n // CHUNK:03d}"] = page.carried[n : n + CHUNK]
        if place + 1 < len(pages):
            mine[f"op.{pages[place + 1].first:06d}"] = f'{{"next":"{ids[place + 1]}"}}'
        params += [{"key": k, "value": v, "run_uuid": ids[place]} for k, v in mine.items()]
    insert("params", params)
    database.execute("update registered_model_tags set value = ? where key = 'journal'", (ids[-1],))


def of_process(home: Path, *words: str, times: int = 5) -> float:
    """Return the CPU seconds of a process."""
    spent = []
    for _ in range(times):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        environment = {**os.environ, "FL_APP_HOME": str(home)}
        subprocess.run(
            [sys.executable, *words], env=environment, check=True, stdout=subprocess.DEVNULL
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        spent.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return statistics.median(spent)


def of_call(call: Callable[[], object], times: int = 5, *, first: bool = True) -> float:
    """Return the CPU seconds of a call; `first` makes one before that is not counted."""
    spent = []
    for _ in range(times + first):
        began = time.process_time()
        call()
        spent.append(time.process_time() - began)
    return statistics.median(spent[first:])


def fetched(app: Any, path: str) -> bytes:
    """Return what a server answers."""
    answer = app.get(path)
    if answer.status_code != 200:
        raise RuntimeError(f"{path}: {answer.status_code} {answer.data[:200]!r}")
    return bytes(answer.data)


def start_up(home: Path) -> Iterator[Row]:
    """What commands take that have nothing to read."""
    imports = of_process(home, "-c", "import mlflow.tracking")
    yield Row("fl-app --help", of_process(home, "-m", "fl_app.cli", "--help"), goal=0.5)
    ModelManager(home=home).list_all_versions()
    status = of_process(home, "-m", "fl_app.cli", "status")
    yield Row("fl-app status, empty store", status, "import mlflow.tracking", imports, 1.2)


def long_life(home: Path) -> Iterator[Row]:
    """What is done in a store with many versions and moves."""
    fill(home, VERSIONS, MOVES)
    yield from commands(home)
    yield from calls(home)


def commands(home: Path) -> Iterator[Row]:
    """What a command takes as a whole."""
    imports = of_process(home, "-c", f"import {', '.join(IMPORTS)}")
    status = of_process(home, "-m", "fl_app.cli", "status")
    yield Row("fl-app status", status, "its imports", imports, 1.5)


def calls(home: Path) -> Iterator[Row]:
    """What a process takes that is up already."""
    from fl_app.api import create_trigger_api
    from fl_app.retraining import MonitorStore, RetrainingManager
    from fl_app.retraining.memory.store import default_url

    store = ModelManager(home=home)
    monitor = RetrainingManager(store=MonitorStore(default_url(home), DEFAULT_MODEL_NAME))
    app = create_trigger_api(monitor, store=store, allowed_hosts={"localhost"}).test_client()
    for path in ("/", "/page/chart.svg", "/versions", "/versions?limit=20&stage=Archived"):
        yield Row(f"GET {path}", of_call(lambda path=path: fetched(app, path)), goal=0.3)
    yield Row("bytes of GET /", len(fetched(app, "/")))
    yield Row("versions --limit 20", of_call(lambda: store.list_versions(limit=20)), goal=0.3)
    yield Row("verify, whole", of_call(store.verify, 3))
    checked = of_call(lambda: store.verify(whole=False))
    yield Row("verify from where it was verified", checked, goal=0.3)
    listing = of_call(store.list_all_versions, 3)
    clean_up = of_call(lambda: store.prune(keep=10), 3)
    yield Row("prune --dry-run", clean_up, "one listing", listing, 2.0)
    numbers = iter(range(VERSIONS, SERVED, -1))
    moved = of_call(lambda: store.promote_to_production(str(next(numbers))))
    yield Row("promote", moved, "before", TODAY["promote"], 1.2)
    yield Row("rollback", of_call(store.rollback), "before", TODAY["rollback"], 1.2)


def page(home: Path) -> Iterator[Row]:
    """What the page takes at 1,000 versions, with its chart, and its first visit after a start."""
    from fl_app.api import create_trigger_api
    from fl_app.retraining import MonitorStore, RetrainingManager
    from fl_app.retraining.memory.store import default_url

    fill(home, 1000, 1000)
    store = ModelManager(home=home)
    monitor = RetrainingManager(store=MonitorStore(default_url(home), DEFAULT_MODEL_NAME))
    app = create_trigger_api(monitor, store=store, allowed_hosts={"localhost"})
    app.extensions["fl_app_reader"].warm_up()  # as `fl-app serve` does before it says its address
    client = app.test_client()

    def visit() -> None:
        text = fetched(client, "/").decode()
        picture = text.partition('<img class="chart" src="')[2].partition('"')[0]
        fetched(client, picture.replace("&amp;", "&"))

    began = time.process_time()
    visit()
    first = time.process_time() - began
    yield Row("first visit and chart, 1,000 versions", first, goal=2.0)
    yield Row("visit and chart, 1,000 versions", of_call(visit), goal=0.3)
    for path in ("/page/version?version=900", "/page/versions", "/page/live"):
        yield Row(f"GET {path}, 1,000 versions", of_call(lambda path=path: fetched(client, path)))


@dataclass
class Figures:
    """What was measured after each `SESSION` rounds, and what comes of it.

    Attributes
    ----------
    home : Path
        The folder whose size is measured.
    spent, disk, memory : list[float]
        CPU seconds of a round, MB beside the databases, MB of this process.
    """

    home: Path
    spent: list[float] = field(default_factory=list)
    disk: list[float] = field(default_factory=list)
    memory: list[float] = field(default_factory=list)
    before: float = field(default_factory=time.process_time)

    def note(self, number: int) -> None:
        """Measure after `SESSION` rounds."""
        if not number or number % SESSION:
            return
        self.spent.append((time.process_time() - self.before) / SESSION)
        sizes = list[int]()
        for path in self.home.rglob("*"):
            with suppress(OSError):  # it was removed meanwhile
                sizes.append(path.stat().st_size if path.suffix != ".db" else 0)
        self.disk.append(sum(sizes) / 1e6)
        self.memory.append(psutil.Process().memory_info().rss / 1e6)
        self.before = time.process_time()

    def rows(self, what: str, *, filled: int) -> Iterator[Row]:
        """Compare the last 100 rounds with the first 100 after the store was `filled`."""
        few = 100 // SESSION
        for name, values, usual in (
            ("CPU seconds of a round", self.spent, min),  # other processes only add to it
            ("MB on disk beside the databases", self.disk, statistics.median),
            ("MB of memory", self.memory, statistics.median),
        ):
            first, last = usual(values[filled : filled + few]), usual(values[-few:])
            yield Row(f"{name}, {what}, last 100 rounds", last, "first 100", first, 1.1)


def many_rounds(home: Path) -> Iterator[Row]:
    """Retention over many rounds: in one session, and over many sessions of some rounds each."""
    from fl_app.strategy import Retention, SessionSettings

    settings = SessionSettings(retention=Retention(keep_versions=KEEP))
    for what, rounds in ("one session", ROUNDS), ("many sessions", SESSION):
        figures = Figures(home / what)
        figures.home.mkdir()
        for _ in range(ROUNDS // rounds):
            train(figures.home, rounds, figures.note, session=settings)
        # Until then versions, and rounds that wait, are fewer than may be; all is imported.
        yield from figures.rows(f"{ROUNDS} rounds in {what}", filled=3 if rounds == ROUNDS else 1)
        size = (figures.home / "mlflow.db").stat().st_size
        yield Row(f"KB of MLflow's database for a round, {what}", size / 1e3 / ROUNDS)


def slow_worker(home: Path) -> Iterator[Row]:
    """Rounds that wait on disk while each takes the worker twice as long as the nodes."""
    from fl_app.strategy import RoundSettings, SessionSettings

    waiting = list[int]()

    def note(number: int) -> None:
        time.sleep(2 * TRAINING)
        waiting.append(len(list(home.glob("checkpoints/*/closed-*.json"))))

    limit, patience = RoundSettings(max_waiting_rounds=WAITING), SessionSettings(round_patience=0.0)
    train(home, SLOW, note, seconds=TRAINING, rounds=limit, session=patience)
    # The one that waits to be queued is on disk too.
    name = f"most rounds that wait, worker twice as slow, {SLOW} rounds"
    yield Row(name, max(waiting), "limit and one more", WAITING + 1, 1.0)


def train(
    home: Path, num_rounds: int, note: Callable[[int], None], *, seconds: float = 0.0, **more: Any
) -> None:
    """Run a session whose nodes take so many seconds together; `note` is called in the worker."""
    from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
    from flwr.serverapp.strategy import FedAvg
    from flwr.supercore.task_identity import TaskIdentity
    from support.local_grid import LocalGrid, reply

    from fl_app.strategy import LifecycleStrategy

    class Forgetful(LocalGrid):
        def send_and_receive(
            self, messages: Iterable[Message], *, timeout: float | None = None
        ) -> Iterable[Message]:
            self.sent.clear()  # or memory would grow by them
            return super().send_and_receive(messages, timeout=timeout)

    def answer(node_id: int, message: Message) -> RecordDict:
        if message.metadata.message_type != "train":
            return reply(accuracy=0.5)
        time.sleep(seconds / 3)
        arrays = message.content["arrays"].to_numpy_ndarrays()
        return reply(ArrayRecord([array + 1 for array in arrays]), loss=1.0)

    def evaluate(number: int, _: ArrayRecord) -> MetricRecord:
        note(number)
        return MetricRecord({"accuracy": 0.5 + number / 10_000})

    logging.getLogger("flwr").setLevel(logging.ERROR)
    # Flower builds no Message outside of a running task.
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 7, 1
    strategy = LifecycleStrategy(FedAvg(), metric="accuracy", home=home, artifacts=(), **more)
    model = ArrayRecord([np.zeros(FLOATS, np.float32)])
    strategy.start(Forgetful(answer), model, num_rounds=num_rounds, evaluate_fn=evaluate)


if __name__ == "__main__":
    arguments = parser(__doc__)
    arguments.add_argument("--rounds", type=int, default=ROUNDS, help="with retention on")
    parts = {part.__name__: part for part in (start_up, page, long_life, slow_worker, many_rounds)}
    arguments.add_argument("--only", choices=parts, help="one part")
    given = arguments.parse_args()
    ROUNDS = given.rounds

    def all_rows() -> Iterator[Row]:
        """Return all rows."""
        for part in parts.values() if given.only is None else [parts[given.only]]:
            with tempfile.TemporaryDirectory() as folder:
                yield from part(Path(folder))

    report(all_rows(), given.json)
