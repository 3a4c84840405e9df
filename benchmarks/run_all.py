# SPDX-License-Identifier: Apache-2.0
"""Runs all benchmarks, one after the other; prints one table, and writes one JSON and one plot.

The figures of the documentation are filled in from that JSON: each stands between the name of its
row, ``<!-- benchmark: row (peer) -->``, and ``<!-- / -->``.

Each benchmark is a process of its own. One that fails is told of at the end; the rows that it wrote
before count, and so do the others. Both files are written anew after each benchmark, and keep what
they had of benchmarks that did not run. A failed benchmark or a missed goal ends with status 1.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

from benchmarks.table import HEAD, Row

FOLDER = Path(__file__).resolve().parent
RESULTS = FOLDER / "results"
PAGES = [FOLDER.parent / "README.md", *sorted((FOLDER.parent / "docs").glob("*.md"))]
FIGURE = re.compile(r"(<!-- (\w+): ([^>]+) -->).*?(<!-- / -->)")
LIBRARIES = ("flwr", "mlflow", "numpy", "ray", "torch", "ultralytics")


def machine() -> dict[str, Any]:
    """What figures depend on: processor, memory, system, and the libraries' versions."""
    names = Path("/proc/cpuinfo").read_text().splitlines() if sys.platform == "linux" else []
    model = [line.partition(":")[2].strip() for line in names if line.startswith("model name")]
    return {
        "cores": os.cpu_count(),
        "processor": model[0] if model else platform.processor(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9),
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
        **{name: version(name) for name in LIBRARIES},
    }


@dataclass
class Result:
    """The rows of a benchmark, and when and where it ran.

    Attributes
    ----------
    load : float
        Processes that wanted a core in the minute before.
    ended : bool
        Whether it came to its end.
    """

    rows: list[Row]
    date: str
    load: float
    machine: dict[str, Any]
    ended: bool = True


def names() -> list[str]:
    """All benchmarks."""
    return sorted({path.stem for path in FOLDER.glob("*.py")} - {"run_all", "table"})


def run(name: str) -> Result:
    """Run a benchmark, which prints its rows too."""
    date, load = time.strftime("%Y-%m-%d"), round(os.getloadavg()[0], 1)
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "rows.json"
        words = [sys.executable, "-m", f"benchmarks.{name}", "--json", str(target)]
        tests = FOLDER.parent / "tests"
        places = [str(tests), os.environ.get("PYTHONPATH", "")]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(places)}
        done = subprocess.run(words, cwd=FOLDER.parent, env=environment, check=False)
        rows = json.loads(target.read_text()) if target.is_file() else []
    ended = bool(rows) and not done.returncode
    return Result([Row(**row) for row in rows], date, load, machine(), ended)


def table(found: dict[str, Result]) -> str:
    """One line for each row: ours, the peer, their ratio, the goal and whether it is met."""
    lines = [f"{name:18} {row}" for name, result in found.items() for row in result.rows]
    return "\n".join([f"{'benchmark':18} {HEAD}", *lines])


def plot(found: dict[str, Result], path: Path) -> None:
    """Draw the ratio of each row that has one, on a logarithmic axis; 1 is the peer."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    bars = [
        (f"{name}: {row.row}"[:80], row.ratio, row.met)
        for name, result in found.items()
        for row in result.rows
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
    figure.savefig(path, dpi=80)
    plt.close(figure)


def read(folder: Path = RESULTS) -> dict[str, Result]:
    """Return the last results, by benchmark; empty if there are none."""
    path = folder / "benchmarks.json"
    told = json.loads(path.read_text()) if path.is_file() else {}
    return {
        name: Result(**{**result, "rows": [Row(**row) for row in result["rows"]]})
        for name, result in told.items()
    }


def write(found: dict[str, Result], folder: Path) -> None:
    """Write the rows of all benchmarks and the plot."""
    folder.mkdir(parents=True, exist_ok=True)
    known = dict(sorted({**read(folder), **found}.items()))
    told = {name: asdict(result) for name, result in known.items()}
    (folder / "benchmarks.json").write_text(json.dumps(told, indent=1) + "\n")
    plot(known, folder / "benchmarks.png")


def filled(text: str, found: dict[str, Result]) -> str:
    """Fill in the figures of a page: the ratio of each row, or ours if it has none.

    A row that was not measured keeps what stands there.
    """
    rows = {(name, row.name): row for name, each in found.items() for row in each.rows}

    def figure(mark: re.Match[str]) -> str:
        row = rows.get((mark[2], mark[3]))
        if row is None:
            return mark[0]
        value = float(row.ours if row.ratio is None else row.ratio)  # type: ignore[arg-type]
        return f"{mark[1]}{value:.{2 if value < 10 else 0}f}{mark[4]}"

    return FIGURE.sub(figure, text)


def main(words: Sequence[str] | None = None) -> int:
    """Run those that are named, or all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", choices=[*names(), []])
    parser.add_argument("--results", type=Path, default=RESULTS)
    given = parser.parse_args(words)
    found: dict[str, Result] = {}
    for name in given.names or names():
        print(f"\n{name}", flush=True)
        found[name] = run(name)
        write(found, given.results)
        for page in PAGES if given.results == RESULTS else ():
            page.write_text(filled(page.read_text(), found))
    print("\n" + table(found))
    failed = [name for name, result in found.items() if not result.ended]
    missed = [row.row for result in found.values() for row in result.rows if row.met is False]
    for told, bad in ("goals missed", missed), ("failed", failed):
        if bad:
            print(f"{told}: {', '.join(bad)}")
    return int(bool(failed or missed))


if __name__ == "__main__":
    sys.exit(main())
