# SPDX-License-Identifier: Apache-2.0
"""How a round calls the inner strategy: on aligned copies of replies, undone if it fails."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import cast

from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.app.exception import AppExitException
from flwr.serverapp.strategy import Strategy

from fl_app.strategy.round.averaging import StreamingFedAvg
from fl_app.strategy.round.inner_state import snapshot
from fl_app.strategy.round.metrics import Value, brief, in_step
from fl_app.strategy.round.replies import ArrivingReplies, ScreenedReplies
from fl_app.strategy.round.screening import needs_of
from fl_app.wire.arrays import ArrayError, OtherArrayError
from fl_app.wire.schema import Schema, check_arrays

logger = logging.getLogger("flwr.fl_app")

MAX_LEFT_OUT = 20
"""Most replies of which each is left out in turn to find the harmful one."""


@dataclass(frozen=True)
class Aggregate:
    """The inner strategy's result of a round.

    Attributes
    ----------
    arrays : ArrayRecord | None
        The new global model; None where there is a ``problem``.
    metrics : MetricRecord | None
        The clients' metrics, averaged.
    problem : str
        Why there is no new model.
    rejected : Mapping[str, str]
        By node id the replies that the strategy cannot aggregate, not even alone, and why.
    other_arrays : bool
        Whether the problem is that its arrays are not the model's.
    """

    arrays: ArrayRecord | None = None
    metrics: MetricRecord | None = None
    problem: str = ""
    rejected: Mapping[str, str] = field(default_factory=dict)
    other_arrays: bool = False


def aggregate(
    strategy: Strategy, server_round: int, arriving: ArrivingReplies, schema: Schema
) -> Aggregate:
    """Let the inner strategy aggregate, and check the result.

    A streaming strategy gets the replies once, as they arrive. If any other raises, or its result
    cannot be the model, its state is restored, and it gets the replies that it can aggregate alone,
    or all but one if that helps. In the end there is a new model, or the strategy is unchanged.
    """
    restore = snapshot(strategy)
    streams = isinstance(strategy, StreamingFedAvg)
    replies = arriving if streams else arriving.all().replies
    first = _attempt(strategy, server_round, replies, schema, loud=True)
    if arriving.lost is not None:
        raise arriving.lost
    screened = arriving.screened
    if not screened.good:
        reasons = "; ".join(f"node {n}: {why}" for n, why in screened.rejected.items())
        why = f" ({brief(reasons)})" if reasons else ""
        return Aggregate(metrics=first.metrics, problem=f"no client sent a valid reply{why}")
    if first.arrays is not None:
        return first
    if not first.problem:
        name, count = type(strategy).__name__, len(screened.good)
        return replace(first, problem=f"{name} made no model of {count} replies")
    restore()
    if streams:  # the replies are gone
        return first
    logger.warning("round %d: %s; trying with fewer replies", server_round, first.problem)
    nodes = {str(message.metadata.src_node_id): message for message in screened.good}
    harmful: dict[str, str] = {}
    for node, message in nodes.items():
        alone = _attempt(strategy, server_round, [message], schema)
        restore()
        if alone.problem:
            harmful[node] = alone.problem
    suspects = [harmful] if harmful else []
    if 2 < len(nodes) <= MAX_LEFT_OUT:
        suspects += [{node: first.problem} for node in nodes]
    for left_out in suspects:
        again = _attempt(strategy, server_round, screened.without(left_out), schema)
        if again.arrays is not None:
            return replace(again, rejected=left_out)
        restore()
    return first


def aggregate_evaluate(
    strategy: Strategy, server_round: int, screened: ScreenedReplies
) -> MetricRecord | None:
    """Let the inner strategy average the clients' metrics; None if it cannot."""
    restore = snapshot(strategy)
    try:
        return strategy.aggregate_evaluate(server_round, aligned(strategy, screened.replies))
    except Exception as error:
        restore()
        logger.warning(
            "round %d: %s", server_round, _problem(strategy, error), exc_info=_trace(error)
        )
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
        given = replies if isinstance(replies, ArrivingReplies) else aligned(strategy, replies)
        arrays, metrics = strategy.aggregate_train(server_round, given)
    except Exception as error:
        # The user's code on data of nodes: an error costs one round, not the run.
        problem = _problem(strategy, error)
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


def _problem(strategy: Strategy, error: Exception) -> str:
    if isinstance(error, AppExitException):
        return brief(f"the replies do not fit together: {error}")
    return brief(f"{type(strategy).__name__} raised {type(error).__name__}: {error}")


def _trace(error: Exception) -> Exception | None:
    """Return the error if its traceback is worth logging; Flower's own errors are complete."""
    return None if isinstance(error, AppExitException) else error


def aligned(strategy: Strategy, replies: Sequence[Message]) -> list[Message]:
    """Return copies of replies with the same keys and metrics, as Flower's strategies require.

    Copies, as some strategies remove the arrays from replies. If a reply has several records of a
    kind, which only a user's own strategy can aggregate, these are not changed.
    """
    contents = [message.content for message in replies if message.has_content()]
    usual: dict[type, str | None] = {
        ArrayRecord: _usual_key(contents, ArrayRecord, "arrays"),
        MetricRecord: _usual_key(contents, MetricRecord, "metrics"),
    }
    reported = [_metrics(content) for content in contents]
    if usual[MetricRecord] is not None and all(reported):
        weighted_by = needs_of(strategy).weighted_by or ""
        weights = [cast("float", metrics.get(weighted_by, 1.0)) for metrics in reported]
        reported = in_step(reported, weights)
    metrics = iter(reported)
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
    """Return the key of most records of a kind; None if a reply has several."""
    keys = Counter[str]()
    for content in contents:
        own = [key for key, record in content.items() if isinstance(record, kind)]
        if len(own) > 1:
            return None
        keys.update(own)
    return max(keys, key=lambda key: (keys[key], key == preferred), default=preferred)


def _metrics(content: RecordDict) -> dict[str, Value]:
    records = (record for record in content.values() if isinstance(record, MetricRecord))
    return dict(next(records, {}))
