# SPDX-License-Identifier: Apache-2.0
"""The plot of a session's metrics, and how plots and files are logged to its MLflow run."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from fl_app.strategy.records import Artifacts, SessionReport
from fl_registry import StoreUnavailable, Tracker
from fl_registry.redaction import one_line

logger = logging.getLogger("flwr.fl_app")


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


def log_artifacts(report: SessionReport, tracker: Tracker, artifacts: Sequence[Artifacts]) -> None:
    """Have the plots and files of a session made, and log them to its MLflow run.

    One that cannot be made or stored is left out with a warning: the versions are worth more.

    Raises
    ------
    StoreUnavailable
        MLflow does not answer; all are logged again then.
    """
    for make in artifacts:
        try:
            with tempfile.TemporaryDirectory(prefix="fl-app-") as folder:
                for path in make(report, Path(folder)):
                    tracker.log_artifact(path)
        except StoreUnavailable:
            raise
        except Exception as error:  # noqa: BLE001 - the user's code, or a full disk
            name = getattr(make, "__name__", type(make).__name__)
            logger.warning("%s is not logged: %s", name, one_line(error))
