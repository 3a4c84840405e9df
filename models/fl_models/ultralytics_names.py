# SPDX-License-Identifier: AGPL-3.0-or-later
"""The names of Ultralytics that this package uses, imported with network access turned off.

Other files import them from here, so that Ultralytics is never loaded before that.
"""

from __future__ import annotations

import os

# Read by Ultralytics while it is imported: no DNS look-ups, no pip, no analytics, no banners.
os.environ.setdefault("YOLO_OFFLINE", "true")
os.environ.setdefault("YOLO_AUTOINSTALL", "false")
os.environ.setdefault("YOLO_VERBOSE", "false")

from ultralytics.cfg import get_cfg
from ultralytics.data import YOLODataset, build_dataloader
from ultralytics.data.augment import Format
from ultralytics.engine.results import Results
from ultralytics.models.yolo.detect import DetectionValidator
from ultralytics.nn.tasks import DetectionModel
from ultralytics.utils.nms import non_max_suppression

__all__ = [
    "DetectionModel",
    "DetectionValidator",
    "Format",
    "Results",
    "YOLODataset",
    "build_dataloader",
    "get_cfg",
    "non_max_suppression",
]
