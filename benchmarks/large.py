# SPDX-License-Identifier: Apache-2.0
"""A round with a model of 0.5 GB over a real SuperLink, wrapped beside bare FedAvg.

Two SuperNodes send back at once what they got, in 355 arrays as Flower sends them. Each version is
logged to MLflow in SQLite and registered. The sides run in turn, each run with a SuperLink of its
own; a figure is that of one round, without the first of each run. Memory is the peak of the
ServerApp's process; a model is 0.5 GB.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from support.deployment import deployment
from support.flower import OWN_ENVIRONMENT, Flower

from benchmarks.deployed import told_by, wire_app
from benchmarks.table import Row, parser, report

GIGABYTES, NODES, ROUNDS, REPEATS = 0.5, 2, 5, 2
TIME_GOAL, MEMORY_GOAL = 1.05, 1.5


def measure(gigabytes: float, repeats: int) -> Iterator[Row]:
    """Rows of one size of the model."""
    floats = int(gigabytes * 1e9 / 4)
    found: dict[bool, list[dict[str, Any]]] = {True: [], False: []}
    for number in range(repeats):
        for bare in sorted(found, reverse=bool(number % 2)):
            with tempfile.TemporaryDirectory() as name:  # messages of a run stay in the SuperLink
                flower = Flower(Path(name) / "flower", OWN_ENVIRONMENT)
                app = wire_app(Path(name) / "app", nodes=NODES, floats=floats, rounds=ROUNDS)
                with deployment(flower, [Path(name)] * NODES, supernode="torch") as link:
                    found[bare].append(told_by(flower, app, link, bare=bare))
            print("bare" if bare else "ours", found[bare][-1], flush=True)
    ours, peer = (
        [seconds for each in found[bare] for seconds in each["seconds"][1:]]
        for bare in (False, True)
    )
    what = f"a round with {gigabytes} GB, {NODES} nodes, SuperLink"
    yield Row(f"{what}, s", ours, "bare FedAvg", peer, TIME_GOAL)
    more = [
        (one["peak"] - statistics.median(each["peak"] for each in found[True])) / gigabytes / 1e9
        for one in found[False]
    ]
    yield Row(f"{what}, memory beyond bare FedAvg's, models", more, goal=MEMORY_GOAL)


def main() -> None:
    """Print the table, and write its rows where ``--json`` says."""
    options = parser(__doc__)
    options.add_argument("--gigabytes", type=float, default=GIGABYTES)
    options.add_argument("--repeats", type=int, default=REPEATS)
    given = options.parse_args()
    report(measure(given.gigabytes, given.repeats), given.json)


if __name__ == "__main__":
    main()
