# SPDX-License-Identifier: Apache-2.0
"""When to train again, and the loop that does."""

from fl_app.retraining.degradation import BestMinusThreshold, CappedCusum, DegradationRule
from fl_app.retraining.drift.check import DriftSettings
from fl_app.retraining.drift.state import DriftCheck, FeatureDrift
from fl_app.retraining.drift.two_sample import DataComparison, FeatureComparison, check_data_drift
from fl_app.retraining.loop import train_and_retrain
from fl_app.retraining.manager import RetrainingManager
from fl_app.retraining.memory.store import MonitorStore
from fl_app.retraining.probation.probation import Probation
from fl_app.retraining.probation.reports import ProbationSettings, ProductionReport, ReportAnswer
from fl_app.retraining.requests import Outcome, RetrainPolicy, RetrainRequest, TriggerKind
from fl_app.retraining.schedule import Cron, Every

__all__ = [
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
    "TriggerKind",
    "check_data_drift",
    "train_and_retrain",
]
