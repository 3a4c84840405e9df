# SPDX-License-Identifier: Apache-2.0
"""When to train again, and the loop that does."""

from fl_app.retraining.loop import train_and_retrain
from fl_app.retraining.manager import RetrainingManager
from fl_app.retraining.policy import RetrainPolicy, Suppressed, decide
from fl_app.retraining.triggers import BestMinusThreshold, RetrainRequest, TriggerKind

__all__ = [
    "BestMinusThreshold",
    "RetrainPolicy",
    "RetrainRequest",
    "RetrainingManager",
    "Suppressed",
    "TriggerKind",
    "decide",
    "train_and_retrain",
]
