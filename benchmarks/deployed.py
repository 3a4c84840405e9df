# SPDX-License-Identifier: Apache-2.0
"""A round over a real SuperLink: arrays packed into one, and nodes that have torch loaded already.

In the first row one SuperNode sends back at once what it got, 12 MB in 355 arrays, the number that
a YOLOv8n has. In the second two SuperNodes train the shipped app's YOLOv8n on 64 pictures of 64
pixels each. Each figure is the median of the rounds of several runs, in turn.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

from support.deployment import deployment
from support.flower import OWN_ENVIRONMENT, ROOT, Flower
from support.small_apps import small_app

from benchmarks.table import Row, parser, report
from fl_app.client.generated_shapes import shapes_data
from fl_registry import ModelManager

ROUNDS, REPEATS = 3, 3
"""Measured rounds of a run, and runs of each side."""


def wire_app(folder: Path, *, nodes: int, floats: int, rounds: int) -> Path:
    """Make the app whose nodes send back at once what they got."""
    config = f"nodes = {nodes}\nfloats = {floats}\nrounds = {rounds}\n"
    config += 'bare = false\npack = false\ntold = ""'
    return small_app(
        folder, "wire", server="wire_app:server", client="wire_app:client", config=config
    )


def told_by(flower: Flower, app: Path, link: str, **chosen: bool) -> dict[str, Any]:
    """Run that app once, with these settings; return what it told."""
    told = flower.folder / "told.json"
    settings = [f"{name}={str(value).lower()}" for name, value in chosen.items()]
    config = " ".join([*settings, f'told="{told}"'])
    words = ("flwr", "run", str(app), link, "--stream", "--run-config", config)
    printed = flower.command(*words, cwd=flower.folder, timeout=1200).stdout
    if not told.exists():
        raise RuntimeError(printed[-4000:])
    found: dict[str, Any] = json.loads(told.read_text())
    told.unlink()
    return found


def in_turn(seconds: Callable[[bool], list[float]]) -> tuple[list[float], list[float]]:
    """Seconds of the rounds of both sides, ours first."""
    taken: dict[bool, list[float]] = {True: [], False: []}
    for number in range(REPEATS):
        for ours in (True, False) if number % 2 else (False, True):
            found = seconds(ours)
            print("ours" if ours else "peer", found, flush=True)
            taken[ours] += found
    return taken[True], taken[False]


def packed_row() -> Row:
    """A round that sends a model there and back, packed or not."""
    with tempfile.TemporaryDirectory() as name:
        flower = Flower(Path(name) / "flower", OWN_ENVIRONMENT)
        app = wire_app(Path(name) / "app", nodes=1, floats=3_000_000, rounds=ROUNDS + 2)

        def seconds(packed: bool) -> list[float]:
            return list(told_by(flower, app, link, pack=packed)["seconds"][1:])

        with deployment(flower, [Path(name)], supernode="torch") as link:
            ours, peer = in_turn(seconds)
    what = "a round over a SuperLink, 12 MB in 355 arrays, packed, s"
    return Row(what, ours, "as Flower sends them", peer)


def shipped_seconds(warm: bool) -> list[float]:
    """Seconds between the versions of one run of the shipped app, without the first two."""
    with tempfile.TemporaryDirectory() as name:
        flower = Flower(Path(name) / "flower", OWN_ENVIRONMENT)
        data = shapes_data(Path(name), train=64, val=32, image_size=64)
        config = f'data="{data}" image-size=64 min-nodes=2 num-server-rounds={ROUNDS + 2}'
        with deployment(flower, [data, data], supernode="torch" if warm else "plain") as link:
            words = ("flwr", "run", str(ROOT), link, "--stream", "--run-config", config)
            printed = flower.command(*words, cwd=ROOT).stdout
        found = ModelManager(home=flower.fl_app_home).client.search_model_versions()
    moments = sorted(version.creation_timestamp / 1000 for version in found)
    if len(moments) != ROUNDS + 2:
        raise RuntimeError(printed[-4000:])
    return [after - before for before, after in pairwise(moments)][1:]


def warm_row() -> Row:
    """A round of the shipped app, by nodes of either kind."""
    ours, peer = in_turn(shipped_seconds)
    what = "a round of the shipped app, two SuperNodes of fl-app supernode, s"
    return Row(what, ours, "flower-supernode", peer)


ROWS = {"packed": packed_row, "warm": warm_row}


def main() -> None:
    """Print the table, and write its rows where ``--json`` says."""
    options = parser(__doc__)
    options.add_argument("--only", choices=ROWS)
    given = options.parse_args()
    report((ROWS[name]() for name in ([given.only] if given.only else ROWS)), given.json)


if __name__ == "__main__":
    main()
