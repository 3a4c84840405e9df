# SPDX-License-Identifier: Apache-2.0
"""Model versions, their stages and the tracking of runs, in MLflow or in memory.

Importing this imports neither MLflow nor torch.
"""

from __future__ import annotations

from fl_registry.backend import Backend, JournalStorage, NewVersion, VersionFiles
from fl_registry.errors import (
    ArtifactError,
    Gone,
    InvalidMetric,
    InvalidName,
    LeaseLost,
    ModelBusy,
    RegistryError,
    RunPurged,
    StageError,
    StoreUnavailable,
    UnknownVersion,
)
from fl_registry.files.artifacts import HalfCopy
from fl_registry.gates import gates as _gates
from fl_registry.gates.gates import *  # noqa: F403
from fl_registry.gates.results import ExampleScores, Results
from fl_registry.home import app_home
from fl_registry.journal.entries import JournalError, Tenure, tenures
from fl_registry.journal.lease import Lease, Writer
from fl_registry.memory import InMemoryModelStore, InMemoryTracker
from fl_registry.mlflow.backend import ModelManager
from fl_registry.mlflow.tracking import FederatedLearningTracker
from fl_registry.serving.mlmodel import Serving, torch_serving
from fl_registry.stages import Drift, Stage, StageMark
from fl_registry.store import ModelStore
from fl_registry.tracking import Tracker
from fl_registry.versions import ModelVersion, PruneReport

__all__ = [
    "ArtifactError",
    "Backend",
    "Drift",
    "ExampleScores",
    "FederatedLearningTracker",
    "Gone",
    "HalfCopy",
    "InMemoryModelStore",
    "InMemoryTracker",
    "InvalidMetric",
    "InvalidName",
    "JournalError",
    "JournalStorage",
    "Lease",
    "LeaseLost",
    "ModelBusy",
    "ModelManager",
    "ModelStore",
    "ModelVersion",
    "NewVersion",
    "PruneReport",
    "RegistryError",
    "Results",
    "RunPurged",
    "Serving",
    "Stage",
    "StageError",
    "StageMark",
    "StoreUnavailable",
    "Tenure",
    "Tracker",
    "UnknownVersion",
    "VersionFiles",
    "Writer",
    "app_home",
    "tenures",
    "torch_serving",
]
__all__ += _gates.__all__
__all__.sort()
