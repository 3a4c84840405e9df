# SPDX-License-Identifier: Apache-2.0
"""The inner strategy: how a round calls it, its state, and how to undo what a call changed.

It gets aligned copies of replies. If it fails, it is as it was before.
"""

from __future__ import annotations

import copy
import logging
import random
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Protocol, runtime_checkable

import numpy as np
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.app.exception import AppExitException
from flwr.serverapp.strategy import (
    DifferentialPrivacyClientSideAdaptiveClipping,
    DifferentialPrivacyClientSideFixedClipping,
    DifferentialPrivacyServerSideAdaptiveClipping,
    DifferentialPrivacyServerSideFixedClipping,
    Strategy,
)

from fl_app.strategy.errors import RunFailedError
from fl_app.strategy.round.averaging import StreamingFedAvg, in_step
from fl_app.strategy.round.influence import FEWEST
from fl_app.strategy.round.screening import (
    SILENT,
    ScreenedReplies,
    needs_of,
    only,
    with_content,
    with_records,
)
from fl_app.wire.arrays import (
    ArrayError,
    OtherArrayError,
    Schema,
    model_values,
    require_finite,
    schema_of,
)
from fl_registry.redaction import one_line

logger = logging.getLogger("flwr.fl_app")

_PRIVATE = (
    DifferentialPrivacyClientSideAdaptiveClipping,
    DifferentialPrivacyClientSideFixedClipping,
    DifferentialPrivacyServerSideAdaptiveClipping,
    DifferentialPrivacyServerSideFixedClipping,
)
_NEAR = 4.0
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
    strategy: Strategy, server_round: int, screened: ScreenedReplies, schema: Schema
) -> Aggregate:
    """Let the inner strategy aggregate, and check the result.

    A streaming strategy gets the replies once, as they arrive. If any other raises, or its result
    cannot be the model, its state is restored, and it gets the replies that it can aggregate alone,
    or all but one if that helps. In the end there is a new model, or the strategy is unchanged.
    """
    restore = snapshot(strategy)
    streams = isinstance(strategy, StreamingFedAvg)
    replies = screened if streams else screened.all().replies
    first = _attempt(strategy, server_round, replies, schema, loud=True)
    if screened.lost is not None:
        raise screened.lost
    good = screened.good
    if not good:
        reasons = "; ".join(f"node {n}: {why}" for n, why in screened.rejected.items())
        why = f" ({one_line(reasons)})" if reasons else ""
        return Aggregate(metrics=first.metrics, problem=f"no client sent a valid reply{why}")
    if first.arrays is not None:
        return first
    if not first.problem:
        name = type(strategy).__name__
        return replace(first, problem=f"{name} made no model of {len(good)} replies")
    restore()
    if streams:  # the replies are gone
        return first
    logger.warning("round %d: trying with fewer replies", server_round)
    harmful: dict[str, str] = {}
    for message in good:
        alone = _attempt(strategy, server_round, [message], schema)
        restore()
        if alone.problem:
            harmful[str(message.metadata.src_node_id)] = alone.problem
    suspects = [harmful] if harmful else []
    if 2 < len(good) <= MAX_LEFT_OUT:
        suspects += [{str(message.metadata.src_node_id): first.problem} for message in good]
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
    except Exception as error:  # noqa: BLE001  (as in `_attempt`)
        restore()
        _problem(strategy, server_round, error)
        return None


def _attempt(
    strategy: Strategy,
    server_round: int,
    replies: Sequence[Message] | ScreenedReplies,
    schema: Schema,
    *,
    loud: bool = False,
) -> Aggregate:
    try:
        given: Sequence[Message] | ScreenedReplies = replies
        if not isinstance(replies, ScreenedReplies):
            left_out = _drops_errors(strategy)
            given = aligned(strategy, [m for m in replies if m.has_content() or not left_out])
            given = with_usual_losses(strategy, given)
        arrays, metrics = strategy.aggregate_train(server_round, given)
    except Exception as error:  # noqa: BLE001
        # The user's code on data of nodes: an error costs one round, not the run.
        return Aggregate(problem=_problem(strategy, server_round, error, loud=loud))
    if arrays is None:
        return Aggregate(metrics=metrics)
    try:
        model_values(arrays, schema, require_finite)
    except ArrayError as error:
        other = isinstance(error, OtherArrayError)
        return Aggregate(None, metrics, f"the aggregate is no model: {error}", other_arrays=other)
    return Aggregate(arrays, metrics)


