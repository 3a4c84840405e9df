# SPDX-License-Identifier: Apache-2.0
"""The data summary of the shipped app: a node's pictures and labels as rows."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from flwr.app import Context
from flwr.clientapp.typing import Mod

from fl_app.client.data import NodeData
from fl_app.client.mods.data_summary import NODE_KEY, data_summary_mod, node_folder
from fl_app.client.summary.picture_statistics import box_statistics, file_key, pixel_statistics
from fl_app.client.summary.rows import KeyedRows
from fl_app.config import ClientConfig
from fl_models.pictures import label_file, usable_boxes
from fl_registry import app_home


def picture_summaries(config: ClientConfig, data: NodeData) -> Mod:
    """Return the mod that adds counts of this node's new pictures to a train reply."""
    rows = picture_rows(data)
    return data_summary_mod(
        lambda message, context: rows,
        folder=lambda context: reference_folder(context, config),
        epsilon=config.summary_epsilon or None,
    )


def picture_rows(data: NodeData) -> KeyedRows:
    """Return pictures as rows: eight statistics of the pixels, and three of the labels."""
    paths, spec = [*data.train, *data.holdout], data.spec

    def read(which: Sequence[int]) -> dict[str, np.ndarray]:
        some = [paths[index] for index in which]
        # Labels and not detections: a model that is trained detects other things each round, which
        # is no drift.
        boxes = [usable_boxes(path, spec.nc) for path in some]
        return {**pixel_statistics(some), **box_statistics(boxes, spec.names)}

    return KeyedRows([file_key(path, label_file(path)) for path in paths], read)


def reference_folder(context: Context, config: ClientConfig) -> Path:
    """Return the folder of this node's reference: one for each model, data set and partition."""
    if NODE_KEY in context.node_config:
        return node_folder(context)
    share = (config.data, config.partitioning, config.alpha, config.seed)
    node = (config.partition_id, config.num_partitions)
    about = repr((*share, *node, context.run_config.get("registered-model-name")))
    key = hashlib.sha256(about.encode()).hexdigest()[:16]
    return app_home(config.home or None) / "summaries" / key
