# SPDX-License-Identifier: Apache-2.0
"""Nodes whose replies were rejected: how often in a row, in the log and in tags."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Literal

from fl_app.events import RejectedReply
from fl_app.strategy.round.replies import ScreenedReplies

logger = logging.getLogger("flwr.fl_app")

Phase = Literal["train", "evaluate"]

TOO_OFTEN = 3
"""Rejected replies in a row after which the log warns of a node."""
REJECTED = "rejected"
"""Tag of a version: the nodes whose replies were rejected in its round."""
MAX_NODES = 20
"""Nodes that the tag names."""


@dataclass
class RejectedNodes:
    """The nodes of a session whose replies were rejected.

    Attributes
    ----------
    in_a_row : dict[tuple[str, str], int]
        How often in a row, by phase and node id; without nodes whose last reply was accepted.
    this_round : tuple[RejectedReply, ...]
        The replies rejected since the round began.
    """

    in_a_row: dict[tuple[Phase, str], int] = field(default_factory=dict)
    this_round: tuple[RejectedReply, ...] = ()

    def note(
        self,
        phase: Phase,
        server_round: int,
        screened: ScreenedReplies,
        harmful: Mapping[str, str] | None = None,
    ) -> None:
        """Count and log the rejected replies of a phase; training begins a round."""
        if phase == "train":
            self.this_round = ()
        for node, note in screened.notes.items():
            logger.info("round %d: of node %s: %s", server_round, node, note)
        bad = {**screened.rejected, **(harmful or {})}
        for node in screened.nodes:
            if node not in bad:
                self.in_a_row.pop((phase, node), None)
                continue
            count = self.in_a_row.get((phase, node), 0) + 1
            self.in_a_row[phase, node] = count
            reply = RejectedReply(node, phase, bad[node], count)
            self.this_round += (reply,)
            logger.warning("round %d: node %s is rejected: %s", server_round, node, reply.as_line())
            if count == TOO_OFTEN:
                logger.warning("node %s keeps failing: look at it, or leave it out", node)


def rejected_tag(nodes: Iterable[RejectedReply]) -> dict[str, str]:
    """Return the version tag that names the nodes, those with most in a row first."""
    rows = sorted(map(asdict, nodes), key=lambda row: -int(row["in_a_row"]))
    return {REJECTED: json.dumps(rows[:MAX_NODES])} if rows else {}


def read_rejected(tags: Mapping[str, str]) -> list[RejectedReply]:
    """Return the nodes that were rejected in a version's round, from its tags."""
    try:
        return [
            RejectedReply(str(r["node_id"]), r["phase"], str(r["reason"]), int(r["in_a_row"]))
            for r in json.loads(tags.get(REJECTED, "[]"))
        ]
    except (ValueError, TypeError, KeyError):  # any MLflow user may write tags
        return []
