# SPDX-License-Identifier: Apache-2.0
"""The YOLO model, its data and its evaluation; imports neither Flower nor MLflow."""
