# SPDX-License-Identifier: Apache-2.0
"""What a round costs while the MLflow server fails, in six ways, through a proxy.

The server fails from round 2 of 20 on and is well again once the last round is closed. Measured is
Flower's thread: how much longer rounds take than while nothing fails, and how long it then takes
until all rounds are in MLflow. The peer is one call of MLflow's own client with its defaults to an
address where nobody listens; it takes four minutes, and is measured with ``--peer`` only.
"""

from __future__ import annotations

import logging
import math
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))

from support.outages import FAULTS, Outage, OutageProxy, proxied, session
from support.registry_servers import mlflow_server

from benchmarks.table import Row, parser, report

ROUNDS, TRAINING = 20, 0.2
ADDED, DRAINED = 1.0, 60.0


def percentile(values: list[float], share: float) -> float:
    """The smallest value that at least this share of all are not above."""
    return sorted(values)[math.ceil(share * len(values)) - 1]


def run(proxy: OutageProxy, folder: Path, fault: str) -> Outage:
    """A session of 20 rounds with a fault."""
    home = folder / fault
    home.mkdir()
    return session(proxy, home, f"model-{fault}", fault=fault, rounds=ROUNDS, training=TRAINING)


def rows_of(fault: str, seen: Outage, well: float) -> Iterator[Row]:
    """The table's rows on one fault."""
    added = percentile(seen.seconds[1:], 0.95) - well
    lost = ROUNDS - len(set(seen.rounds))
    in_order = seen.rounds == list(range(1, ROUNDS + 1)) and seen.steps == list(range(ROUNDS + 1))
    name = f"{fault}: added to a round, 95th percentile"
    yield Row(name, added, goal=ADDED, met=added <= ADDED)
    drained = seen.drained <= DRAINED and in_order
    name = f"{fault}: all in MLflow, in order, after"
    yield Row(name, seen.drained, goal=DRAINED, met=drained)
    yield Row(f"{fault}: rounds lost", lost, goal=0, met=lost == 0)


def rows(faults: Sequence[str]) -> Iterator[Row]:
    """The table's rows on all these faults."""
    with (
        tempfile.TemporaryDirectory() as name,
        mlflow_server(Path(name)) as address,
        proxied(address) as proxy,
    ):
        run(proxy, Path(name), "well")  # imports and the first tables are not a round
        (Path(name) / "well").rename(Path(name) / "first")
        well = percentile(run(proxy, Path(name), "well").seconds[1:], 0.5)
        for fault in faults:
            yield from rows_of(fault, run(proxy, Path(name), fault), well)


def peer() -> Iterator[Row]:
    """One call of MLflow's client where nobody listens."""
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    began = time.monotonic()
    try:
        MlflowClient("http://127.0.0.1:9").log_metric("0" * 32, "m", 1.0)
    except MlflowException as error:
        print(f"MLflow's client gave up: {type(error).__name__}")
    seconds = time.monotonic() - began
    yield Row("MLflow's client with its defaults: one call, refused", seconds)


def main() -> None:
    """Print the table, and write its rows where ``--json`` says."""
    options = parser(__doc__)
    options.add_argument("--peer", action="store_true")
    options.add_argument("--fault", choices=FAULTS, action="append")
    given = options.parse_args()
    logging.disable(logging.CRITICAL)
    report(chain(rows(given.fault or FAULTS), peer() if given.peer else ()), given.json)


if __name__ == "__main__":
    main()
