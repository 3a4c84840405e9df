# SPDX-License-Identifier: Apache-2.0
"""The version tag that names the nodes whose replies were rejected in its round. No Flower."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from pydantic import TypeAdapter, ValidationError

from fl_app.events import RejectedReply

REJECTED = "rejected"
"""Tag of a version: the nodes whose replies were rejected in its round."""
MAX_NODES = 20
"""Nodes that the tag names."""
_REPLIES = TypeAdapter(list[RejectedReply])


def rejected_tag(nodes: Iterable[RejectedReply]) -> dict[str, str]:
    """Return the version tag that names the nodes, those with most in a row first."""
    worst = sorted(nodes, key=lambda node: -node.in_a_row)[:MAX_NODES]
    return {REJECTED: _REPLIES.dump_json(worst).decode()} if worst else {}


def read_rejected(tags: Mapping[str, str]) -> list[RejectedReply]:
    """Return the nodes that were rejected in a version's round, from its tags."""
    try:
        return _REPLIES.validate_json(tags.get(REJECTED, "[]"))
    except ValidationError:  # any MLflow user may write tags
        return []
