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
from fl_app.strategy.round.averaging import StreamingFedAvg
from fl_app.strategy.round.screening import Screening
from fl_app.strategy.setup import (
    ModelCard,
    Resume,
    RoundSettings,
    SessionSettings,
    ShadowEvaluation,
)
from fl_registry import (
    AtLeast,
    AtMost,
    BeatsChampion,
    BestSoFar,
    Finite,
    ModelManager,
    NoRegression,
    decide_stage,
)

__all__ = [
    "AtLeast",
    "AtMost",
    "BeatsChampion",
    "BestSoFar",
    "DataUsed",
    "EarlyStopping",
    "Finite",
    "LifecycleStrategy",
    "MetricError",
    "ModelCard",
    "ModelManager",
    "NoRegression",
    "Origin",
    "Resume",
    "ResumeError",
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
    "decide_stage",
    "default_policy",
    "plot_metrics",
]
