# SPDX-License-Identifier: Apache-2.0
"""The rows of a benchmark: what they hold, how they are printed, and the file they go to."""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

DERIVED: Any = object()
HEAD = f"{'ours':>11}{'peer':>11}{'ratio':>11}{'goal':>11}{'n':>4}{'spread':>8}"

Figures = float | Sequence[float]
"""One figure, or one of each run: a row then has their median, their number and their spread."""


@dataclass(frozen=True)
class Row:
    """A figure of ours beside a peer's; numbers of any kind become Python's own.

    Attributes
    ----------
    ratio : float, optional
        Ours / peer_value unless it is given.
    met : bool, optional
        Whether the ratio, or our figure if there is none, is at most the goal unless it is given.
    n : int
        Runs of ours.
    spread, peer_spread : list[float], optional
        The lowest and the highest figure of several runs.
    """

    row: str
    ours: Figures
    peer: str | None = None
    peer_value: Figures | None = None
    ratio: float | None = field(default=DERIVED, kw_only=True)
    goal: float | None = None
    met: bool | None = field(default=DERIVED, kw_only=True)
    n: int = field(default=1, kw_only=True)
    spread: list[float] | None = field(default=None, kw_only=True)
    peer_spread: list[float] | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        for name, spread in ("ours", "spread"), ("peer_value", "peer_spread"):
            figures = getattr(self, name)
            if isinstance(figures, Sequence):
                object.__setattr__(self, name, statistics.median(map(float, figures)))
                object.__setattr__(self, spread, [float(min(figures)), float(max(figures))])
                if name == "ours":
                    object.__setattr__(self, "n", len(figures))
        ratio, met = self.ratio, self.met
        if ratio is DERIVED:
            ratio = self.ours / self.peer_value if self.peer_value else None
        if met is DERIVED:
            measured = self.ours if self.peer_value is None else ratio
            met = None if measured is None or self.goal is None else measured <= self.goal
        numbers = {"ours": self.ours, "peer_value": self.peer_value, "goal": self.goal}
        for name, number in {**numbers, "ratio": ratio}.items():
            object.__setattr__(self, name, None if number is None else float(number))
        object.__setattr__(self, "met", None if met is None else bool(met))

    def __str__(self) -> str:
        numbers = (self.ours, self.peer_value, self.ratio, self.goal)
        columns = "".join(" " * 11 if n is None else f"{n:11.4g}" for n in numbers)
        columns += f"{self.n:4}{self._width():>8}"
        met = {None: "", True: "met", False: "MISSED"}[self.met]
        return f"{columns}  {met:6}  {self.name}"

    @property
    def name(self) -> str:
        """The row with its peer."""
        return f"{self.row} ({self.peer})" if self.peer else self.row

    def _width(self) -> str:
        """From the lowest to the highest figure of ours, in percent of the median."""
        if not self.spread or not self.ours:
            return ""
        return f"{100 * (self.spread[1] - self.spread[0]) / abs(float(self.ours)):.0f}%"


def parser(description: str | None) -> argparse.ArgumentParser:
    """The arguments that each benchmark has: where its rows go."""
    made = argparse.ArgumentParser(description=description)
    made.add_argument("--json", type=lambda name: Path(name).resolve(), help="file for the rows")
    return made


def report(rows: Iterable[Row], path: Path | None) -> None:
    """Print each row as it comes, and write all there are by then: what fails later keeps them."""
    print(HEAD, flush=True)
    found = []
    for row in rows:
        print(row, flush=True)
        found.append(asdict(row))
        if path:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(found, indent=1))
