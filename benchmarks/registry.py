# SPDX-License-Identifier: AGPL-3.0-or-later
"""What the registry costs: registering, moving, loading and listing versions of a YOLOv8n.

Each row has a peer: MLflow's own way to the same end, or the calls to MLflow that ours cannot do
without. Both sides run in turn in this process; each figure is a median, in seconds. A row that
misses its goal says so; the goals stand as they are.
"""

from __future__ import annotations

import contextlib
import gc
import io
import itertools
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import mlflow
import torch
from support.arrays import to_arrays

from benchmarks.table import Row, parser, report
from fl_models import serving
from fl_models.yolo import get_model
from fl_registry import ModelManager, Serving
from fl_registry.files.weights import save_weights

REPEATS, DEFAULT_REPEATS, PROCESS_REPEATS = 15, 5, 5
JOURNALS = (10, 100, 900)
LISTS = (10, 1_000, 5_000)
YOLO = get_model("n", 7, names=[*"abcdefg"], image_size=96).description
SERVING = Serving(Path(serving.__file__), **serving.SERVING)

OURS = (
    "import sys; from fl_registry import ModelManager; from fl_models.yolo import get_model;"
    "ModelManager(home=sys.argv[1]).load_production_model(lambda: get_model('n', 7))"
)
PEER = "import mlflow.pytorch; mlflow.pytorch.load_model('models:/peer@production')"

Work = Callable[[], object]


def build() -> torch.nn.Module:
    """The model whose weights are registered."""
    return get_model("n", 7, names=YOLO["names"])


def seconds(work: Work) -> float:
    """Wall seconds of one call, without Python's collector, which would strike either side."""
    gc.collect()
    gc.disable()  # as timeit does
    began = time.perf_counter()
    work()
    took = time.perf_counter() - began
    gc.enable()
    return took


def in_turn(ours: Work, peer: Work, repeats: int = REPEATS) -> tuple[float, float]:
    """Medians of both sides, after one call of each that does not count."""
    ours(), peer()
    pairs = [(seconds(ours), seconds(peer)) for _ in range(repeats)]
    mine, theirs = zip(*pairs, strict=True)
    return statistics.median(mine), statistics.median(theirs)


def row(name: str, values: tuple[float, float], peer: str, goal: float, *, strict: bool) -> Row:
    """One line of the table; `strict` asks for less than the goal, else it may be reached."""
    ours, theirs = values
    ratio = ours / theirs
    return Row(name, ours, peer, theirs, goal, met=ratio < goal if strict else ratio <= goal)


def register(manager: ModelManager, folder: Path) -> Iterator[Row]:
    """A file, or a module in memory, becomes a version that MLflow can serve."""
    network, number = build(), itertools.count()
    path = folder / "global.safetensors"
    save_weights(to_arrays(network), path, model=YOLO)

    def ours() -> str:
        return manager.save_model_version(
            path, metrics={"mAP50": 0.5}, tags={"round": str(next(number))}, serving=SERVING
        )

    def ours_and_file() -> str:
        save_weights(to_arrays(network), path, model=YOLO)
        return ours()

    def fastest() -> object:
        return mlflow.pytorch.log_model(
            network,
            name="model",
            registered_model_name="peer",
            pip_requirements=["torch", "ultralytics"],
            serialization_format="pickle",
        )

    def default() -> object:
        return mlflow.pytorch.log_model(
            network, name="model", registered_model_name="peer", serialization_format="pickle"
        )

    def quiet(work: Work) -> Work:
        def run() -> object:
            with contextlib.redirect_stderr(io.StringIO()):  # MLflow tells of each version there
                return work()

        return run

    best, plain = "log_model, requirements given", "log_model, requirements inferred"
    yield row("register a version", in_turn(ours, quiet(fastest)), best, 0.5, strict=False)
    both = in_turn(ours_and_file, quiet(fastest))
    yield row("register a version, its file written too", both, best, 0.5, strict=False)
    slow = in_turn(ours, quiet(default), DEFAULT_REPEATS)
    yield row("register a version", slow, plain, 0.02, strict=False)


