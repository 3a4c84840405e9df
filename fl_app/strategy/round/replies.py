# SPDX-License-Identifier: Apache-2.0
"""The replies of a round, screened one by one as they arrive."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from flwr.app import ArrayRecord, Error, Message, RecordDict

from fl_app.strategy.round.metrics import brief

Check = Callable[[RecordDict], tuple[RecordDict, list[str]]]
"""Returns the accepted content of a reply and the faults of the rest, or raises `ReplyError`."""

SILENT = "it sent no answer in time"
"""Why a node is rejected that sent neither a result nor an error."""


class ReplyError(ValueError):
    """A reply is rejected; the text says why."""


class OtherArraysError(ReplyError):
    """A reply does not have the arrays of the model that the node was sent."""


@dataclass(frozen=True)
class ScreenedReplies:
    """The replies of a round, and which of them are rejected.

    Attributes
    ----------
    replies : tuple[Message, ...]
        Replies for the inner strategy, in the order of arrival: accepted replies and errors. Those
        that were streamed have no arrays any more.
    nodes : tuple[str, ...]
        The ids of all nodes that answered.
    rejected : Mapping[str, str]
        By node id why its reply is rejected; errors are included.
    notes : Mapping[str, str]
        By node id what was left out of an accepted reply, or was clipped.
    other_arrays : frozenset[str]
        Nodes whose replies are rejected since their arrays are not the model's.
    """

    replies: tuple[Message, ...]
    nodes: tuple[str, ...]
    rejected: Mapping[str, str] = field(default_factory=dict)
    notes: Mapping[str, str] = field(default_factory=dict)
    other_arrays: frozenset[str] = frozenset()

    @property
    def good(self) -> list[Message]:
        """The accepted replies."""
        return [message for message in self.replies if message.has_content()]

    def without(self, nodes: Collection[str]) -> list[Message]:
        """Return all replies but those of some nodes."""
        return [m for m in self.replies if str(m.metadata.src_node_id) not in nodes]

    def with_silent(self, requested: Iterable[str]) -> ScreenedReplies:
        """Return the same with the requested nodes rejected that sent no reply in time."""
        silent = sorted({*requested} - {*self.nodes})
        return replace(
            self,
            nodes=(*self.nodes, *silent),
            rejected={**self.rejected, **dict.fromkeys(silent, SILENT)},
        )


class ArrivingReplies(Iterable[Message]):
    """Screens replies as they arrive; they are streamed one by one, or returned together.

    Iteration streams the replies for the inner strategy and stores them without their arrays, so
    that no two models of nodes need to be in memory at once.

    Parameters
    ----------
    replies : Iterable[Message]
        The replies, which may not have arrived yet.
    check : Callable
        Checks the content of a reply; no error that it raises ends the round.
    requested : Iterable[str]
        The ids of the nodes from which replies are expected.
    """

    def __init__(
        self, replies: Iterable[Message], check: Check, requested: Iterable[str] = ()
    ) -> None:
        self._replies = iter(replies)
        self._requested = tuple(requested)
        self._check = check
        self._passed: list[Message] = []
        self._nodes: dict[str, None] = {}
        self._rejected: dict[str, str] = {}
        self._notes: dict[str, str] = {}
        self._other_arrays: set[str] = set()
        self.lost: Exception | None = None
        """The error of the connection, not of a reply, during the iteration."""

    def __iter__(self) -> Iterator[Message]:
        """Stream the replies for the inner strategy, once."""
        try:
            for message in self._screened():
                self._passed.append(without_arrays(message))
                yield message
                del message  # free its memory before the next reply is waited for
        except Exception as error:
            self.lost = error
            raise

    def all(self) -> ScreenedReplies:
        """Wait for the remaining replies; return all, with their arrays."""
        self._passed.extend(self._screened())
        return self.screened

    @property
    def screened(self) -> ScreenedReplies:
        """The replies, once all have arrived."""
        nodes, passed = tuple(self._nodes), tuple(self._passed)
        other = frozenset(self._other_arrays)
        screened = ScreenedReplies(passed, nodes, self._rejected, self._notes, other)
        return screened.with_silent(self._requested)

    def _screened(self) -> Iterator[Message]:
        for message in self._replies:
            node = str(message.metadata.src_node_id)
            self._nodes[node] = None
            if message.has_error():
                self._rejected[node] = brief(f"it answered with an error: {message.error.reason}")
                yield with_error(message, message.error.code, message.error.reason)
                continue
            try:
                content, faults = self._check(message.content)
            except ReplyError as error:
                self._rejected[node] = brief(error)
                if isinstance(error, OtherArraysError):
                    self._other_arrays.add(node)
            except Exception as error:  # noqa: BLE001  (no reply ends the round)
                self._rejected[node] = brief(f"it cannot be read: {type(error).__name__}: {error}")
            else:
                if faults:
                    self._notes[node] = brief("; ".join(faults))
                yield with_content(message, content)
                del content
            del message


def without_arrays(message: Message) -> Message:
    """Return a message of the same node without its arrays."""
    if not message.has_content():
        return message
    content = RecordDict()
    for name, record in message.content.items():
        if not isinstance(record, ArrayRecord):
            content[name] = record
    return with_content(message, content)


def with_content(message: Message, content: RecordDict) -> Message:
    """Return a message with the same metadata and another content."""
    return Message(content, metadata=message.metadata)  # type: ignore[call-overload, no-any-return]


def with_error(message: Message, code: int, reason: str | None) -> Message:
    """Return an error in place of a message, with a reason of one line for Flower's log."""
    return Message(  # type: ignore[call-overload, no-any-return]
        error=Error(code, brief(reason)), metadata=message.metadata
    )
