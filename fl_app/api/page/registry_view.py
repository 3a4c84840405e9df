# SPDX-License-Identifier: Apache-2.0
"""The registry on the page: versions and journal in, what the templates show out. Pure."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from fl_registry.journal.entries import Entry

MOST_VERSIONS = 50
MOST_ENTRIES = 50
MOST_TARGETS = 20
PROMOTING = ("promote", "rollback", "adopt")
STAGING = ("stage", "restore")
MOVES = {
    "stage": "to Staging",
    "promote": "to Production",
    "archive": "archived",
    "rollback": "rolled back to",
    "restore": "back to Staging",
    "adopt": "adopted from MLflow",
    "retire": "removed for good",
    "lease": "server that writes",
    "carry": "journal continued",
}
"""The journal's moves in words."""
PHASES = {
    "watching": "watched",
    "passed": "passed",
    "failed": "failed",
    "exempt": "not watched",
}
"""The phases of a probation in words."""

Row = Mapping[str, Any]
"""A version as `ModelVersion.as_row` gives it."""


class Staged(NamedTuple):
    """A version in a stage, and the journal's entry of its move there, if there is one."""

    row: Row
    entry: Entry | None


def registry_values(rows: Sequence[Row], entries: Sequence[Entry]) -> dict[str, Any]:
    """Return what the templates show of versions (newest first) and journal (oldest first)."""
    by_stage = {row["stage"]: row for row in rows}
    by_version = {row["version"]: row for row in rows}
    production, staging = by_stage.get("Production"), by_stage.get("Staging")
    now = production["version"] if production else ""
    served = [e.version for e in reversed(entries) if e.op in PROMOTING]
    before = [by_version[v] for v in dict.fromkeys(served) if v != now and v in by_version]
    targets = before[:MOST_TARGETS] if production else []
    return {
        "production": _staged(production, entries, PROMOTING),
        "previous": _staged(targets[0] if targets else None, entries, PROMOTING),
        "staging": _staged(staging, entries, STAGING),
        "waiting": [row for row in rows if is_pending(row)],
        "targets": targets,
        "versions": [(row, why_text(row, entries)) for row in rows[:MOST_VERSIONS]],
        "total_versions": len(rows),
        "entries": entries[: -MOST_ENTRIES - 1 : -1],
        "total_entries": len(entries),
    }


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


def number_text(value: float) -> str:
    """Return a number with four decimals, or in four digits where it is large or small."""
    if not math.isfinite(value):
        return str(value)
    size = abs(value)
    return f"{value:.4f}" if size == 0 or 1e-3 <= size < 1e4 else f"{value:.4g}"


def nodes_text(row: Row) -> str:
    """Return how many nodes and examples a version was made from; empty where it is unknown."""
    try:
        nodes = json.loads(row["tags"].get("nodes", ""))
        examples = sum(float(node["num_examples"]) for node in nodes)
    except (ValueError, TypeError, KeyError):  # anybody may write tags
        return ""
    return f"{len(nodes)} nodes with {examples:,.0f} examples"


def _staged(row: Row | None, entries: Sequence[Entry], moves: Sequence[str]) -> Staged | None:
    if row is None:
        return None
    mine = (e for e in reversed(entries) if e.op in moves and e.version == row["version"])
    return Staged(row, next(mine, None))
