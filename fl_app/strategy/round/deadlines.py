# SPDX-License-Identifier: Apache-2.0
"""How long a round waits for nodes to be there.

How long it waits for answers is the ``timeout`` of Flower's own loop.
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
"""How long a round waits for as many nodes as its strategy asks for."""
IN_VAIN = 2
"""Questions for nodes before a further one means that the answers were not enough."""


class NodeDeadline(GridAround):
    """A Grid for one ``configure_train`` or ``configure_evaluate``, which may not wait for ever.

    Flower's strategies ask for the nodes each second until there are enough, with no end. Here an
    answer after the deadline that brings no more nodes than those before it is an error instead.
    Nodes that come and go do not move the deadline. Everything else goes to the Grid inside.

    Parameters
    ----------
    grid : Grid
        The Grid inside.
    strategy : Strategy
        Who asks; read for the message, to say how many nodes it needs.
    phase : "train" | "evaluate"
        What the nodes are wanted for.
    seconds : float
        How long the strategy may ask, from its first question on.
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
        found = list(super().get_node_ids())
        self._note(len(found))
        return found

    def get_nodes(self) -> Iterable[NodeInfo]:
        """Return the connected nodes."""
        found = list(super().get_nodes())
        self._note(len(found))
        return found

    def _note(self, count: int) -> None:
        """Count an answer; raise if it comes too late and is not more than the ones before."""
        if not self._counts:
            self._began = self._clock()
            self._since = datetime.now(UTC).isoformat(timespec="seconds")
        # The first answer is what Flower computes its sample's size from, and waits for after.
        in_vain = self._counts[1:]
        self._counts.append(count)
        late = self._clock() - self._began >= self._seconds
        if late and len(self._counts) > IN_VAIN and count <= max(in_vain):
            raise TooFewNodesError(self._why(count))

    def _why(self, count: int) -> str:
        needed = required_nodes(self._strategy, self._phase, self._counts[0])
        wanted = "more" if needed is None else str(needed)
        return (
            f"Too few nodes to {self._phase} since {self._since}: after "
            f"{self._clock() - self._began:.0f} s {count} connected, {wanted} needed, never more "
            f"than {max(self._counts)} at once; start SuperNodes, let the strategy ask for fewer "
            "(min-nodes), or wait longer (node-wait-timeout)."
        )


def required_nodes(strategy: Strategy, phase: Phase, connected: int) -> int | None:
    """Return how many nodes a strategy of Flower's waits for, or None for another's.

    Parameters
    ----------
    strategy : Strategy
        The strategy, or one that wraps it and calls it ``strategy``.
    phase : "train" | "evaluate"
        What for.
    connected : int
        Nodes that were there when it began; it may want a share of them.
    """
    inner: object = strategy
    while not hasattr(inner, "min_available_nodes") and hasattr(inner, "strategy"):
        inner = inner.strategy
    least = getattr(inner, "min_available_nodes", None)
    if least is None:
        return None
    share = int(connected * getattr(inner, f"fraction_{phase}", 0.0))
    return max(int(least), share, int(getattr(inner, f"min_{phase}_nodes", 0)))
