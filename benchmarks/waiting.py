# SPDX-License-Identifier: Apache-2.0
"""What a person waits for: the start and the end of a run, and commands that read.

The shipped app as it is, one round, each command once before it is counted. A run is at its first
message when it prints that Flower has sampled nodes; its last table is that of the versions.
Flower shows lines up to 0.7 s late. The peer of a run's end is that of an app of Flower's FedAvg
alone, by `flwr run`. The commands read 100 versions in MLflow's SQLite file; their peer is a
process that only imports what MLflow's client needs for that.
"""

from __future__ import annotations

import subprocess
import tempfile
import time
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from support.bare_app import LAST
from support.flower import COLOURS, ROOT, Flower
from support.small_apps import small_app

from benchmarks.table import Row, parser, report
from fl_registry import FederatedLearningTracker, ModelManager
from fl_registry.files.weights import save_weights

REPEATS = 5
GOALS = {"flwr run . --stream": 21.0, "fl-app run": 14.0}
"""Seconds to the first message: 0.6 and 0.4 of the 35 s that `flwr run` took on this machine."""
EXIT_GOAL, HELP_GOAL, READ_GOAL = 3.0, 0.5, 1.5
STORES = "mlflow.store.tracking.sqlalchemy_store, mlflow.store.model_registry.sqlalchemy_store"


def moments(
    flower: Flower, words: list[str], *, app: Path = ROOT, last: str = "version "
) -> tuple[float, float]:
    """Seconds to the first message of a run, and from its `last` table to its end."""
    began, first, table = time.perf_counter(), 0.0, 0.0
    with subprocess.Popen(
        words,
        cwd=app,
        env={**flower.environment, "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        for printed in process.stdout or ():
            line, now = COLOURS.sub("", printed), time.perf_counter() - began
            if "configure_train: Sampled" in line:
                first = first or now
            if line.startswith(last):
                table = now
    if process.returncode or not first or not table:
        raise RuntimeError(f"{words} ended with {process.returncode}")
    return first, time.perf_counter() - began - table


def runs() -> Iterator[Row]:
    """Runs of the shipped app, and of a bare one, in homes that have seen one."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        folder = Path(name)
        bare = small_app(
            folder / "bare", "bare", server="bare_app:server", client="bare_app:client"
        )
        _, of_bare = repeated(
            folder / "home", ["flwr", "run", ".", "--stream"], app=bare, last=LAST
        )
        for number, (command, goal) in enumerate(GOALS.items()):
            words = [*command.split(), "--run-config", "num-server-rounds=1"]
            firsts, ends = repeated(folder / f"home-{number}", words)
            yield Row(f"{command}: to the first message, s", firsts, goal=goal)
            what, peer = f"{command}: from the table to the exit, s", "an app of FedAvg alone"
            yield Row(what, ends, peer, of_bare, EXIT_GOAL, met=median(ends) <= EXIT_GOAL)


def repeated(home: Path, words: list[str], **how: Any) -> tuple[list[float], list[float]]:
    """The moments of several runs in a home, without those of the first."""
    flower = Flower(home)
    try:
        found = [moments(flower, words, **how) for _ in range(REPEATS + 1)][1:]
    finally:
        flower.stop()
    firsts, ends = zip(*found, strict=True)
    return [*firsts], [*ends]


def versions(home: Path) -> None:
    """Register 100 versions."""
    store, tracker = ModelManager(home=home), FederatedLearningTracker(home=home)
    run, path = tracker.start_run("benchmark"), home / "weights.safetensors"
    for number in range(100):
        save_weights({"layer": np.full((10, 10), float(number))}, path)
        store.save_model_version(str(path), run.info.run_id, {"mAP50": number / 100})
    tracker.end_run()


def seconds(flower: Flower, *words: str) -> float:
    """How long a command takes."""
    began = time.perf_counter()
    flower.command(*words, cwd=flower.folder)
    return time.perf_counter() - began


def commands() -> Iterator[Row]:
    """Commands that read."""
    with tempfile.TemporaryDirectory() as name:
        flower = Flower(Path(name))
        versions(flower.fl_app_home)
        usual = ["python", "-c", f"import mlflow, {STORES}"]
        goals = {"--help": HELP_GOAL, "status": READ_GOAL, "versions": READ_GOAL}
        for word, goal in goals.items():
            both = [["fl-app", word], usual]
            took = [[seconds(flower, *side) for side in both] for _ in range(REPEATS + 1)][1:]
            ours, theirs = (list(side) for side in zip(*took, strict=True))
            met, peer = median(ours) <= goal, "import of MLflow and its SQL stores"
            yield Row(f"fl-app {word}, 100 versions, s", ours, peer, theirs, goal, met=met)


def main() -> None:
    """Print the table, and write its rows where ``--json`` says."""
    options = parser(__doc__)
    parts = {"commands": commands, "runs": runs}
    options.add_argument("--part", choices=parts, action="append")
    given = options.parse_args()
    chosen = [measure for name, measure in parts.items() if name in (given.part or parts)]
    report(chain.from_iterable(measure() for measure in chosen), given.json)


if __name__ == "__main__":
    main()