def load(manager: ModelManager, home: Path) -> Iterator[Row]:
    """The model in production, as a module: by a manager of its own, and once more."""
    manager.promote_to_production("1")
    manager.client.set_registered_model_alias("peer", "production", "1")

    def cold() -> object:
        return ModelManager(home=home).load_production_model(build)

    def peer() -> object:
        return mlflow.pytorch.load_model("models:/peer@production")

    values = in_turn(cold, peer)
    yield row("load production, cold", values, "pytorch.load_model", 0.5, strict=False)
    values = in_turn(
        lambda: fresh_process(home, OURS), lambda: fresh_process(home, PEER), PROCESS_REPEATS
    )
    name = "load production, in a new process"
    yield row(name, values, "pytorch.load_model", 0.5, strict=False)
    manager.load_production_model(build)
    warm = statistics.median(
        seconds(lambda: manager.load_production_model(build)) for _ in range(REPEATS)
    )
    yield row("load production, warm", (warm, 1e-3), "one millisecond", 1.0, strict=True)


def fresh_process(home: Path, code: str) -> None:
    """Run `code` in a Python of its own, imports and all."""
    subprocess.run(
        [sys.executable, "-c", code, str(home)],
        check=True,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "MLFLOW_TRACKING_URI": f"sqlite:///{home / 'mlflow.db'}"},
    )


def move(home: Path, weights: Path) -> Iterator[Row]:
    """A rollback: back and forth between two versions, with a journal that grows."""
    manager, bare = ModelManager(None, "moves", home=home), ModelManager(None, "bare", home=home)
    for number in ("1", "2"):
        for each in (manager, bare):
            each.save_model_version(weights, tags={"round": number})
            each.promote_to_production(number)
    there = itertools.cycle(("1", "2"))

    def aliases() -> None:
        """What the move does to the aliases, on a model of its own: else it would be drift."""
        to = next(there)
        before = "2" if to == "1" else "1"
        bare.client.set_registered_model_alias("bare", "previous-production", before)
        bare.client.set_registered_model_alias("bare", "production", to)

    def ours() -> str:
        return manager.rollback()

    for entries in JOURNALS:
        while len(manager.history()) < entries - 1:
            ours()
        name = f"move a stage, journal of {entries}"
        yield row(name, in_turn(ours, aliases), "its two alias calls", 3.0, strict=True)


def listing(home: Path, weights: Path) -> Iterator[Row]:
    """All versions with stages and metrics; MLflow's rows have neither."""
    for count in LISTS:
        name = f"list-{count}"
        manager = ModelManager(None, name, home=home)
        first = manager.get_version(manager.save_model_version(weights, metrics={"mAP50": 0.5}))
        manager.promote_to_production(first.version)
        source = manager.client.get_model_version(name, first.version).source
        tags = {**first.tags, "stage": "None"}
        for _ in range(count - 1):
            manager.client.create_model_version(name, source, tags=tags, await_creation_for=0)

        def search(manager: ModelManager = manager, name: str = name, count: int = count) -> object:
            return manager.client.search_model_versions(f"name = '{name}'", max_results=count)

        values = in_turn(manager.list_all_versions, search)
        yield row(f"list {count:,} versions", values, "one search for as many", 1.2, strict=False)


def main() -> None:
    """Print the table, and write its rows where ``--json`` says."""
    options = parser(__doc__)
    options.add_argument("--only", choices=("register", "load", "move", "list"))
    given = options.parse_args()
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    started_in = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        # As Flower runs a ServerApp. In a folder with a uv.lock MLflow would ask uv for the
        # requirements of a model, and not load the model in a process of its own.
        os.chdir(home)
        gc.freeze()  # what was imported need not be looked through each time
        manager = ModelManager(home=home)
        mlflow.set_tracking_uri(manager.tracking_uri)  # MLflow's own functions know no other way
        experiment = manager.client.create_experiment("peer", (home / "artifacts").as_uri())
        mlflow.set_experiment(experiment_id=experiment)
        weights = home / "first.safetensors"
        save_weights(to_arrays(build()), weights, model=YOLO)
        parts: dict[str, Callable[[], Iterator[Row]]] = {
            "register": lambda: register(manager, home),
            "load": lambda: load(manager, home),
            "move": lambda: move(home, weights),
            "list": lambda: listing(home, weights),
        }
        if given.only == "load":
            register_once(manager, weights)
        chosen = [given.only] if given.only else parts
        report((found for name in chosen for found in parts[name]()), given.json)
        os.chdir(started_in)


def register_once(manager: ModelManager, weights: Path) -> None:
    """One version on each side, for a run that only loads."""
    manager.save_model_version(weights)
    mlflow.pytorch.log_model(
        build(),
        name="model",
        registered_model_name="peer",
        pip_requirements=["torch"],
        serialization_format="pickle",
    )


if __name__ == "__main__":
    main()
