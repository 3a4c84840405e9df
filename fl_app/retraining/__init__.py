# SPDX-License-Identifier: Apache-2.0
"""When to train again, and the loop that does."""

from fl_app.retraining.api import create_trigger_api
from fl_app.retraining.api_server import ApiServer, serve_api
from fl_app.retraining.degradation import BestMinusThreshold, CappedCusum, DegradationRule
from fl_app.retraining.loop import train_and_retrain
from fl_app.retraining.manager import RetrainingManager
from fl_app.retraining.policy import RetrainPolicy, Situation, decide
from fl_app.retraining.schedule import Cron, Every, Schedule
from fl_app.retraining.store import MonitorStore
from fl_app.retraining.triggers import Outcome, RetrainRequest, TriggerKind

__all__ = [
    "ApiServer",
    "BestMinusThreshold",
    "CappedCusum",
    "Cron",
    "DegradationRule",
    "Every",
    "MonitorStore",
    "Outcome",
    "RetrainPolicy",
    "RetrainRequest",
    "RetrainingManager",
    "Schedule",
    "Situation",
    "TriggerKind",
    "create_trigger_api",
    "decide",
    "serve_api",
    "train_and_retrain",
]
