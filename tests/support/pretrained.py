# SPDX-License-Identifier: Apache-2.0
"""Genuine Ultralytics checkpoints, from packages that ship them; none is kept with the project."""

from __future__ import annotations

import os
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import pytest
from filelock import FileLock

YOLOV8N = "smartrail-obstacle-detector", "railway_obstacle_detector/best.pt"
"""A fine-tuned YOLOv8n, 6 classes, 355 arrays, 6 MB."""
YOLOV12M = "helmet-detector", "helmet_detector_pkg/weights/best.pt"
"""A YOLOv12m, 38 MB."""


@cache
def checkpoint(which: tuple[str, str] = YOLOV8N) -> Path:
    """Return the path of a checkpoint, installed once for all tests; skips where it can't be had.

    The package is unpacked into a folder of its own, so nothing of it is imported.
    """
    package, file = which
    shared = Path(tempfile.gettempdir()) / f"fl-app-pretrained-{os.getuid()}"
    shared.mkdir(mode=0o700, exist_ok=True)
    folder = shared / package
    with FileLock(shared / f"{package}.lock"):
        if not (folder / file).is_file():
            install = ["uv", "pip", "install", "--quiet", "--no-deps", "--target", folder, package]
            done = subprocess.run(install, capture_output=True, text=True, check=False)
            if done.returncode:
                pytest.skip(f"the package {package} can't be had here: {done.stderr[-200:]}")
    return folder / file
