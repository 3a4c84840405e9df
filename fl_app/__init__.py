# SPDX-License-Identifier: Apache-2.0
"""The model lifecycle for Flower: the names that other apps may rely on."""

import sys
from pathlib import Path

# Flower runs an app bundle from its root and does not install it, so that the two packages beside
# this one are put on the path here. They come first: a bundle runs with what it was built with.
for _folder in ("models", "registry"):
    _beside = Path(__file__).parents[1] / _folder
    if (_beside / f"fl_{_folder}" / "__init__.py").is_file():
        sys.path.insert(0, str(_beside))

from fl_app.api import create_trigger_api  # noqa: E402 - needs the path
from fl_app.retraining import RetrainingManager, check_data_drift  # noqa: E402
from fl_app.strategy import LifecycleStrategy, RoundReport  # noqa: E402

__all__ = [
    "LifecycleStrategy",
    "RetrainingManager",
    "RoundReport",
    "check_data_drift",
    "create_trigger_api",
]
