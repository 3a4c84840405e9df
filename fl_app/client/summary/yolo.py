# SPDX-License-Identifier: Apache-2.0
"""The data summary of the shipped app: what its nodes tell of their new pictures."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from flwr.app import Context, Message
from flwr.clientapp.typing import ClientAppCallable

from fl_app.client.data import node_pictures
from fl_app.client.mods.data_summary import NODE_KEY, data_summary_mod, node_folder
from fl_app.client.summary.picture_statistics import box_statistics, file_key, pixel_statistics
from fl_app.client.summary.rows import KeyedRows
from fl_app.config import ClientConfig
from fl_models.pictures import label_file, usable_boxes
from fl_registry import app_home


def picture_rows(message: Message, context: Context) -> KeyedRows:
    """This node's pictures as rows: eight statistics of the pixels, and what the labels say."""
    config = ClientConfig.from_run_config(context.run_config, context.node_config)
    spec, train, holdout = node_pictures(config)
    paths = [*train, *holdout]

    def read(which: Sequence[int]) -> dict[str, np.ndarray]:
        some = [paths[index] for index in which]
        boxes = [usable_boxes(path, spec.nc) for path in some]
        return {**pixel_statistics(some), **box_statistics(boxes, spec.names)}

    return KeyedRows([file_key(path, label_file(path)) for path in paths], read)


def reference_folder(context: Context) -> Path:
    """Where this node's reference is kept: one for each model, data set and partition."""
    if NODE_KEY in context.node_config:
        return node_folder(context)
    config = ClientConfig.from_run_config(context.run_config, context.node_config)
    share = (config.data, config.partitioning, config.alpha, config.seed)
    node = (config.partition_id, config.num_partitions)
    about = repr((*share, *node, context.run_config.get("registered-model-name")))
    key = hashlib.sha256(about.encode()).hexdigest()[:16]
    return app_home(config.home or None) / "summaries" / key


def tell_of_pictures(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """The mod that adds counts of this node's new pictures to a reply that is no error."""
    reply = call_next(message, context)
    if reply.has_error():
        return reply
    config = ClientConfig.from_run_config(context.run_config, context.node_config)
    if not config.data_summaries:
        return reply
    epsilon = config.summary_epsilon or None
    mod = data_summary_mod(picture_rows, folder=reference_folder, epsilon=epsilon)
    return mod(message, context, lambda message, context: reply)
