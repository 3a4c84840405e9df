# SPDX-License-Identifier: Apache-2.0
"""Grids around Flower's own: one that streams replies, and one that packs models."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator

from flwr.app import Error, Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid
from flwr.supercore.run import Run

from fl_app.strategy.round.metrics import brief
from fl_app.strategy.round.replies import with_content, with_error
from fl_app.wire.packing import Known, PackingError, pack, unpack

logger = logging.getLogger("flwr.fl_app")

FIRST_PAUSE, USUAL_PAUSE, LAST_PAUSE, GROWTH = 0.1, 0.5, 3.0, 1.5
"""Seconds between polls for replies: at first, in the long run, and at most; and their growth."""
APART = 1 / 30
"""Seconds between polls for each pending node, so that many nodes do not overload a SuperLink."""
CONNECTION = ("httpx", "httpcore")
"""Packages whose errors are those of the connection; all others are those of a reply."""


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

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Create a message as the Grid inside does."""
        return self._grid.create_message(content, message_type, dst_node_id, group_id, ttl)

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
    usual, apart : float
        Seconds between polls for replies, and the minimum for each pending node.
    clock, sleep : Callable
        Seconds that never go back, and a pause of some.
    """

    def __init__(
        self,
        grid: Grid,
        *,
        usual: float = USUAL_PAUSE,
        apart: float = APART,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        super().__init__(grid)
        self._usual, self._apart = usual, apart
        self._clock, self._sleep = clock, sleep

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Send messages; return those replies, once each, that come within ``timeout`` seconds."""
        sent = list(messages)
        ids = list(self._grid.push_messages(sent))
        waiting = {str(i): message for i, message in zip(ids, sent, strict=False) if i}
        return self._arriving(waiting, self._clock(), timeout)

    def _arriving(
        self, waiting: dict[str, Message], began: float, timeout: float | None
    ) -> Iterator[Message]:
        pause = FIRST_PAUSE
        while waiting and (timeout is None or self._clock() - began < timeout):
            for message_id in list(waiting):
                for reply in self._pull(message_id, waiting[message_id]):
                    waiting.pop(message_id, None)
                    yield reply
                    del reply  # free its memory before the next one is pulled
            if waiting:
                self._sleep(min(max(pause, len(waiting) * self._apart), LAST_PAUSE))
                pause = min(pause * GROWTH, self._usual)

    def _pull(self, message_id: str, request: Message) -> list[Message]:
        try:
            return [_by_its_node(m, request) for m in self._grid.pull_messages([message_id])]
        except OSError:
            raise
        except Exception as error:
            if type(error).__module__.partition(".")[0] in CONNECTION:
                raise
            reason = brief(f"its reply cannot be unpacked: {type(error).__name__}: {error}")
            return [Message(Error(ErrorCode.MESSAGE_UNAVAILABLE, reason), reply_to=request)]


def _by_its_node(reply: Message, request: Message) -> Message:
    # For a lost node the SuperLink replies with its own id, which would not say which node it was.
    if reply.has_error() and reply.metadata.src_node_id != request.metadata.dst_node_id:
        return Message(reply.error, reply_to=request)
    return reply


class Packed(GridAround):
    """Packs a model into one array, and unpacks each reply as it arrives.

    The nodes need the mod `fl_app.client.mods.packing.pack_arrays`. A reply that was not packed is
    not changed, and a malformed one becomes an error.
    """

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Send messages over the Grid inside; stream the replies."""
        known = Known()
        sent = [with_content(message, pack(message.content, known)) for message in messages]
        return map(_unpacked, self._grid.send_and_receive(sent, timeout=timeout))


def _unpacked(reply: Message) -> Message:
    if reply.has_error():
        return reply
    try:
        return with_content(reply, unpack(reply.content))
    except PackingError as error:
        return with_error(reply, ErrorCode.MESSAGE_UNAVAILABLE, f"its reply {error}")


def streaming_grid(grid: Grid, *, packed: bool = False) -> Grid:
    """Return a Grid that streams replies; one that is not Flower's is returned as it is.

    With ``packed``, models are packed for a SuperLink's network.
    """
    module = type(grid).__module__
    if module == "flwr.superlink.grid.http_grid":
        return Packed(OneByOne(grid)) if packed else OneByOne(grid)
    if module == "flwr.superlink.grid.inmemory_grid":  # polls are no requests there
        return OneByOne(grid, usual=FIRST_PAUSE, apart=0.0)
    return grid
