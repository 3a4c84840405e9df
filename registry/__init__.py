# SPDX-License-Identifier: Apache-2.0
"""Model versions, their stages and the tracking of runs, in MLflow or in memory.

Importing this imports neither MLflow nor torch.
"""

from __future__ import annotations

from registry.compression import HalfCopy
from registry.errors import (
    ArtifactError,
    InvalidMetric,
    InvalidName,
    LeaseLost,
    ModelBusy,
    RegistryError,
    StageError,
    StoreUnavailable,
    UnknownVersion,
)
from registry.experiment_tracking import FederatedLearningTracker
from registry.gates import (
    AtLeast,
    AtMost,
    BeatsChampion,
    BestSoFar,
    Finite,
    NoRegression,
    decide_stage,
)
from registry.home import app_home
from registry.journal import JournalError
from registry.lease import Lease
from registry.memory import InMemoryModelStore, InMemoryTracker
from registry.model_manager import ModelManager
from registry.moves import Drift, Stage
from registry.paired import ExampleScores
from registry.records import (
    Decision,
    Evidence,
    Gate,
    ModelStore,
    ModelVersion,
    Policy,
    Results,
    Tracker,
    Verdict,
)
from registry.retention import PruneReport
from registry.serving import Serving, torch_serving
from registry.tenure import Tenure, tenures
from registry.writer import Writer

__all__ = [
    "ArtifactError",
    "AtLeast",
    "AtMost",
    "BeatsChampion",
    "BestSoFar",
    "Decision",
    "Drift",
    "Evidence",
    "ExampleScores",
    "FederatedLearningTracker",
    "Finite",
    "Gate",
    "HalfCopy",
    "InMemoryModelStore",
    "InMemoryTracker",
    "InvalidMetric",
    "InvalidName",
    "JournalError",
    "Lease",
    "LeaseLost",
    "ModelBusy",
    "ModelManager",
    "ModelStore",
    "ModelVersion",
    "NoRegression",
    "Policy",
    "PruneReport",
    "RegistryError",
    "Results",
    "Serving",
    "Stage",
    "StageError",
    "StoreUnavailable",
    "Tenure",
    "Tracker",
    "UnknownVersion",
    "Verdict",
    "Writer",
    "app_home",
    "decide_stage",
    "tenures",
    "torch_serving",
]
