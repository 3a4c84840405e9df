# SPDX-License-Identifier: Apache-2.0
"""References of nodes without a disk, which the server stores, on bins that all nodes share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from fl_app.retraining.drift.state import DriftState, NodeReference
from fl_app.wire.data_summary import PARTS, DataSummary, FeatureKind

MAX_NODES = 1_000
"""Nodes whose references are stored; the oldest references are dropped first."""


def with_references(
    state: DriftState, summaries: Sequence[DataSummary]
) -> tuple[DriftState, list[DataSummary]]:
    """Add the stored references to summaries of bare counts; a node's first summary becomes one.

    Returns
    -------
    tuple[DriftState, list[DataSummary]]
        The next state, and the summaries that have a reference to be compared with.
    """
    references, complete = dict(state.nodes), list[DataSummary]()
    for summary in summaries:
        if summary.counts.shape[1] == PARTS:
            complete.append(summary)
            continue
        known, bins = references.get(summary.node_id), summary.counts.shape[2]
        fits = (
            known is not None
            and known.counts.shape[2] == bins
            and set(summary.features) <= set(known.features)
        )
        if known is None or not fits:
            counts = summary.counts[:, 0]
            references.pop(summary.node_id, None)  # so that it becomes the newest one
            references[summary.node_id] = NodeReference(
                summary.features, np.stack([counts, counts], axis=1)
            )
        else:
            past = known.counts[known.rows_of(summary.features)]
            complete.append(_complete(summary, np.concatenate([summary.counts, past], axis=1)))
    newest = dict(list(references.items())[-MAX_NODES:])
    return replace(state, nodes=newest), complete


def grow_references(state: DriftState, summaries: Sequence[DataSummary]) -> DriftState:
    """Add bare counts to the stored references, unless the evidence says to hold them."""
    bare = [s for s in summaries if s.counts.shape[1] != PARTS and s.node_id in state.nodes]
    if state.hold or not bare:
        return state
    references = dict(state.nodes)
    for summary in bare:
        reference = references[summary.node_id]
        counts = reference.counts.copy()
        counts[reference.rows_of(summary.features), 0] += summary.counts[:, 0]
        references[summary.node_id] = replace(reference, counts=counts)
    return replace(state, nodes=references)


def _complete(summary: DataSummary, counts: np.ndarray) -> DataSummary:
    """Return the summary with these counts, and without the missing rows of complete columns."""
    rows = [
        i
        for i, feature in enumerate(summary.features)
        if feature.kind is not FeatureKind.MISSING or counts[i, :, 1].any()
    ]
    features = tuple(summary.features[i] for i in rows)
    return replace(summary, features=features, counts=counts[rows], noise=summary.noise * PARTS)
