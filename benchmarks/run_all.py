# SPDX-License-Identifier: Apache-2.0
"""Runs all benchmarks, one after the other; prints one table, and writes one JSON and one plot.

Each benchmark is a process of its own. One that fails is told of at the end, and the others count.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# This folder last: else `registry` would be the benchmark of that name.
sys.path.sort(key=lambda folder: Path(folder).resolve() == Path(__file__).resolve().parent)

FOLDER = Path(__file__).resolve().parent
RESULTS = FOLDER / "results"
Rows = list[dict[str, Any]]


def names() -> list[str]:
    """All benchmarks."""
    return sorted(path.stem for path in FOLDER.glob("*.py") if path.stem != Path(__file__).stem)


def run(name: str) -> Rows | None:
    """Run a benchmark, whose own table goes to the terminal; None if it fails."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "rows.json"
        words = [sys.executable, "-m", f"benchmarks.{name}", "--json", str(target)]
        tests = os.pathsep.join([str(FOLDER.parent / "tests"), os.environ.get("PYTHONPATH", "")])
        done = subprocess.run(
            words, cwd=FOLDER.parent, env={**os.environ, "PYTHONPATH": tests}, check=False
        )
        if done.returncode or not target.is_file():
            return None
        return list(json.loads(target.read_text()))


def table(found: dict[str, Rows]) -> str:
    """One line for each row: ours, the peer, their ratio, the goal and whether it is met."""
    lines = []
    for name, rows in found.items():
        for row in rows:
            values = "".join(_number(row.get(key)) for key in ("ours", "peer_value", "ratio"))
            met = {None: "", True: "met", False: "MISSED"}[row.get("met")]
            goal = _number(row.get("goal"))
            lines.append(f"{name:12} {row['row'][:60]:60} {values}{goal} {met}".rstrip())
    head = f"{'benchmark':12} {'row':60} {'ours':>11}{'peer':>11}{'ratio':>11}{'goal':>11}"
    return "\n".join([head, *lines])


def _number(value: object) -> str:
    return f"{value:11.4g}" if isinstance(value, int | float) else f"{'':11}"


def plot(found: dict[str, Rows], path: Path) -> None:
    """Draw the ratio of each row that has one, on a logarithmic axis; 1 is the peer."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    rows = [(name, r) for name, all_rows in found.items() for r in all_rows if r.get("ratio")]
    figure, axis = plt.subplots(figsize=(9, 1 + 0.22 * len(rows)), layout="constrained")
    colours = {None: "#8a8f98", True: "#2a7f62", False: "#c0392b"}
    for place, (_, row) in enumerate(rows):
        axis.barh(place, row["ratio"], left=0, color=colours[row.get("met")])
    axis.axvline(1, color="black", linewidth=0.8)
    axis.set_xscale("log")
    axis.set_yticks(range(len(rows)), [f"{n}: {r['row']}"[:80] for n, r in rows], fontsize=7)
    axis.invert_yaxis()
    axis.set_xlabel("ours / peer (green: goal met, red: missed, grey: no goal)")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def write(found: dict[str, Rows], folder: Path) -> None:
    """Write the rows of all benchmarks and the plot."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "benchmarks.json").write_text(json.dumps(found, indent=1))
    plot(found, folder / "benchmarks.png")


def main(words: Sequence[str] | None = None) -> int:
    """Run those that are named, or all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", choices=[*names(), []], default=names())
    parser.add_argument("--results", type=Path, default=RESULTS)
    given = parser.parse_args(words)
    found, failed = {}, []
    for name in given.names:
        print(f"\n{name}", flush=True)
        rows = run(name)
        if rows is None:
            failed.append(name)
        else:
            found[name] = rows
    write(found, given.results)
    print("\n" + table(found))
    if failed:
        print(f"failed: {', '.join(failed)}")
    return len(failed)


if __name__ == "__main__":
    sys.exit(main())
