# SPDX-License-Identifier: Apache-2.0
"""References of nodes without a disk, kept by the server on bins that all nodes share. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from fl_app.retraining.drift.state import DriftState
from fl_app.wire.data_summary import PARTS, DataSummary, Feature, FeatureKind

MOST_NODES = 1_000
"""Nodes whose references are kept; those that were heard first go first."""


def compare_with_kept(
    state: DriftState, summaries: Sequence[DataSummary]
) -> tuple[DriftState, list[DataSummary]]:
    """Give summaries of bare counts the reference that was kept, or make them the reference."""
    kept, whole = dict(state.nodes), list[DataSummary]()
    for summary in summaries:
        if summary.counts.shape[1] == PARTS:
            whole.append(summary)
            continue
        mine, bins = kept.get(summary.node_id), summary.counts.shape[2]
        same = mine is not None and all(
            f in mine and mine[f].shape[1] == bins for f in summary.features
        )
        if mine is None or not same:
            counts = summary.counts[:, 0]
            first = zip(summary.features, np.stack([counts, counts], axis=1), strict=True)
            kept.pop(summary.node_id, None)
            kept[summary.node_id] = dict(first)
        else:
            past = np.stack([mine[f] for f in summary.features])
            whole.append(_with_missing(summary, np.concatenate([summary.counts, past], axis=1)))
    newest = dict(list(kept.items())[-MOST_NODES:])
    return replace(state, nodes=newest), whole


def let_in(state: DriftState, summaries: Sequence[DataSummary]) -> DriftState:
    """Add bare counts to the references that were kept, unless the evidence says to hold."""
    bare = [s for s in summaries if s.counts.shape[1] != PARTS and s.node_id in state.nodes]
    if state.hold or not bare:
        return state
    kept = dict(state.nodes)
    for summary in bare:
        mine: dict[Feature, np.ndarray] = dict(kept[summary.node_id])
        for feature, counts in zip(summary.features, summary.counts[:, 0], strict=True):
            grown, baseline = mine[feature]
            mine[feature] = np.stack([grown + counts, baseline])
        kept[summary.node_id] = mine
    return replace(state, nodes=kept)


def _with_missing(summary: DataSummary, counts: np.ndarray) -> DataSummary:
    """Leave features of missing rows out where there never were any."""
    worth = [
        i
        for i, feature in enumerate(summary.features)
        if feature.kind is not FeatureKind.MISSING or counts[i, :, 1].any()
    ]
    features = tuple(summary.features[i] for i in worth)
    return replace(summary, features=features, counts=counts[worth], noise=summary.noise * PARTS)
