# SPDX-License-Identifier: Apache-2.0
"""The YOLO model, its data and its evaluation; imports neither Flower nor MLflow."""

import os

# Read by Ultralytics while it is imported: no DNS look-ups, no pip, no analytics, no banners.
os.environ.setdefault("YOLO_OFFLINE", "true")
os.environ.setdefault("YOLO_AUTOINSTALL", "false")
os.environ.setdefault("YOLO_VERBOSE", "false")
