# SPDX-License-Identifier: Apache-2.0
"""How long a round waits for enough connected nodes.

How long it waits for replies is the ``timeout`` of Flower's own loop.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Literal

from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from fl_app.strategy.errors import TooFewNodesError
from fl_app.strategy.round.grids import GridAround

Phase = Literal["train", "evaluate"]

NODE_WAIT_SECONDS = 600.0
"""Seconds for which a round waits for as many nodes as its strategy needs."""
MIN_POLLS = 2
"""Polls for nodes after which another one means that there were too few."""


class NodeDeadline(GridAround):
    """A Grid for one ``configure_train`` or ``configure_evaluate``, with a deadline for nodes.

    Flower's strategies poll for nodes each second until there are enough, without an end. Here a
    poll after the deadline that returns no more nodes than earlier ones raises an error. Nodes that
    connect and disconnect do not move the deadline.

    Parameters
    ----------
    grid : Grid
        The Grid inside.
    strategy : Strategy
        The strategy that polls; the error says how many nodes it needs.
    phase : "train" | "evaluate"
        What the nodes are needed for.
    seconds : float
        How long the strategy may poll, from its first poll on.
    clock : Callable[[], float]
        Seconds that never go back.

    Raises
    ------
    TooFewNodesError
        From ``get_node_ids`` and ``get_nodes``.
    """

    def __init__(
        self,
        grid: Grid,
        strategy: Strategy,
        *,
        phase: Phase,
        seconds: float = NODE_WAIT_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(grid)
        self._strategy = strategy
        self._phase: Phase = phase
        self._seconds = seconds
        self._clock = clock
        self._counts: list[int] = []
        self._began = 0.0
        self._since = ""

    def get_node_ids(self) -> Iterable[int]:
        """Return the ids of the connected nodes."""
        nodes = list(super().get_node_ids())
        self._note(len(nodes))
        return nodes

    def get_nodes(self) -> Iterable[NodeInfo]:
        """Return the connected nodes."""
        nodes = list(super().get_nodes())
        self._note(len(nodes))
        return nodes

    def _note(self, count: int) -> None:
        """Count a poll; raise if it is too late and returned no more nodes than earlier ones."""
        if not self._counts:
            self._began = self._clock()
            self._since = datetime.now(UTC).isoformat(timespec="seconds")
        # Flower computes the size of its sample from the first poll, and waits only after it.
        earlier = self._counts[1:]
        self._counts.append(count)
        late = self._clock() - self._began >= self._seconds
        if late and len(self._counts) > MIN_POLLS and count <= max(earlier):
            raise TooFewNodesError(self._why(count))

    def _why(self, count: int) -> str:
        needed = required_nodes(self._strategy, self._phase, self._counts[0])
        wanted = "more" if needed is None else str(needed)
        return (
            f"Too few nodes to {self._phase} since {self._since}: after "
            f"{self._clock() - self._began:.0f} s {count} connected, {wanted} needed, never more "
            f"than {max(self._counts)} at once; start SuperNodes, let the strategy need fewer "
            "(min-nodes), or wait longer (node-wait-timeout)."
        )


def required_nodes(strategy: Strategy, phase: Phase, connected: int) -> int | None:
    """Return how many nodes a strategy of Flower's waits for; None if it is not known.

    Parameters
    ----------
    strategy : Strategy
        The strategy, or one that wraps it and calls it ``strategy``.
    phase : "train" | "evaluate"
        What for.
    connected : int
        Nodes that were connected when it started, of which it may need a share.
    """
    inner: object = strategy
    while not hasattr(inner, "min_available_nodes") and hasattr(inner, "strategy"):
        inner = inner.strategy
    least = getattr(inner, "min_available_nodes", None)
    if least is None:
        return None
    share = int(connected * getattr(inner, f"fraction_{phase}", 0.0))
    return max(int(least), share, int(getattr(inner, f"min_{phase}_nodes", 0)))
