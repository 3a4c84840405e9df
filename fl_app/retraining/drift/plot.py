# SPDX-License-Identifier: Apache-2.0
"""The plot and the table of a session's drift, for its MLflow run."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from fl_app.retraining.drift.state import DriftCheck, DriftState, FeatureDrift
from fl_app.retraining.manager import RetrainingManager

SHOWN = 3
"""Features whose distributions are plotted."""
NAMED = 8
"""Features whose evidence is named in the legend."""


def drift_artifacts(manager: RetrainingManager) -> Callable[[object, Path], Iterable[Path]]:
    """Return an entry of ``LifecycleStrategy(artifacts=[…])``, called at the end of a session."""

    def draw(report: object, folder: Path) -> Iterable[Path]:
        state = manager.drift
        last = state.last
        if last is None:
            return []
        return [_draw(state, last, folder / "drift.png"), _table(last, folder / "drift.csv")]

    return draw


def _draw(state: DriftState, last: DriftCheck, path: Path) -> Path:
    """Plot the evidence over time, and for some features the last check against the baselines."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 6.5), layout="constrained")
    grid = figure.add_gridspec(2, SHOWN, height_ratios=[1.2, 1])
    axes = figure.add_subplot(grid[0, :])
    checks = range(state.checks - len(state.history) + 1, state.checks + 1)
    for number, drift in enumerate(_strongest(last)):
        label = str(drift.feature)
        values: list[Any] = [evidence.get(label, np.nan) for _, evidence in state.history]
        named = {"label": label} if number < NAMED else {"color": "0.8", "zorder": 0}
        axes.plot(checks, np.maximum(values, 1e-2), marker="o", markersize=3, **named)
    axes.axhline(last.height, color="red", linestyle="--", label="alarm, for the mean of all")
    axes.set(yscale="log", ylabel="evidence of drift", xlabel="check")
    axes.locator_params(axis="x", integer=True)
    axes.legend(fontsize=8, ncols=3)
    place = {feature: number for number, feature in enumerate(state.features)}
    window = state.recent[-1]
    for column, drift in enumerate(_strongest(last)[:SHOWN]):
        axes = figure.add_subplot(grid[1, column])
        now, expected = (counts[place[drift.feature]] for counts in (window.now, window.expected))
        bins = np.arange(1, len(now) + 1) / len(now)
        axes.plot(bins, np.cumsum(expected) / expected.sum(), color="0.6", label="reference")
        axes.plot(bins, np.cumsum(now) / now.sum(), label="now")
        axes.set_title(f"{drift.feature}: effect {drift.effect:.2f}", loc="left", fontsize=9)
        axes.set_xlabel("bins of the nodes' references")
        if column == 0:
            axes.set_ylabel("share of rows")
            axes.legend(fontsize=8)
    figure.savefig(path, dpi=110)
    return path


def _strongest(last: DriftCheck) -> list[FeatureDrift]:
    """Return all features, the strongest evidence first."""
    return sorted(last.features, key=lambda drift: -drift.evidence)


def _table(last: DriftCheck, path: Path) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["feature", "direction", "effect", "evidence", "p", "nodes_moved", "drifted"])
        for each in _strongest(last):
            numbers = [f"{number:.4g}" for number in (each.effect, each.evidence, each.p)]
            drifted = "yes" if each in last.drifted else "no"
            rows.writerow([each.feature, each.direction, *numbers, each.nodes_moved, drifted])
    return path
