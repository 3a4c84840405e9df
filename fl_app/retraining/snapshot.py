# SPDX-License-Identifier: Apache-2.0
"""What the monitor knows, told to any process: by itself where it runs, else by its memory."""

from __future__ import annotations

from dataclasses import dataclass

from fl_app.retraining.drift.check import DriftCheck
from fl_app.retraining.drift.monitor import kept_check
from fl_app.retraining.manager import RetrainingManager


@dataclass(frozen=True)
class Standing:
    """What the monitor knows, in whatever process it runs.

    Attributes
    ----------
    best, current : float | None
        Best and last score since the baseline was set.
    threshold : float
        Lasting fall of the score that asks for retraining.
    drift : DriftCheck | None
        What the last round with summaries of data showed.
    """

    best: float | None
    current: float | None
    threshold: float
    drift: DriftCheck | None


def standing(manager: RetrainingManager) -> Standing:
    """What the monitor knows: from itself while it runs here, else from what it kept."""
    if manager.monitoring:
        best, current = manager.best_accuracy, manager.current_accuracy
        return Standing(best, current, manager.accuracy_threshold, manager.drift.last)
    state = manager.store.load_state()
    if not state:
        return Standing(None, None, manager.accuracy_threshold, None)
    rule, threshold = state["rule"]["state"], state["rule"]["settings"][1]
    return Standing(rule["best"], rule["current"], threshold, kept_check(state["drift"]))
