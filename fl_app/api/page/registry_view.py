# SPDX-License-Identifier: Apache-2.0
"""The registry on the page: versions and journal in, what to show out. Pure."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

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
    "watching": "it is watched",
    "passed": "it has passed",
    "failed": "it has failed",
    "exempt": "it is not watched",
}
"""Where a version in production stands, in words."""

Row = Mapping[str, Any]
"""A version as `ModelVersion.as_row` gives it."""


@dataclass(frozen=True)
class Held:
    """A version that holds a stage, and how it came there.

    Attributes
    ----------
    version, score : str
        Its number, and its score with the metric's name.
    since : str
        When it came there, ISO-8601; empty where the journal does not say.
    by, why : str
        Who moved it there, and the reason that was given.
    gates : str
        What the gates said when it was registered.
    """

    version: str
    score: str
    since: str
    by: str
    why: str
    gates: str


@dataclass(frozen=True)
class Waiting:
    """A version that waits for a person.

    Attributes
    ----------
    version, score, gates : str
        As for what holds a stage.
    created : str
        When it was registered, ISO-8601.
    made_by : str
        The nodes that took part, in words.
    """

    version: str
    score: str
    gates: str
    created: str
    made_by: str


@dataclass(frozen=True)
class Stages:
    """What the registry holds now, newest first.

    Attributes
    ----------
    production, previous, staging : Held | None
        What is there, and what was in Production before.
    waiting : tuple[Waiting, ...]
        What waits for approval.
    targets : tuple[Held, ...]
        Versions that a rollback can bring back, the last one in Production first.
    versions : tuple[tuple[Row, str], ...]
        The newest versions, each with why it is in its stage.
    total : int
        How many there are.
    """

    production: Held | None = None
    previous: Held | None = None
    staging: Held | None = None
    waiting: tuple[Waiting, ...] = ()
    targets: tuple[Held, ...] = ()
    versions: tuple[tuple[Row, str], ...] = ()
    total: int = 0


def stages(rows: Sequence[Row], entries: Sequence[Entry]) -> Stages:
    """Sort versions (newest first) and the journal (oldest first) into what the page shows."""
    by_stage = {row["stage"]: row for row in rows}
    known = {row["version"]: row for row in rows}
    production, staging = by_stage.get("Production"), by_stage.get("Staging")
    now = production["version"] if production else ""
    served = [e.version for e in reversed(entries) if e.op in PROMOTING]
    before = [known[v] for v in dict.fromkeys(served) if v != now and v in known]
    targets = tuple(_held(row, entries, PROMOTING) for row in before[:MOST_TARGETS])
    return Stages(
        production=_held(production, entries, PROMOTING) if production else None,
        previous=targets[0] if production and targets else None,
        staging=_held(staging, entries, STAGING) if staging else None,
        waiting=tuple(_waiting(row) for row in rows if is_pending(row)),
        targets=targets if production else (),
        versions=tuple((row, why_text(row, entries)) for row in rows[:MOST_VERSIONS]),
        total=len(rows),
    )


def is_pending(row: Row) -> bool:
    """Whether a version waits for approval."""
    return bool(row["stage"] == "Staging" and row["tags"].get("approval") == "pending")


def score_metric(row: Row) -> str:
    """The metric that gates looked at; for a version saved without gates, its first one."""
    return str(row["tags"].get("metric") or next(iter(row["metrics"]), ""))


def score_text(row: Row) -> str:
    """The score with its metric's name; empty where it is not known."""
    metric = score_metric(row)
    value = row["metrics"].get(metric)
    return "" if value is None else f"{metric} {number_text(value)}"


def why_text(row: Row, entries: Sequence[Entry]) -> str:
    """What the gates said; for a version saved without gates, why it was last moved, and by whom.

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
    """A number with four digits behind the point, or fewer where it is large or small."""
    if not math.isfinite(value):
        return str(value)
    size = abs(value)
    return f"{value:.4f}" if size == 0 or 1e-3 <= size < 1e4 else f"{value:.4g}"


def _held(row: Row, entries: Sequence[Entry], moves: Sequence[str]) -> Held:
    mine = [e for e in entries if e.op in moves and e.version == row["version"]]
    last = mine[-1] if mine else None
    return Held(
        version=row["version"],
        score=score_text(row),
        since=last.time if last else "",
        by=last.actor if last else "",
        why=last.reason if last else "",
        gates=row["tags"].get("reason", ""),
    )


def _waiting(row: Row) -> Waiting:
    return Waiting(
        version=row["version"],
        score=score_text(row),
        gates=row["tags"].get("reason", ""),
        created=row["created"],
        made_by=_nodes(row["tags"].get("nodes", "")),
    )


def _nodes(text: str) -> str:
    """How many nodes and examples a version was made from; empty where its tag cannot be read."""
    try:
        nodes = json.loads(text)
        examples = sum(float(node["num_examples"]) for node in nodes)
    except (ValueError, TypeError, KeyError):  # anybody may write tags
        return ""
    return f"{len(nodes)} nodes with {examples:,.0f} examples"
