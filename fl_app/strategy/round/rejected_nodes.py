# SPDX-License-Identifier: Apache-2.0
"""Whose replies did not count in a round, how often in a row, and who is told of it."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Literal

from fl_app.events import RejectedReply
from fl_app.strategy.round.replies import Screened

logger = logging.getLogger("flwr.fl_app")

Phase = Literal["train", "evaluate"]

TOO_OFTEN = 3
"""Replies in a row that did not count, after which a node is reported."""
REJECTED = "rejected"
"""Tag of a version: the nodes whose replies did not count in its round."""
MAX_NODES = 20
"""Nodes that the tag names."""


@dataclass
class RejectedNodes:
    """The nodes of a session whose replies did not count.

    Attributes
    ----------
    in_a_row : dict[tuple[str, str], int]
        How often in a row, by phase and node id; nodes whose last reply counted are not in it.
    this_round : tuple[RejectedReply, ...]
        What was noted since the round began.
    """

    in_a_row: dict[tuple[Phase, str], int] = field(default_factory=dict)
    this_round: tuple[RejectedReply, ...] = ()

    def note(
        self,
        phase: Phase,
        server_round: int,
        screened: Screened,
        harmful: Mapping[str, str] | None = None,
    ) -> None:
        """Count and log the replies of a phase that did not count; training begins a round."""
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
            found = RejectedReply(node, phase, bad[node], count)
            self.this_round += (found,)
            logger.warning("round %d: node %s is rejected: %s", server_round, node, found.as_line())
            if count == TOO_OFTEN:
                logger.warning("node %s keeps failing: look at it, or leave it out", node)


def rejected_tag(nodes: Iterable[RejectedReply]) -> dict[str, str]:
    """The version tag that names the nodes; those with most in a row first, no tag for none."""
    rows = sorted(map(asdict, nodes), key=lambda row: -int(row["in_a_row"]))
    return {REJECTED: json.dumps(rows[:MAX_NODES])} if rows else {}


def read_rejected(tags: Mapping[str, str]) -> list[RejectedReply]:
    """What a version's tags tell of the nodes that were rejected in its round."""
    try:
        return [
            RejectedReply(str(r["node_id"]), r["phase"], str(r["reason"]), int(r["in_a_row"]))
            for r in json.loads(tags.get(REJECTED, "[]"))
        ]
    except (ValueError, TypeError, KeyError):  # anybody may write tags
        return []
