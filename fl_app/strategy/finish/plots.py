# SPDX-License-Identifier: Apache-2.0
"""The picture of a session's metrics over its rounds."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from fl_app.strategy.records import SessionReport


def plot_metrics(report: SessionReport, folder: Path) -> Iterable[Path]:
    """Draw each metric over the steps, staged versions marked, into ``metrics.png``.

    A metric by class, such as ``mAP50/fish``, is a thin line below ``mAP50``.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    parts = [name for name in report.history if name.rpartition("/")[0] in report.history]
    names = sorted(report.history.keys() - set(parts))
    if not names:
        return []
    figure = Figure(figsize=(7, 2.2 * len(names)), layout="constrained")
    FigureCanvasAgg(figure)
    staged = [r.round for r in report.rounds if r.stage != "None" and r.version is not None]
    rows = figure.subplots(len(names), squeeze=False, sharex=True)[:, 0]
    for axes, name in zip(rows, names, strict=True):
        for part in (part for part in parts if part.rpartition("/")[0] == name):
            axes.plot(*zip(*report.history[part], strict=True), color="0.7", linewidth=0.7)
        steps, values = zip(*report.history[name], strict=True)
        axes.plot(steps, values, marker="o", markersize=3)
        for step in staged:
            axes.axvline(step, color="0.85", zorder=0)
        axes.set_title(name, loc="left", fontsize=9)
        axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_xlabel("round (grey: the version went to Staging)")
    path = folder / "metrics.png"
    figure.savefig(path, dpi=110)
    return [path]
