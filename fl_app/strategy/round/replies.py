# SPDX-License-Identifier: Apache-2.0
"""The replies of a round, looked at one by one as they arrive, and what is known of them then.

What a good reply is, and what is made of it, is decided elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from flwr.app import ArrayRecord, Error, Message, RecordDict

from fl_app.strategy.round.metrics import brief

Check = Callable[[RecordDict], tuple[RecordDict, list[str]]]
"""Returns what counts of a reply, and what was wrong with the rest; or raises `ReplyError`."""

SILENT = "it sent no answer in time"
"""Why a node is rejected that neither answered nor said what went wrong."""


class ReplyError(ValueError):
    """A reply may not take part in the round; the text says why."""


class OtherArraysError(ReplyError):
    """A reply does not have the arrays of the model that the node was sent."""


@dataclass(frozen=True)
class Screened:
    """The replies of a round, and which of them do not count.

    Attributes
    ----------
    replies : tuple[Message, ...]
        What goes to the inner strategy, in the order of arrival: good replies and errors. Those
        that were handed on as they arrived have no arrays any more.
    nodes : tuple[str, ...]
        The ids of all nodes that answered.
    rejected : Mapping[str, str]
        By node id why its reply does not count; errors are among them.
    notes : Mapping[str, str]
        By node id what was left out of a reply that counts, or was clipped.
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
        """The replies that count."""
        return [message for message in self.replies if message.has_content()]

    def without(self, nodes: Collection[str]) -> list[Message]:
        """All replies but those of some nodes."""
        return [m for m in self.replies if str(m.metadata.src_node_id) not in nodes]

    def with_silent(self, asked: Iterable[str]) -> Screened:
        """Set aside the nodes that were asked and sent neither a result nor an error in time."""
        silent = sorted({*asked} - {*self.nodes})
        return replace(
            self,
            nodes=(*self.nodes, *silent),
            rejected={**self.rejected, **dict.fromkeys(silent, SILENT)},
        )


class ArrivingReplies(Iterable[Message]):
    """Screens replies as they arrive; they can be had one by one, or all together.

    Iterated over, it hands on what goes to the inner strategy and keeps it without its arrays, so
    that no two models of nodes need to be in memory at once.

    Parameters
    ----------
    replies : Iterable[Message]
        The replies, which may still be on their way.
    check : Callable
        What counts of a reply's content; nothing that it raises ends the round.
    asked : Iterable[str]
        The ids of the nodes from which replies are expected.
    """

    def __init__(self, replies: Iterable[Message], check: Check, asked: Iterable[str] = ()) -> None:
        self._replies = iter(replies)
        self._asked = tuple(asked)
        self._check = check
        self._passed: list[Message] = []
        self._nodes: dict[str, None] = {}
        self._rejected: dict[str, str] = {}
        self._notes: dict[str, str] = {}
        self._other_arrays: set[str] = set()
        self.lost: Exception | None = None
        """What went wrong with the connection, not with a reply, while they were handed on."""

    def __iter__(self) -> Iterator[Message]:
        """Hand on each reply that goes to the inner strategy, once."""
        try:
            for message in self._screened():
                self._passed.append(without_arrays(message))
                yield message
                del message  # or it would be held while the next one is waited for
        except Exception as error:
            self.lost = error
            raise

    def all(self) -> Screened:
        """Wait for the replies that are still to come; return all, with their arrays."""
        self._passed.extend(self._screened())
        return self.screened

    @property
    def screened(self) -> Screened:
        """What there was, once all have been asked for."""
        nodes, passed = tuple(self._nodes), tuple(self._passed)
        other = frozenset(self._other_arrays)
        found = Screened(passed, nodes, self._rejected, self._notes, other)
        return found.with_silent(self._asked)

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
            except Exception as error:  # noqa: BLE001  (nothing that a node sends ends the round)
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
    kept = RecordDict()
    for name, record in message.content.items():
        if not isinstance(record, ArrayRecord):
            kept[name] = record
    return with_content(message, kept)


def with_content(message: Message, content: RecordDict) -> Message:
    """Return a message with the same metadata and another content."""
    return Message(content, metadata=message.metadata)  # type: ignore[call-overload, no-any-return]


def with_error(message: Message, code: int, reason: str | None) -> Message:
    """Return an error in place of a message, whose reason fits into one line of Flower's log."""
    return Message(  # type: ignore[call-overload, no-any-return]
        error=Error(code, brief(reason)), metadata=message.metadata
    )
