# SPDX-License-Identifier: Apache-2.0
"""What the page and the command line say of a version. Pure, and imports nothing of the API."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from fl_registry.journal.entries import Entry

Row = Mapping[str, Any]
"""A version as `ModelVersion.as_row` gives it."""


def is_pending(row: Row) -> bool:
    """Return whether a version waits for approval."""
    return bool(row["stage"] == "Staging" and row["tags"].get("approval") == "pending")


def score_metric(row: Row) -> str:
    """Return the metric that gates looked at; for a version saved without gates, its first one."""
    return str(row["tags"].get("metric") or next(iter(row["metrics"]), ""))


def score_text(row: Row) -> str:
    """Return the score with its metric's name; empty where there is none."""
    metric = score_metric(row)
    value = row["metrics"].get(metric)
    return "" if value is None else f"{metric} {number_text(value)}"


def number_text(value: float) -> str:
    """Return a number with four decimals, or in four digits where it is large or small."""
    if not math.isfinite(value):
        return str(value)
    size = abs(value)
    return f"{value:.4f}" if size == 0 or 1e-3 <= size < 1e4 else f"{value:.4g}"


def why_text(row: Row, entries: Sequence[Entry]) -> str:
    """Return the gates' reason; for a version saved without gates, that of its last move.

    Parameters
    ----------
    row : Row
        The version.
    entries : Sequence[Entry]
        The journal, oldest first.
    """
    if row["tags"].get("reason"):
        return str(row["tags"]["reason"])
    last = next((e for e in reversed(entries) if e.version == row["version"]), None)
    if last is None:
        return ""
    return f"{last.reason} (by {last.actor})".strip() if last.actor else last.reason


def nodes_text(row: Row) -> str:
    """Return how many nodes and examples a version was made from; empty where it is unknown."""
    try:
        nodes = json.loads(row["tags"].get("nodes", ""))
        examples = sum(float(node["num_examples"]) for node in nodes)
    except (ValueError, TypeError, KeyError):  # anybody may write tags
        return ""
    return f"{len(nodes)} nodes with {examples:,.0f} examples"
