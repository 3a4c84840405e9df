# SPDX-License-Identifier: Apache-2.0
"""How far one node of ten moves a session's model, metric, loss and decisions, by what it says.

Each row is a lie around a strategy: the largest of the distances of the model, of the metric and of
the loss of training from those of the session without the lie, each in its own scale. The goal is
two tenths, and that all versions come to the same stages. ``named`` says whether the log names it.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from flwr.app.message import arrayrecord
from flwr.supercore.task_identity import TaskIdentity
from support.liars import LIES, NODES, STRATEGIES, Session, session

from benchmarks.table import Row, parser, report

SHARE = 2 / len(NODES)


def distance(told: Session, usual: Session) -> float:
    """Return the largest distance, in the scales of what is compared; infinity without a round."""
    if len(told.metric) != len(usual.metric) or len(told.loss) != len(usual.loss):
        return float("inf")
    return max(
        float(np.abs(told.model - usual.model).max()) / max(1.0, float(np.abs(usual.model).max())),
        float(np.abs(np.subtract(told.metric, usual.metric)).max()),
        float(np.abs(np.subtract(told.loss, usual.loss)).max()) / max(usual.loss),
    )


def measure() -> Iterator[Row]:
    """A row for each lie and strategy."""
    logging.getLogger("flwr").setLevel(logging.CRITICAL)
    logging.getLogger("flwr.fl_app").setLevel(logging.INFO)  # in which the node is named
    logging.getLogger("flwr.fl_app").propagate = False
    arrayrecord.gc = SimpleNamespace(collect=lambda: 0)  # Flower's takes most of the time
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 7, 1
    with tempfile.TemporaryDirectory(prefix="fl-app-bench-") as folder:
        for inside, make in STRATEGIES.items():
            usual = session(make, Path(folder) / inside)
            for name, lie in LIES.items():
                liar = 1 if len(name) % 2 else len(NODES)
                told = session(make, Path(folder) / f"{inside} {name}", lie, liar)
                found, same = distance(told, usual), told.stages == usual.stages
                met = found <= SHARE and same
                facts = f"{'same' if same else 'OTHER'} stages{', named' if told.named else ''}"
                yield Row(f"{inside}: {name} ({facts})", found, goal=SHARE, met=met)


if __name__ == "__main__":
    report(measure(), parser(__doc__).parse_args().json)
