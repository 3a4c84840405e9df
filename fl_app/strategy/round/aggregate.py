# SPDX-License-Identifier: Apache-2.0
"""How a round uses the inner strategy: on copies of replies that are in step, and put back if
nothing came of it. Which replies are good is decided before.
"""

from __future__ import annotations

import copy
import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import cast

from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.app.exception import AppExitException
from flwr.serverapp.strategy import Strategy

from fl_app.strategy.round.averaging import StreamingFedAvg
from fl_app.strategy.round.metrics import Value, brief, in_step
from fl_app.strategy.round.replies import ArrivingReplies, Screened
from fl_app.strategy.round.screening import needs_of
from fl_app.wire.arrays import ArrayError, OtherArrayError
from fl_app.wire.schema import Schema, check_arrays

logger = logging.getLogger("flwr.fl_app")

MAX_TRIED = 20
"""Replies up to which each is left out in turn, if that is what it takes."""


@dataclass(frozen=True)
class Aggregate:
    """What the inner strategy made of a round's replies.

    Attributes
    ----------
    arrays : ArrayRecord | None
        The new global model; None where there is a ``problem``.
    metrics : MetricRecord | None
        The clients' metrics, averaged.
    problem : str
        Why there is no new model.
    rejected : Mapping[str, str]
        By node id the replies that the strategy cannot take, not even by themselves, and why.
    other_arrays : bool
        Whether the problem is that it made arrays which are not the model's.
    """

    arrays: ArrayRecord | None = None
    metrics: MetricRecord | None = None
    problem: str = ""
    rejected: Mapping[str, str] = field(default_factory=dict)
    other_arrays: bool = False


def aggregate(
    strategy: Strategy, server_round: int, arriving: ArrivingReplies, schema: Schema
) -> Aggregate:
    """Let the inner strategy aggregate, and check what it made.

    One that takes replies as they arrive gets them so, once. For any other, if it raises, or makes
    what cannot be the model, its state is put back, and it gets the replies that do no harm by
    themselves, or all but one if that helps. In the end there is a new model, or the strategy is as
    it was.
    """
    put_back = state_of(strategy)
    streams = isinstance(strategy, StreamingFedAvg)
    replies = arriving if streams else arriving.all().replies
    first = _attempt(strategy, server_round, replies, schema, loud=True)
    if arriving.lost is not None:
        raise arriving.lost
    screened = arriving.screened
    if not screened.good:
        reasons = "; ".join(f"node {n}: {why}" for n, why in screened.rejected.items())
        told = f" ({brief(reasons)})" if reasons else ""
        return Aggregate(metrics=first.metrics, problem=f"no client sent a valid reply{told}")
    if first.arrays is not None:
        return first
    if not first.problem:
        name, count = type(strategy).__name__, len(screened.good)
        return replace(first, problem=f"{name} made no model of {count} replies")
    put_back()
    if streams:  # the replies are gone
        return first
    logger.warning("round %d: %s; trying with fewer replies", server_round, first.problem)
    nodes = {str(message.metadata.src_node_id): message for message in screened.good}
    harmful: dict[str, str] = {}
    for node, message in nodes.items():
        alone = _attempt(strategy, server_round, [message], schema)
        put_back()
        if alone.problem:
            harmful[node] = alone.problem
    suspects = [harmful] if harmful else []
    if 2 < len(nodes) <= MAX_TRIED:
        suspects += [{node: first.problem} for node in nodes]
    for left_out in suspects:
        again = _attempt(strategy, server_round, screened.without(left_out), schema)
        if again.arrays is not None:
            return replace(again, rejected=left_out)
        put_back()
    return first


def aggregate_evaluate(
    strategy: Strategy, server_round: int, screened: Screened
) -> MetricRecord | None:
    """Let the inner strategy average the clients' metrics; None if it cannot."""
    put_back = state_of(strategy)
    try:
        return strategy.aggregate_evaluate(server_round, alike(strategy, screened.replies))
    except Exception as error:
        put_back()
        logger.warning("round %d: %s", server_round, _told(strategy, error), exc_info=_trace(error))
        return None


