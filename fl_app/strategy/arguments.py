# SPDX-License-Identifier: Apache-2.0
"""What `LifecycleStrategy` refuses when it is made or started, since it could not be honoured."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from flwr.app import ArrayRecord
from flwr.serverapp.strategy import (
    DifferentialPrivacyClientSideAdaptiveClipping,
    DifferentialPrivacyClientSideFixedClipping,
    DifferentialPrivacyServerSideAdaptiveClipping,
    DifferentialPrivacyServerSideFixedClipping,
    Strategy,
)

from fl_app.hooks.queue import Hooks
from fl_app.strategy.early_stopping import EarlyStopping
from fl_app.strategy.errors import MetricError
from fl_app.strategy.finish.evaluation import EvaluateFn
from fl_app.strategy.round.averaging import StreamingFedAvg
from fl_app.strategy.round.screening import Screening
from fl_app.strategy.session.strategy_state import strategy_levels
from fl_app.strategy.shadow.rounds import ShadowEvaluation
from fl_registry import Stage

_WRAPPERS = (
    DifferentialPrivacyClientSideAdaptiveClipping,
    DifferentialPrivacyClientSideFixedClipping,
    DifferentialPrivacyServerSideAdaptiveClipping,
    DifferentialPrivacyServerSideFixedClipping,
)


def check_strategy(strategy: object, outer: type[Strategy], *, ignore_start: bool) -> None:
    """Check the inner strategy and all that it wraps; ``outer`` may not be among them.

    Raises
    ------
    TypeError
        If one of them is no strategy of Flower's message API, or is a `LifecycleStrategy`.
    ValueError
        If one of them overrides ``start()``, and that is not to be ignored.
    """
    if isinstance(strategy, Strategy):
        for _, level in strategy_levels(strategy):
            _check_level(level, outer)
    else:
        raise TypeError(_no_strategy(strategy, "strategy"))
    if (starts := overridden_starts(strategy)) and not ignore_start:
        raise ValueError(
            f"{' and '.join(starts)} would not be run, as LifecycleStrategy runs Flower's own "
            "loop: move what it does into hooks=, artifacts= or the ServerApp, or ignore it with "
            "ignore_start=True."
        )


def overridden_starts(strategy: Strategy) -> list[str]:
    """Return what is not Flower's ``start()`` in a strategy and those that it wraps, by class.

    That of `StreamingFedAvg` is not among them: `LifecycleStrategy` does what it does.
    """
    known = (Strategy.start, StreamingFedAvg.start)
    return [
        f"{type(level).__name__}.start()"
        for _, level in strategy_levels(strategy)
        if getattr(level.start, "__func__", None) not in known
    ]


def _check_level(level: Strategy, outer: type[Strategy]) -> None:
    if isinstance(level, outer):
        raise TypeError(
            "LifecycleStrategy is inside another one, expected only the outermost to be one: give "
            "the outer one the strategy of the inner one."
        )
    inside = getattr(level, "strategy", None)
    if isinstance(inside, Strategy):
        return
    if isinstance(level, _WRAPPERS) or isinstance(inside, type) or _is_legacy(inside):
        raise TypeError(_no_strategy(inside, f"the strategy inside {type(level).__name__}"))


def _no_strategy(value: object, what: str) -> str:
    if isinstance(value, type):
        return f"{what} is the class {value.__name__}, expected an object: {value.__name__}(…)."
    if _is_legacy(value):
        name = type(value).__name__
        return (
            f"{what} is a {name} of the legacy flwr.server API, expected one of "
            f"flwr.serverapp.strategy: move the app to Flower's message API, and import {name} "
            "from there."
        )
    return (
        f"{what} is {value!r:.60}, expected a strategy of flwr.serverapp.strategy, such as "
        "FedAvg()."
    )


def _is_legacy(value: object) -> bool:
    return any(base.__module__.startswith("flwr.server.") for base in type(value).__mro__)


def check_arguments(
    *,
    metric: object,
    mode: object,
    approval: object,
    policy: object,
    node_wait_timeout: object,
    hooks: object,
    artifacts: object,
    settings: Mapping[str, tuple[object, type]],
    connections: Mapping[str, object],
) -> None:
    """Check what else `LifecycleStrategy` is made with.

    Parameters
    ----------
    metric, mode, approval, policy, node_wait_timeout, hooks, artifacts : object
        As `LifecycleStrategy` has them.
    settings : Mapping[str, tuple[object, type]]
        By name arguments that are None or of a class.
    connections : Mapping[str, object]
        By name the store and the tracker.

    Raises
    ------
    TypeError
        If one is of another type.
    ValueError
        If one has a value that cannot be honoured.
    """
    if metric is not None and (not isinstance(metric, str) or not metric):
        raise ValueError(f"metric is {metric!r:.60}, expected the name of a metric or None.")
    _check_word("mode", mode, "max", "min")
    _check_word("approval", approval, "manual", "auto")
    _check_policy(policy)
    seconds = node_wait_timeout
    if not isinstance(seconds, int | float) or math.isnan(seconds) or seconds < 0:
        raise ValueError(f"node_wait_timeout is {seconds!r:.60}, expected 0 seconds or more.")
    _check_functions("artifacts", artifacts)
    if not isinstance(hooks, Hooks):
        _check_functions("hooks", hooks)
    for name, (value, kind) in settings.items():
        if value is not None and not isinstance(value, kind):
            raise TypeError(f"{name} is {value!r:.60}, expected {kind.__name__}(…) or None.")
        if value is not None and metric is None and kind in (EarlyStopping, ShadowEvaluation):
            raise ValueError(f"{name} needs a metric to look at; give metric=… as well.")
    for name, value in connections.items():
        if isinstance(value, str | Path | type):
            raise TypeError(f"{name} is {value!r:.60}, expected an object: {name}=….")


def _check_word(name: str, value: object, *words: str) -> None:
    if value not in words:
        raise ValueError(f"{name} is {value!r:.60}, expected {' or '.join(map(repr, words))}.")


def _check_functions(name: str, values: object) -> None:
    if not isinstance(values, Sequence) or isinstance(values, str):
        raise TypeError(f"{name} is {values!r:.60}, expected a list of functions.")
    for value in values:
        if not callable(value):
            raise TypeError(f"{name} has {value!r:.60} in it, expected functions.")


def _check_policy(policy: object) -> None:
    if policy is None:
        return
    if not isinstance(policy, Mapping):
        raise TypeError(f"policy is {policy!r:.60}, expected lists of gates by stage.")
    for stage, gates in policy.items():
        if stage not in (Stage.STAGING, Stage.PRODUCTION):
            raise ValueError(
                f"policy has gates for {stage!s:.60}, expected Stage.STAGING and Stage.PRODUCTION."
            )
        _check_functions(f"policy[{stage!s}]", gates)


def check_start(
    strategy: Strategy,
    *,
    metric: str | None,
    screening: Screening | None,
    arrays: ArrayRecord,
    evaluate_fn: EvaluateFn | None,
) -> None:
    """Check what ``start()`` is given against what the strategy was made with.

    Raises
    ------
    MetricError
        If nobody is asked for the metric.
    ValueError
        If updates are to be bounded, and there is no model to measure them against.
    """
    from_training = metric is None or metric.startswith("train/")
    if evaluate_fn is None and not from_training and _never_evaluates(strategy):
        raise MetricError(
            f"Nobody will report the metric {metric!r}: fraction_evaluate is 0, and start() has no "
            "evaluate_fn; give one of them, or set metric to one that training reports, such as "
            f"'train/{str(metric).removeprefix('client/')}'."
        )
    if not arrays and screening is not None and screening.max_update_norm is not None:
        raise ValueError(
            "max_update_norm bounds the difference to the model that nodes were sent, and "
            "initial_arrays is empty: give start() the first model, or set max_update_norm=None."
        )


def _never_evaluates(strategy: Strategy) -> bool:
    """Whether Flower's own code chooses the nodes that evaluate, and chooses none."""
    chain = [level for _, level in strategy_levels(strategy)]
    chosen_by: Iterator[Callable[..., object]] = (type(level).configure_evaluate for level in chain)
    flowers = all(method.__module__.startswith("flwr.") for method in chosen_by)
    return flowers and getattr(chain[-1], "fraction_evaluate", None) == 0
