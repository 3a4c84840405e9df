# SPDX-License-Identifier: Apache-2.0
"""What the user gave to `LifecycleStrategy`, checked as it is constructed.

Whether the inner strategy and the arguments of ``start()`` fit it is checked here as well.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from flwr.app import ArrayRecord
from flwr.serverapp.strategy import (
    DifferentialPrivacyClientSideAdaptiveClipping,
    DifferentialPrivacyClientSideFixedClipping,
    DifferentialPrivacyServerSideAdaptiveClipping,
    DifferentialPrivacyServerSideFixedClipping,
    Strategy,
)

from fl_app.health import Health
from fl_app.hooks.queue import Hooks
from fl_app.strategy.early_stopping import EarlyStopping
from fl_app.strategy.errors import MetricError
from fl_app.strategy.finish.evaluation import EvaluateFn
from fl_app.strategy.records import Artifacts, DataUsed, Monitor, Origin, ProductionWatch
from fl_app.strategy.round.averaging import StreamingFedAvg
from fl_app.strategy.round.grids import NODE_WAIT_SECONDS
from fl_app.strategy.round.inner_state import strategy_levels
from fl_app.strategy.round.screening import DEFAULT_SCREENING, Screening
from fl_app.strategy.session.resume import Resume
from fl_app.strategy.shadow.rounds import ShadowEvaluation
from fl_registry import ModelStore, Policy, Serving, Stage, Tracker, Writer
from fl_registry.breaker import Breaker
from fl_registry.home import DEFAULT_MODEL_NAME

_WRAPPERS = (
    DifferentialPrivacyClientSideAdaptiveClipping,
    DifferentialPrivacyClientSideFixedClipping,
    DifferentialPrivacyServerSideAdaptiveClipping,
    DifferentialPrivacyServerSideFixedClipping,
)


@dataclass(frozen=True)
class ModelCard:
    """What the model is, how its versions are served, and what they are scored on.

    Parameters
    ----------
    description : Mapping[str, object]
        Saved beside the weights of each version (for YOLO: size, classes, image size).
    serving : Serving | None
        How MLflow itself loads and serves the versions; None leaves that out.
    holdout : DataUsed | None
        What ``evaluate_fn`` scores on; logged to the MLflow run. If the digest is the same, the
        registered score of a version is used where it cannot be evaluated again.
    """

    description: Mapping[str, object] = field(default_factory=dict)
    serving: Serving | None = None
    holdout: DataUsed | None = None


@dataclass(frozen=True)
class RoundSettings:
    """How rounds are run.

    Parameters
    ----------
    screening : Screening | None
        What is required of a reply. None accepts every reply, for inner strategies whose nodes
        send something else than models, such as masked updates.
    early_stopping : EarlyStopping | None
        When the remaining rounds are left out since the metric does not improve.
    node_wait_timeout : float
        Seconds for which a round waits for as many nodes as the inner strategy needs.
    pipeline : bool
        Evaluate and register a round while the nodes train the next one. False does it inline.
    pack_arrays : bool
        Send a model as one array over a SuperLink's network, which takes seconds for hundreds of
        arrays. All ClientApps need the mod `fl_app.client.mods.packing.pack_arrays`.
    ignore_start : bool
        Accept an inner strategy that overrides ``start()``, which is not run; the log names it.

    Raises
    ------
    TypeError, ValueError
        If a value has another type or is out of range.
    """

    screening: Screening | None = DEFAULT_SCREENING
    early_stopping: EarlyStopping | None = None
    node_wait_timeout: float = NODE_WAIT_SECONDS
    pipeline: bool = True
    pack_arrays: bool = False
    ignore_start: bool = False

    def __post_init__(self) -> None:
        _check_type("screening", self.screening, Screening)
        _check_type("early_stopping", self.early_stopping, EarlyStopping)
        seconds: object = self.node_wait_timeout
        if not isinstance(seconds, int | float) or math.isnan(seconds) or seconds < 0:
            raise ValueError(f"node_wait_timeout is {seconds!r:.60}, expected 0 seconds or more.")


@dataclass(frozen=True)
class SessionSettings:
    """What a session is run for, and how it waits for MLflow.

    Parameters
    ----------
    params : Mapping[str, object]
        Logged as params of the MLflow run, beside the inner strategy's name.
    origin : Origin
        Why the session runs, and from which version.
    writer : Writer | None
        The right to write to the model, from ``store.writer(…)``. By default a session waits until
        no other server has it.
    health : Health
        Where failures are reported that do not end the run: MLflow is down, the disk is full.
    round_patience : float
        Seconds for which a round waits until MLflow has taken the round before.
    drain_timeout : float
        Seconds for which the end of a session waits for MLflow while it is down.
    retry : Breaker
        How long to wait between attempts while MLflow is down.
    """

    params: Mapping[str, object] = field(default_factory=dict)
    origin: Origin = field(default_factory=Origin)
    writer: Writer | None = None
    health: Health = field(default_factory=Health)
    round_patience: float = 0.7
    drain_timeout: float = 60.0
    retry: Breaker = field(default_factory=Breaker)


@dataclass(frozen=True)
class Setup:
    """The checked arguments of `LifecycleStrategy`, which documents them.

    Raises
    ------
    TypeError, ValueError
        If one of them has another type, or a value that cannot be honoured.
    """

    strategy: Strategy
    metric: str | None
    mode: Literal["max", "min"]
    policy: Policy
    approval: Literal["manual", "auto"]
    shadow: ShadowEvaluation | None
    store: ModelStore
    tracker: Tracker
    monitor: Monitor | None
    probation: ProductionWatch | None
    hooks: Hooks
    artifacts: Sequence[Artifacts]
    model: ModelCard
    home: Path
    resume: Resume
    rounds: RoundSettings
    session: SessionSettings

    def __post_init__(self) -> None:
        if self.metric is not None and (not isinstance(self.metric, str) or not self.metric):
            raise ValueError(
                f"metric is {self.metric!r:.60}, expected the name of a metric or None."
            )
        _check_word("mode", self.mode, "max", "min")
        _check_word("approval", self.approval, "manual", "auto")
        _check_policy(self.policy)
        check_functions("artifacts", self.artifacts)
        _check_type("shadow", self.shadow, ShadowEvaluation)
        _check_type("model", self.model, ModelCard)
        _check_type("rounds", self.rounds, RoundSettings)
        _check_type("session", self.session, SessionSettings)
        needs_metric = {"shadow": self.shadow, "early_stopping": self.rounds.early_stopping}
        for name, setting in needs_metric.items():
            if setting is not None and self.metric is None:
                raise ValueError(f"{name} needs a metric to look at; give metric=… as well.")
        for name, value in (("store", self.store), ("tracker", self.tracker)):
            if isinstance(value, str | Path | type):
                raise TypeError(f"{name} is {value!r:.60}, expected an object: {name}=….")

    @property
    def model_name(self) -> str:
        """Name of the registered model."""
        return getattr(self.store, "registered_model_name", DEFAULT_MODEL_NAME)

    @property
    def params(self) -> dict[str, object]:
        """The params of the session's MLflow run."""
        return {"strategy": type(self.strategy).__name__, **self.session.params}


