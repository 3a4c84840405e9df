# SPDX-License-Identifier: Apache-2.0
"""A round over a real SuperLink, with the model's arrays packed into one and as Flower sends them.

One SuperNode, started by ``fl-app supernode``, sends back at once what it got: 12 MB in 355 arrays,
the number that a YOLOv8n has. Each figure is the median of the rounds of several runs, in turn.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

# This folder last: else `registry` would be the benchmark of that name.
sys.path.sort(key=lambda folder: Path(folder).resolve() == Path(__file__).resolve().parent)

from e2e.deployment import deployment
from e2e.flower import OWN_ENVIRONMENT, Flower
from e2e.small_apps import small_app

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
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    target = parser.parse_args().json
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
    row: dict[str, Any] = {
        "row": "a round over a SuperLink, 12 MB in 355 arrays, packed, s",
        "ours": ours,
        "peer": "as Flower sends them",
        "peer_value": peer,
        "ratio": ours / peer,
        "goal": None,
        "met": None,
    }
    print(f"{row['row']:60} {ours:8.3f} {peer:8.3f} {ours / peer:6.3f}")
    if target:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps([row], indent=1))


if __name__ == "__main__":
    main()
