# SPDX-License-Identifier: Apache-2.0
"""The strategy and its gates, for any app with a Strategy: no YOLO, MLflow only once it is used."""

from fl_app.events import RoundReport
from fl_app.strategy.default_policy import default_policy
from fl_app.strategy.early_stopping import EarlyStopping
from fl_app.strategy.errors import MetricError, ResumeError, RunFailedError, TooFewNodesError
from fl_app.strategy.finish.evaluation import ScoredRecord
from fl_app.strategy.finish.reporting import plot_metrics
from fl_app.strategy.lifecycle import LifecycleStrategy
from fl_app.strategy.records import DataUsed, Origin, SessionReport
from fl_app.strategy.retention import Retention
from fl_app.strategy.round.averaging import EmaFedAvg, StreamingFedAvg
from fl_app.strategy.round.screening import Screening
from fl_app.strategy.setup import (
    ModelCard,
    Resume,
    RoundSettings,
    SessionSettings,
    ShadowEvaluation,
)
from fl_registry import ModelManager
from fl_registry.gates import gates as _gates
from fl_registry.gates.gates import *  # noqa: F403

__all__ = [
    "DataUsed",
    "EarlyStopping",
    "EmaFedAvg",
    "LifecycleStrategy",
    "MetricError",
    "ModelCard",
    "ModelManager",
    "Origin",
    "Resume",
    "ResumeError",
    "Retention",
    "RoundReport",
    "RoundSettings",
    "RunFailedError",
    "ScoredRecord",
    "Screening",
    "SessionReport",
    "SessionSettings",
    "ShadowEvaluation",
    "StreamingFedAvg",
    "TooFewNodesError",
    "default_policy",
    "plot_metrics",
]
__all__ += _gates.__all__
__all__.sort()