def _drops_errors(strategy: Strategy) -> bool:
    """Whether a strategy must not see nodes' errors: a wrapper for privacy without an accountant.

    It makes no model of a round with an error, though it does of one with fewer replies. An
    accountant counts on the number of replies, so with one both end the round.
    """
    levels = [level for _, level in strategy_levels(strategy) if isinstance(level, _PRIVATE)]
    return bool(levels) and all(getattr(level, "accountant", None) is None for level in levels)


def _problem(strategy: Strategy, server_round: int, error: Exception, *, loud: bool = True) -> str:
    """Return what to say of an error of the strategy; log it if ``loud``."""
    flowers = isinstance(error, AppExitException)  # whose text needs no traceback
    raised = f"{type(strategy).__name__} raised {type(error).__name__}: {error}"
    problem = one_line(f"the replies do not fit together: {error}" if flowers else raised)
    if loud:
        trace = None if flowers else error
        logger.warning("round %d: %s", server_round, problem, exc_info=trace)
    return problem


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
    copies = [_copy(content, usual) for content in contents]
    if usual[MetricRecord] is not None:
        copies = in_step(copies, needs_of(strategy).weighted_by)
    rest = iter(copies)
    return [with_content(m, next(rest)) if m.has_content() else m for m in replies]


def _copy(content: RecordDict, usual: Mapping[type, str | None]) -> RecordDict:
    """Return a copy in which records have their usual key, and no other record has it."""
    copied = RecordDict()
    for key, record in content.items():
        if type(record) in usual or key not in usual.values():
            own = record.copy() if isinstance(record, ArrayRecord) else record
            copied[usual.get(type(record)) or key] = own
    return copied


def with_usual_losses(strategy: Strategy, replies: Sequence[Message]) -> list[Message]:
    """Return replies whose losses differ from their median by a factor of 4 at most.

    For QFedAvg, which divides by a power of each node's loss: a loss of 0 would end the training of
    all. Other strategies, and fewer than three replies, get theirs as they are.
    """
    key, good = getattr(strategy, "train_loss_key", None), [m for m in replies if m.has_content()]
    if not isinstance(key, str) or len(good) < FEWEST:
        return [*replies]
    losses = [only(message.content, MetricRecord).get(key) for message in good]
    if not all(isinstance(loss, int | float) for loss in losses):
        return [*replies]
    usual = float(np.median(np.asarray(losses, float)))

    def clipped(message: Message) -> Message:
        metrics = only(message.content, MetricRecord)
        loss, near = metrics[key], min(max(metrics[key], usual / _NEAR), usual * _NEAR)
        if near == loss:
            return message
        record = MetricRecord({**metrics, key: near})
        return with_content(message, with_records(message.content, record))

    return [clipped(message) if message.has_content() else message for message in replies]


def _usual_key(contents: Sequence[RecordDict], kind: type, preferred: str) -> str | None:
    """Return the key of most records of a kind; None if a reply has several."""
    own = [[key for key, r in content.items() if isinstance(r, kind)] for content in contents]
    if any(len(keys) > 1 for keys in own):
        return None
    keys = Counter(chain.from_iterable(own))
    return max(keys, key=lambda key: (keys[key], key == preferred), default=preferred)


def adopted_schema(made: ArrayRecord, agreed: Schema) -> Schema:
    """Return the schema of a first aggregate, with the dtypes of the replies that it was made of.

    An average of integers is made of floats, and they are integers all the same.
    """
    return {
        name: agreed[name] if name in agreed and agreed[name][1] == shape else (dtype, shape)
        for name, (dtype, shape) in schema_of(made).items()
    }


