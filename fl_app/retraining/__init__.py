# SPDX-License-Identifier: Apache-2.0
"""When to train again, and the loop that does."""

from fl_app.retraining.api import create_trigger_api
from fl_app.retraining.api_server import ApiServer, serve_api
from fl_app.retraining.degradation import BestMinusThreshold, CappedCusum, DegradationRule
from fl_app.retraining.drift import DriftCheck, DriftSettings, FeatureDrift
from fl_app.retraining.loop import train_and_retrain
from fl_app.retraining.manager import RetrainingManager
from fl_app.retraining.policy import RetrainPolicy, Situation, decide
from fl_app.retraining.probation_state import ProbationSettings, ProductionReport
from fl_app.retraining.probation_view import ReportAnswer
from fl_app.retraining.probation_watch import Probation
from fl_app.retraining.schedule import Cron, Every, Schedule
from fl_app.retraining.store import MonitorStore
from fl_app.retraining.triggers import Outcome, RetrainRequest, TriggerKind
from fl_app.retraining.two_sample import DataComparison, FeatureComparison, check_data_drift

__all__ = [
    "ApiServer",
    "BestMinusThreshold",
    "CappedCusum",
    "Cron",
    "DataComparison",
    "DegradationRule",
    "DriftCheck",
    "DriftSettings",
    "Every",
    "FeatureComparison",
    "FeatureDrift",
    "MonitorStore",
    "Outcome",
    "Probation",
    "ProbationSettings",
    "ProductionReport",
    "ReportAnswer",
    "RetrainPolicy",
    "RetrainRequest",
    "RetrainingManager",
    "Schedule",
    "Situation",
    "TriggerKind",
    "check_data_drift",
    "create_trigger_api",
    "decide",
    "serve_api",
    "train_and_retrain",
]
