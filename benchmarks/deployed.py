# SPDX-License-Identifier: Apache-2.0
"""A round over a real SuperLink, with the model's arrays packed into one and as Flower sends them.

One SuperNode, started by ``fl-app supernode``, sends back at once what it got: 12 MB in 355 arrays,
the number that a YOLOv8n has. Each figure is the median of the rounds of several runs, in turn.
"""

from __future__ import annotations

import json
import statistics
import tempfile
from pathlib import Path

from e2e.deployment import deployment
from e2e.flower import OWN_ENVIRONMENT, Flower
from e2e.small_apps import small_app

from benchmarks.table import Row, parser, report

ROUNDS, REPEATS = 3, 3
"""Measured rounds of a run, and runs of each side."""
CONFIG = f'rounds = {ROUNDS + 2}\npack = false\ntold = ""'


def seconds_of(flower: Flower, app: Path, link: str, *, packed: bool) -> list[float]:
    """Seconds of the rounds of one run, without its first."""
    told = flower.folder / "told.json"
    config = f'pack={str(packed).lower()} told="{told}"'
    words = ("flwr", "run", str(app), link, "--stream", "--run-config", config)
    printed = flower.command(*words, cwd=flower.folder).stdout
    if not told.exists():
        raise RuntimeError(printed[-4000:])
    rounds = json.loads(told.read_text())
    told.unlink()
    return list(rounds[1:])


def main() -> None:
    """Print the table, and write its rows where ``--json`` says."""
    given = parser(__doc__).parse_args()
    taken: dict[bool, list[float]] = {True: [], False: []}
    with tempfile.TemporaryDirectory() as name:
        flower = Flower(Path(name) / "flower", OWN_ENVIRONMENT)
        app = small_app(
            Path(name) / "app",
            "wire",
            server="wire_app:server",
            client="wire_app:client",
            config=CONFIG,
        )
        with deployment(flower, [Path(name)], warm=True) as link:
            for number in range(REPEATS):
                for packed in (True, False) if number % 2 else (False, True):
                    taken[packed] += seconds_of(flower, app, link, packed=packed)
    ours, peer = statistics.median(taken[True]), statistics.median(taken[False])
    what = "a round over a SuperLink, 12 MB in 355 arrays, packed, s"
    report([Row(what, ours, "as Flower sends them", peer)], given.json)


if __name__ == "__main__":
    main()