def _attempt(
    strategy: Strategy,
    server_round: int,
    replies: Sequence[Message] | ArrivingReplies,
    schema: Schema,
    *,
    loud: bool = False,
) -> Aggregate:
    try:
        given = replies if isinstance(replies, ArrivingReplies) else alike(strategy, replies)
        arrays, metrics = strategy.aggregate_train(server_round, given)
    except Exception as error:
        # Anybody's code on what anybody sends: whatever it raises costs one round, not the run.
        problem = _told(strategy, error)
        if loud and (trace := _trace(error)):
            logger.warning("round %d: %s", server_round, problem, exc_info=trace)
        return Aggregate(problem=problem)
    if arrays is None:
        return Aggregate(metrics=metrics)
    try:
        check_arrays(arrays, schema)
    except ArrayError as error:
        other = isinstance(error, OtherArrayError)
        return Aggregate(None, metrics, str(error), other_arrays=other)
    return Aggregate(arrays, metrics)


def _told(strategy: Strategy, error: Exception) -> str:
    if isinstance(error, AppExitException):
        return brief(f"the replies do not fit together: {error}")
    return brief(f"{type(strategy).__name__} raised {type(error).__name__}: {error}")


def _trace(error: Exception) -> Exception | None:
    """What to log the traceback of; Flower's own errors say all there is."""
    return None if isinstance(error, AppExitException) else error


def state_of(strategy: Strategy) -> Callable[[], None]:
    """Note the state of a strategy (momenta, clipping norms, accountant); returns what restores it.

    Containers are copied, arrays are not: Flower's strategies put new arrays in the place of old
    ones and never write into them.
    """
    saved = {name: _copied(value) for name, value in vars(strategy).items()}
    inside = [state_of(value) for value in saved.values() if isinstance(value, Strategy)]
    keepers = [
        (value, copy.deepcopy(value.state_dict()))
        for value in saved.values()
        if hasattr(value, "state_dict") and hasattr(value, "load_state_dict")
    ]

    def put_back() -> None:
        vars(strategy).clear()
        vars(strategy).update({name: _copied(value) for name, value in saved.items()})
        for each in inside:
            each()
        for keeper, state in keepers:
            keeper.load_state_dict(copy.deepcopy(state))

    return put_back


def _copied(value: object) -> object:
    """A container's own copy; anything else as it is."""
    return value.copy() if isinstance(value, dict | list | set | ArrayRecord) else value


def alike(strategy: Strategy, replies: Sequence[Message]) -> list[Message]:
    """Return copies of replies with the same keys and metrics, as Flower's strategies require.

    They are copies since some strategies take the arrays out of them. Where a reply has several
    records of a kind, which only a strategy of somebody's own can take, those stay as they are.
    """
    contents = [message.content for message in replies if message.has_content()]
    usual: dict[type, str | None] = {
        ArrayRecord: _usual_key(contents, ArrayRecord, "arrays"),
        MetricRecord: _usual_key(contents, MetricRecord, "metrics"),
    }
    told = [_metrics(content) for content in contents]
    if usual[MetricRecord] is not None and all(told):
        weighted_by = needs_of(strategy).weighted_by or ""
        weights = [cast("float", metrics.get(weighted_by, 1.0)) for metrics in told]
        told = in_step(told, weights)
    metrics = iter(told)
    return [
        _copy(message, usual, next(metrics)) if message.has_content() else message
        for message in replies
    ]


def _copy(
    message: Message, usual: Mapping[type, str | None], metrics: Mapping[str, Value]
) -> Message:
    content = RecordDict()
    for key, record in message.content.items():
        known = usual.get(type(record)) or key
        if isinstance(record, ArrayRecord):
            content[known] = record.copy()
        elif isinstance(record, MetricRecord) and usual[MetricRecord] is not None:
            content[known] = MetricRecord(dict(metrics))
        elif key not in usual.values():
            content[key] = record
    return Message(content, metadata=message.metadata)  # type: ignore[call-overload, no-any-return]


def _usual_key(contents: Sequence[RecordDict], kind: type, preferred: str) -> str | None:
    """The key of most records of a kind; None if a reply has several."""
    keys = Counter[str]()
    for content in contents:
        found = [key for key, record in content.items() if isinstance(record, kind)]
        if len(found) > 1:
            return None
        keys.update(found)
    return max(keys, key=lambda key: (keys[key], key == preferred), default=preferred)


def _metrics(content: RecordDict) -> dict[str, Value]:
    found = (record for record in content.values() if isinstance(record, MetricRecord))
    return dict(next(found, {}))
