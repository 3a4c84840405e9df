# SPDX-License-Identifier: Apache-2.0
"""Grids around Flower's own: streamed replies, packed models, and a deadline for nodes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from typing import Any, TypeVar

from flwr.app import Error, Message
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from fl_app.flower_internals import ErrorCode, NodeInfo, Run, grid_kind
from fl_app.strategy.errors import TooFewNodesError
from fl_app.strategy.round.screening import Phase, with_content
from fl_app.wire.packing import Known, pack, unpack
from fl_registry.redaction import one_line

FIRST_PAUSE, USUAL_PAUSE, LAST_PAUSE, GROWTH = 0.1, 0.5, 3.0, 1.5
"""Seconds between polls for replies: at first, in the long run, and at most; and their growth."""
APART = 1 / 30
"""Seconds between polls for each pending node, so that many nodes do not overload a SuperLink."""
CONNECTION = ("httpx", "httpcore")
"""Packages whose errors are those of the connection; all others are those of a reply."""
NODE_WAIT_SECONDS = 600.0
"""Seconds for which a round waits for as many nodes as its strategy needs."""
MIN_POLLS = 2
"""Polls for nodes after which another one means that there were too few."""

Node = TypeVar("Node", int, NodeInfo)


class GridAround(Grid):
    """Forwards everything to another Grid.

    Parameters
    ----------
    grid : Grid
        The Grid inside.
    """

    def __init__(self, grid: Grid) -> None:
        self._grid = grid

    def get_node_ids(self) -> Iterable[int]:
        """Return the ids of the connected nodes."""
        return self._grid.get_node_ids()

    def get_nodes(self) -> Iterable[NodeInfo]:
        """Return the connected nodes."""
        return self._grid.get_nodes()

    @property
    def run(self) -> Run:
        """The run of the Grid inside."""
        return self._grid.run

    def set_run(self, run: Run) -> None:
        """Set the run of the Grid inside."""
        self._grid.set_run(run)

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        """Create a message as the Grid inside does."""
        return self._grid.create_message(*args, **kwargs)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Push messages to the Grid inside."""
        return self._grid.push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Pull messages from the Grid inside."""
        return self._grid.pull_messages(message_ids)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Send messages over the Grid inside and return the replies."""
        return self._grid.send_and_receive(messages, timeout=timeout)


class OneByOne(GridAround):
    """Streams replies as they arrive, with an error in place of one that cannot be unpacked.

    Flower's own Grids return all replies when the last one is there, so that all are in memory at
    once. They unpack all arrived replies together, so that a single one that cannot be unpacked
    ends the run; here each is pulled alone. The deadline is measured by a monotonic clock: Flower's
    own loop loses all replies if the system clock is set forward.

    Parameters
    ----------
    grid : Grid
        The Grid inside.
    packed : bool
        Send each model as one array, for nodes with the mod
        `fl_app.client.mods.packing.pack_arrays`; their packed replies are unpacked.
    usual, apart : float
        Seconds between polls for replies, and the minimum for each pending node.
    clock, sleep : Callable
        Seconds that never go back, and a pause of some.
    """

    def __init__(
        self,
        grid: Grid,
        *,
        packed: bool = False,
        usual: float = USUAL_PAUSE,
        apart: float = APART,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        super().__init__(grid)
        self._packed, self._usual, self._apart = packed, usual, apart
        self._clock, self._sleep = clock, sleep

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Send messages; return those replies, once each, that come within ``timeout`` seconds."""
        sent, known = list(messages), Known()
        if self._packed:
            sent = [with_content(message, pack(message.content, known)) for message in sent]
        ids = list(self._grid.push_messages(sent))
        waiting = {str(i): message for i, message in zip(ids, sent, strict=False) if i}
        return self._arriving(waiting, self._clock(), timeout)

    def _arriving(
        self, waiting: dict[str, Message], began: float, timeout: float | None
    ) -> Iterator[Message]:
        pause = FIRST_PAUSE
        while waiting:
            # Look once more after the end: what came in time may have waited for the reader.
            is_over = timeout is not None and self._clock() - began >= timeout
            for message_id in list(waiting):
                for reply in self._pull(message_id, waiting[message_id]):
                    waiting.pop(message_id, None)
                    yield reply
                    del reply  # free its memory before the next one is pulled
            if is_over:
                return
            if waiting:
                self._sleep(min(max(pause, len(waiting) * self._apart), LAST_PAUSE))
                pause = min(pause * GROWTH, self._usual)

    def _pull(self, message_id: str, request: Message) -> list[Message]:
        try:
            return [_received(m, request) for m in self._grid.pull_messages([message_id])]
        except Exception as error:
            package = type(error).__module__.partition(".")[0]
            if isinstance(error, OSError) or package in CONNECTION:
                raise
            reason = one_line(f"its reply cannot be unpacked: {type(error).__name__}: {error}")
            return [Message(Error(ErrorCode.MESSAGE_UNAVAILABLE, reason), reply_to=request)]


def _received(reply: Message, request: Message) -> Message:
    if reply.has_content():
        return with_content(reply, unpack(reply.content, request.content))
    # For a lost node the SuperLink replies with its own id, which would not say which node it was.
    lost = reply.metadata.src_node_id != request.metadata.dst_node_id
    return Message(reply.error, reply_to=request) if lost else reply


def streaming_grid(grid: Grid, *, packed: bool = False) -> Grid:
    """Return a Grid that streams replies; one that is not Flower's is returned as it is.

    With ``packed``, models are packed for a SuperLink's network.
    """
    match grid_kind(grid):
        case "superlink":
            return OneByOne(grid, packed=packed)
        case "simulation":  # polls are no requests there
            return OneByOne(grid, usual=FIRST_PAUSE, apart=0.0)
    return grid


class NodeDeadline(GridAround):
    """A Grid for one ``configure_train`` or ``configure_evaluate``, with a deadline for nodes.

    Flower's strategies poll for nodes each second until there are enough, without an end. Here a
    poll after the deadline that returns no more nodes than earlier ones raises an error. Nodes that
    connect and disconnect do not move the deadline. How long a round waits for replies is the
    ``timeout`` of Flower's own loop.

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
        self._strategy, self._phase, self._seconds = strategy, phase, seconds
        self._clock = clock
        self._counts: list[int] = []
        self._began = 0.0
        self._since = ""

    def get_node_ids(self) -> Iterable[int]:
        """Return the ids of the connected nodes."""
        return self._in_time(super().get_node_ids())

    def get_nodes(self) -> Iterable[NodeInfo]:
        """Return the connected nodes."""
        return self._in_time(super().get_nodes())

    def _in_time(self, connected: Iterable[Node]) -> list[Node]:
        """Count a poll; raise if it is too late and returned no more nodes than earlier ones."""
        nodes = list(connected)
        if not self._counts:
            self._began = self._clock()
            self._since = datetime.now(UTC).isoformat(timespec="seconds")
        # Flower computes the size of its sample from the first poll, and waits only after it.
        earlier = self._counts[1:]
        self._counts.append(len(nodes))
        waited = self._clock() - self._began
        if waited < self._seconds or len(self._counts) <= MIN_POLLS or len(nodes) > max(earlier):
            return nodes
        needed = required_nodes(self._strategy, self._phase, self._counts[0])
        raise TooFewNodesError(
            f"Too few nodes to {self._phase} since {self._since}: after {waited:.0f} s "
            f"{len(nodes)} connected, {'more' if needed is None else needed} needed, never more "
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
