# SPDX-License-Identifier: Apache-2.0
"""The model lifecycle for Flower: the names that other apps may rely on."""

import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

# Flower runs an app bundle from its root and does not install it, so that the two packages beside
# this one are put on the path here. They come first: a bundle runs with what it was built with.
for _folder in ("models", "registry"):
    _beside = Path(__file__).parents[1] / _folder
    if (_beside / f"fl_{_folder}" / "__init__.py").is_file():
        sys.path.insert(0, str(_beside))

if TYPE_CHECKING:
    from fl_app.api import create_trigger_api
    from fl_app.retraining import RetrainingManager, check_data_drift
    from fl_app.strategy import LifecycleStrategy, RoundReport

__all__ = [
    "LifecycleStrategy",
    "RetrainingManager",
    "RoundReport",
    "check_data_drift",
    "create_trigger_api",
]
_PACKAGES = {
    "LifecycleStrategy": "strategy",
    "RetrainingManager": "retraining",
    "RoundReport": "strategy",
    "check_data_drift": "retraining",
    "create_trigger_api": "api",
}


def __getattr__(name: str) -> Any:
    """Import what is asked for: commands that need no Flower do not wait for it."""
    if name not in _PACKAGES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"fl_app.{_PACKAGES[name]}"), name)
