# SPDX-License-Identifier: Apache-2.0
"""Runs all benchmarks, one after the other; prints one table, and writes one JSON and one plot.

Each benchmark is a process of its own. One that fails is told of at the end; the rows that it wrote
before count, and so do the others. Both files are written anew after each benchmark.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from benchmarks.table import HEAD, Row

FOLDER = Path(__file__).resolve().parent
RESULTS = FOLDER / "results"


def names() -> list[str]:
    """All benchmarks."""
    return sorted({path.stem for path in FOLDER.glob("*.py")} - {"run_all", "table"})


def run(name: str) -> tuple[list[Row], bool]:
    """Run a benchmark, which prints its rows too; returns them, and whether it came to its end."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "rows.json"
        words = [sys.executable, "-m", f"benchmarks.{name}", "--json", str(target)]
        tests = FOLDER.parent / "tests"
        places = [str(tests), os.environ.get("PYTHONPATH", "")]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(places)}
        done = subprocess.run(words, cwd=FOLDER.parent, env=environment, check=False)
        rows = json.loads(target.read_text()) if target.is_file() else []
        return [Row(**row) for row in rows], bool(rows) and not done.returncode


def table(found: dict[str, list[Row]]) -> str:
    """One line for each row: ours, the peer, their ratio, the goal and whether it is met."""
    lines = [f"{name:12} {row}" for name, rows in found.items() for row in rows]
    return "\n".join([f"{'benchmark':12} {HEAD}", *lines])


def plot(found: dict[str, list[Row]], path: Path) -> None:
    """Draw the ratio of each row that has one, on a logarithmic axis; 1 is the peer."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    bars = [
        (f"{name}: {row.row}"[:80], row.ratio, row.met)
        for name, rows in found.items()
        for row in rows
        if row.ratio
    ]
    figure, axis = plt.subplots(figsize=(9, 1 + 0.22 * len(bars)), layout="constrained")
    colours = {None: "#8a8f98", True: "#2a7f62", False: "#c0392b"}
    for place, (_, ratio, met) in enumerate(bars):
        axis.barh(place, ratio, left=0, color=colours[met])
    axis.axvline(1, color="black", linewidth=0.8)
    axis.set_xscale("log")
    axis.set_yticks(range(len(bars)), [name for name, *_ in bars], fontsize=7)
    axis.invert_yaxis()
    axis.set_xlabel("ours / peer (green: goal met, red: missed, grey: no goal)")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def write(found: dict[str, list[Row]], folder: Path) -> None:
    """Write the rows of all benchmarks and the plot."""
    folder.mkdir(parents=True, exist_ok=True)
    told = {name: [asdict(row) for row in rows] for name, rows in found.items()}
    (folder / "benchmarks.json").write_text(json.dumps(told, indent=1))
    plot(found, folder / "benchmarks.png")


def main(words: Sequence[str] | None = None) -> int:
    """Run those that are named, or all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", choices=[*names(), []])
    parser.add_argument("--results", type=Path, default=RESULTS)
    given = parser.parse_args(words)
    found: dict[str, list[Row]] = {}
    failed = []
    for name in given.names or names():
        print(f"\n{name}", flush=True)
        found[name], ended = run(name)
        if not ended:
            failed.append(name)
        write(found, given.results)
    print("\n" + table(found))
    if failed:
        print(f"failed: {', '.join(failed)}")
    return len(failed)


if __name__ == "__main__":
    sys.exit(main())
