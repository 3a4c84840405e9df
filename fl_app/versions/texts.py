# SPDX-License-Identifier: Apache-2.0
"""What the page, the command line and the model card say of a version, in words. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from fl_app.versions.tags import read_nodes
from fl_registry import Stage
from fl_registry.journal.entries import Entry
from fl_registry.numbers import number_text
from fl_registry.stages import Move

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


def last_moves(entries: Iterable[Entry]) -> dict[str, Entry]:
    """Return, by version, the entry of the journal that brought it where it is now.

    Parameters
    ----------
    entries : Iterable[Entry]
        The journal, oldest first.
    """
    last: dict[str, Entry] = {}
    for entry in entries:
        if entry.op is not Move.ACKNOWLEDGE:
            last |= {each: entry for each in (entry.version, entry.displaced) if each}
    return last


def why_text(row: Row, moves: Mapping[str, Entry]) -> str:
    """Return why a version is where it is: what superseded it, then the gates' reason.

    A version saved without gates has the reason of its last move.

    Parameters
    ----------
    row : Row
        The version.
    moves : Mapping[str, Entry]
        What `last_moves` returned.
    """
    last, why = moves.get(row["version"]), str(row["tags"].get("reason", ""))
    if last is None:
        return why
    by = f" (by {last.actor})" if last.actor else ""
    if row["stage"] != Stage.ARCHIVED:
        return why or f"{last.reason}{by}".strip()
    if last.displaced == row["version"]:
        way = "rolled back to" if last.op is Move.ROLLBACK else "superseded by"
        return "; ".join(filter(None, (f"{way} {last.version}", why)))
    rejected = row["tags"].get("approval") == "rejected"
    moved = f"{'rejected' if rejected else 'archived'}{by}"
    told = last.reason if last.reason not in (why, "rejected") else ""
    return "; ".join(filter(None, (f"{moved}: {told}" if told else moved, why)))


def nodes_text(row: Row) -> str:
    """Return how many nodes and examples a version was made from; empty where it is unknown."""
    nodes = read_nodes(row["tags"])
    if not nodes:
        return ""
    return f"{len(nodes)} nodes with {sum(node['num_examples'] for node in nodes):,.0f} examples"