def _check_type(name: str, value: object, kind: type) -> None:
    if value is not None and not isinstance(value, kind):
        raise TypeError(f"{name} is {value!r:.60}, expected {kind.__name__}(…) or None.")


def _check_word(name: str, value: object, *words: str) -> None:
    if value not in words:
        raise ValueError(f"{name} is {value!r:.60}, expected {' or '.join(map(repr, words))}.")


def check_functions(name: str, values: object) -> None:
    """Raise TypeError if ``values`` is not a sequence of functions."""
    if not isinstance(values, Sequence) or isinstance(values, str):
        raise TypeError(f"{name} is {values!r:.60}, expected a list of functions.")
    for value in values:
        if not callable(value):
            raise TypeError(f"{name} has {value!r:.60} in it, expected functions.")


def _check_policy(policy: object) -> None:
    if not isinstance(policy, Mapping):
        raise TypeError(f"policy is {policy!r:.60}, expected lists of gates by stage.")
    for stage, gates in policy.items():
        if stage not in (Stage.STAGING, Stage.PRODUCTION):
            raise ValueError(
                f"policy has gates for {stage!s:.60}, expected Stage.STAGING and Stage.PRODUCTION."
            )
        check_functions(f"policy[{stage!s}]", gates)


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
            "RoundSettings(ignore_start=True)."
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


def check_start(setup: Setup, *, arrays: ArrayRecord, evaluate_fn: EvaluateFn | None) -> None:
    """Check the arguments of ``start()`` against those of the strategy.

    Raises
    ------
    MetricError
        If nobody is requested to report the metric.
    ValueError
        If updates are to be bounded, and there is no model to measure them against.
    """
    metric, screening = setup.metric, setup.rounds.screening
    from_training = metric is None or metric.startswith("train/")
    if evaluate_fn is None and not from_training and _never_evaluates(setup.strategy):
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
