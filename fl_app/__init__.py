# SPDX-License-Identifier: Apache-2.0
"""The model lifecycle for Flower: the names that other apps may rely on."""

from fl_app.retraining import RetrainingManager, check_data_drift
from fl_app.retraining.api import create_trigger_api
from fl_app.strategy import LifecycleStrategy, RoundReport

__all__ = [
    "LifecycleStrategy",
    "RetrainingManager",
    "RoundReport",
    "check_data_drift",
    "create_trigger_api",
]
