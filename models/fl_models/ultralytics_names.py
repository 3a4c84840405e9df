# SPDX-License-Identifier: AGPL-3.0-or-later
"""The one door to Ultralytics: closes its network access, then hands out what we build on.

All other files import Ultralytics' names from here, so that nothing of it is loaded earlier.
"""

from __future__ import annotations

import os

# Read by Ultralytics while it is imported: no DNS look-ups, no pip, no analytics, no banners.
os.environ.setdefault("YOLO_OFFLINE", "true")
os.environ.setdefault("YOLO_AUTOINSTALL", "false")
os.environ.setdefault("YOLO_VERBOSE", "false")

from ultralytics.cfg import get_cfg
from ultralytics.data import YOLODataset, build_dataloader
from ultralytics.data.augment import Format, LetterBox
from ultralytics.engine.results import Results
from ultralytics.models.yolo.detect import DetectionValidator
from ultralytics.nn.tasks import DetectionModel
from ultralytics.utils.nms import non_max_suppression
from ultralytics.utils.ops import scale_boxes

__all__ = [
    "DetectionModel",
    "DetectionValidator",
    "Format",
    "LetterBox",
    "Results",
    "YOLODataset",
    "build_dataloader",
    "get_cfg",
    "non_max_suppression",
    "scale_boxes",
]
