# SPDX-License-Identifier: Apache-2.0
"""Tags of a version that hold more than a word: who took part, what was decided. No Flower.

Any user of MLflow may write tags, so what cannot be read counts as missing.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, NotRequired, TypeVar

from pydantic import TypeAdapter, ValidationError
from typing_extensions import TypedDict

from fl_app.events import RejectedReply

if TYPE_CHECKING:
    from fl_registry import Verdict

T = TypeVar("T")

REJECTED = "rejected"
"""Tag of a version: the nodes whose replies were rejected in its round."""
NODES = "nodes"
"""Tag of a version: the nodes that took part, with their examples and the digests of their data."""
NODE_SCORES = "node_scores"
"""Tag of a version: its metric on each node that evaluated it."""
GATES = "gates"
"""Tag of a version: what each gate said."""
MAX_NODES = 20
"""Nodes that the tag of rejected ones names."""


class Node(TypedDict):
    """A node that took part in a version."""

    node_id: str
    num_examples: float
    data_digest: NotRequired[str]


class GateResult(TypedDict):
    """What a gate said; see `fl_registry.Verdict`."""

    gate: str
    ok: bool
    reason: str
    note: NotRequired[str]


_REPLIES = TypeAdapter(list[RejectedReply])
_NODES = TypeAdapter(list[Node])
_GATES = TypeAdapter(list[GateResult])


def _listed(adapter: TypeAdapter[list[T]], text: str) -> list[T]:
    try:
        return adapter.validate_json(text)
    except ValidationError:
        return []


def rejected_tag(nodes: Iterable[RejectedReply]) -> dict[str, str]:
    """Return the version tag that names the nodes, those with most in a row first."""
    worst = sorted(nodes, key=lambda node: -node.in_a_row)[:MAX_NODES]
    return {REJECTED: _REPLIES.dump_json(worst).decode()} if worst else {}


def read_rejected(tags: Mapping[str, str]) -> list[RejectedReply]:
    """Return the nodes that were rejected in a version's round, from its tags."""
    return _listed(_REPLIES, tags.get(REJECTED, "[]"))


def gates_tag(verdicts: Iterable[Verdict]) -> dict[str, str]:
    """Return the version tag with what each gate said."""
    rows = [
        {"gate": each.gate, "ok": each.passed, "reason": each.reason, "note": each.note}
        for each in verdicts
    ]
    return {GATES: json.dumps(rows)}


def read_gates(tags: Mapping[str, str]) -> list[GateResult]:
    """Return what each gate said of a version, from its tags."""
    return _listed(_GATES, tags.get(GATES, "[]"))


def read_nodes(tags: Mapping[str, str]) -> list[Node]:
    """Return the nodes that took part in a version, from its tags."""
    return _listed(_NODES, tags.get(NODES, "[]"))


def read_node_scores(tags: Mapping[str, str]) -> dict[str, float]:
    """Return the scores of nodes in a version's tags, by `NodeScore.key`."""
    try:
        return {str(k): float(v) for k, v in json.loads(tags.get(NODE_SCORES, "{}")).items()}
    except (ValueError, TypeError, AttributeError):
        return {}
