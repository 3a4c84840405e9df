# SPDX-License-Identifier: Apache-2.0
"""The rows of a benchmark: what they hold, how they are printed, and the file they go to."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

DERIVED: Any = object()
HEAD = f"{'ours':>11}{'peer':>11}{'ratio':>11}{'goal':>11}"


@dataclass(frozen=True)
class Row:
    """A figure of ours beside a peer's; numbers of any kind become Python's own.

    Attributes
    ----------
    ratio : float, optional
        Ours / peer_value unless it is given.
    met : bool, optional
        Whether the ratio is at most the goal unless it is given.
    """

    row: str
    ours: float
    peer: str | None = None
    peer_value: float | None = None
    ratio: float | None = field(default=DERIVED, kw_only=True)
    goal: float | None = None
    met: bool | None = field(default=DERIVED, kw_only=True)

    def __post_init__(self) -> None:
        ratio, met = self.ratio, self.met
        if ratio is DERIVED:
            ratio = self.ours / self.peer_value if self.peer_value else None
        if met is DERIVED:
            met = None if ratio is None or self.goal is None else ratio <= self.goal
        numbers = {"ours": self.ours, "peer_value": self.peer_value, "goal": self.goal}
        for name, number in {**numbers, "ratio": ratio}.items():
            object.__setattr__(self, name, None if number is None else float(number))
        object.__setattr__(self, "met", None if met is None else bool(met))

    def __str__(self) -> str:
        numbers = (self.ours, self.peer_value, self.ratio, self.goal)
        columns = "".join(" " * 11 if n is None else f"{n:11.4g}" for n in numbers)
        met = {None: "", True: "met", False: "MISSED"}[self.met]
        return f"{columns}  {met:6}  {self.row}{f' ({self.peer})' if self.peer else ''}"


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