def require_whole_model(
    strategy: Strategy, server_round: int, screened: ScreenedReplies, made: Aggregate
) -> None:
    """Require that nodes and strategy make models of the arrays that the session starts with.

    Raises
    ------
    RunFailedError
        If all replies, or what was made of them, have the same other arrays.
    """
    errors = {str(m.metadata.src_node_id) for m in screened.replies if m.has_error()}
    rejected = {n: why for n, why in screened.rejected.items() if why != SILENT and n not in errors}
    reasons = {*rejected.values()}
    if not screened.good and len(reasons) == 1 and rejected.keys() <= screened.other_arrays:
        raise RunFailedError(
            f"All replies of round {server_round} were rejected for the same reason: "
            f"{reasons.pop()}. Have the ClientApp return each array of the global model and no "
            "other. Or give start() the initial_arrays that it returns; an empty ArrayRecord takes "
            "its arrays."
        )
    if made.other_arrays:
        raise RunFailedError(
            f"{type(strategy).__name__} made another model in round {server_round} than it began "
            f"with: {made.problem}; give start() initial_arrays with all arrays that a model has "
            "(an empty ArrayRecord takes those of the first one)."
        )


@runtime_checkable
class StateKeeper(Protocol):
    """An object whose state is saved and restored by its own methods: a privacy accountant."""

    def state_dict(self) -> dict[str, object]:
        """Return the state."""

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Restore a state."""


def strategy_levels(strategy: Strategy, path: str = "") -> Iterator[tuple[str, Strategy]]:
    """Return a strategy and those that it wraps, each with its path, such as ``/strategy``."""
    yield path, strategy
    for name, value in vars(strategy).items():
        if isinstance(value, Strategy):
            yield from strategy_levels(value, f"{path}/{name}")


def attributes(strategy: Strategy) -> dict[str, tuple[object, object]]:
    """Return each attribute by its place, such as ``strategy/m_t``: its value and its state.

    The state is what is saved of it: the value itself, unless it keeps a state of its own.
    """
    return {
        f"{path}/{name}": (value, value.state_dict() if isinstance(value, StateKeeper) else value)
        for path, level in strategy_levels(strategy)
        for name, value in vars(level).items()
        if not isinstance(value, Strategy)
    }


def snapshot(strategy: Strategy) -> Callable[[], None]:
    """Return a function that restores the present state (momenta, clipping norms, accountant)."""
    saved = [
        (level, {name: _copied(value) for name, value in vars(level).items()})
        for _, level in strategy_levels(strategy)
    ]
    keepers = [
        (value, copy.deepcopy(value.state_dict()))
        for _, attributes in saved
        for value in attributes.values()
        if isinstance(value, StateKeeper)
    ]

    def restore() -> None:
        for level, attributes in saved:
            vars(level).clear()
            vars(level).update({name: _copied(value) for name, value in attributes.items()})
        for keeper, state in keepers:
            keeper.load_state_dict(copy.deepcopy(state))

    return restore


def _copied(value: object) -> object:
    """Return a copy of a container; anything else as it is."""
    # Arrays are not copied: Flower's strategies replace them and never write into them.
    return value.copy() if isinstance(value, dict | list | set | ArrayRecord) else value


@contextmanager
def random_states_restored() -> Iterator[None]:
    """Restore the states of Python's, NumPy's and torch's global generators after the block.

    For rounds that Flower's own loop does not have: strategies sample nodes with ``random``, so
    that an additional round would change the samples of all later ones. Use it only in the thread
    that runs Flower's loop, since draws of other threads in between would be undone as well.
    """
    torch = sys.modules.get("torch")  # if it is not imported, it has no state
    states = random.getstate(), np.random.get_state(), torch and torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        if torch is not None:
            torch.set_rng_state(states[2])
