# SPDX-License-Identifier: Apache-2.0
"""Whose replies did not count in a round, how often in a row, and who is told of it."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Literal

from fl_app.events import SetAside
from fl_app.strategy.round.replies import Screened

logger = logging.getLogger("flwr.fl_app")

Phase = Literal["train", "evaluate"]

TOO_OFTEN = 3
"""Replies in a row that did not count, after which a node is reported."""
SET_ASIDE = "set_aside"
"""Tag of a version: the nodes whose replies did not count in its round."""
MAX_NODES = 20
"""Nodes that the tag names."""


@dataclass
class SetAsideNodes:
    """The nodes of a session whose replies did not count.

    Attributes
    ----------
    in_a_row : dict[tuple[str, str], int]
        How often in a row, by phase and node id; nodes whose last reply counted are not in it.
    this_round : tuple[SetAside, ...]
        What was noted since the round began.
    """

    in_a_row: dict[tuple[Phase, str], int] = field(default_factory=dict)
    this_round: tuple[SetAside, ...] = ()

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
        bad = {**screened.set_aside, **(harmful or {})}
        for node in screened.nodes:
            if node not in bad:
                self.in_a_row.pop((phase, node), None)
                continue
            count = self.in_a_row.get((phase, node), 0) + 1
            self.in_a_row[phase, node] = count
            found = SetAside(node, phase, bad[node], count)
            self.this_round += (found,)
            logger.warning("round %d: node %s is set aside: %s", server_round, node, found.told())
            if count == TOO_OFTEN:
                logger.warning("node %s keeps failing: look at it, or leave it out", node)


def set_aside_tag(nodes: Iterable[SetAside]) -> dict[str, str]:
    """The version tag that names the nodes; those with most in a row first, no tag for none."""
    rows = sorted(map(asdict, nodes), key=lambda row: -int(row["in_a_row"]))
    return {SET_ASIDE: json.dumps(rows[:MAX_NODES])} if rows else {}


def read_set_aside(tags: Mapping[str, str]) -> list[SetAside]:
    """What a version's tags tell of the nodes that were set aside in its round."""
    try:
        return [
            SetAside(str(r["node_id"]), r["phase"], str(r["reason"]), int(r["in_a_row"]))
            for r in json.loads(tags.get(SET_ASIDE, "[]"))
        ]
    except (ValueError, TypeError, KeyError):  # anybody may write tags
        return []
