# SPDX-License-Identifier: Apache-2.0
"""What the user gave to `LifecycleStrategy`, checked as it is constructed.

Whether the inner strategy and the arguments of ``start()`` fit it is checked here as well.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal, get_args

from flwr.app import ArrayRecord
from flwr.serverapp.strategy import Strategy
from flwr.serverapp.strategy.dp_adaptive_clipping import DifferentialPrivacyAdaptiveBase
from flwr.serverapp.strategy.dp_fixed_clipping import DifferentialPrivacyFixedClippingBase
from pydantic import Field

from fl_app.health import Health
from fl_app.hooks.queue import Hooks
from fl_app.settings import Key, check_settings
from fl_app.strategy.early_stopping import EarlyStopping
from fl_app.strategy.errors import MetricError
from fl_app.strategy.records import Artifacts, DataUsed, Monitor, Origin, ProductionWatch
from fl_app.strategy.retention import Retention
from fl_app.strategy.round.averaging import StreamingFedAvg
from fl_app.strategy.round.grids import NODE_WAIT_SECONDS
from fl_app.strategy.round.inner_strategy import strategy_levels
from fl_app.strategy.round.screening import DEFAULT_SCREENING, Screening
from fl_registry import ModelStore, Policy, Serving, Stage, Tracker, Writer
from fl_registry.breaker import Breaker
from fl_registry.files.weights import read_description
from fl_registry.home import DEFAULT_MODEL_NAME
from fl_registry.redaction import one_line

ResumeMode = Literal["auto", "require", "fresh"]
_WRAPPERS = (DifferentialPrivacyAdaptiveBase, DifferentialPrivacyFixedClippingBase)
"""Flower's own strategies around another one."""


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

    def other_classes(self, weights: Path) -> str:
        """Return how the ``names`` in the description of a weights file differ; empty if unknown.

        The same number of other classes, or another order, has arrays of the same shape.
        """
        theirs, ours = read_description(weights).get("names"), self.description.get("names")
        if not isinstance(theirs, list) or not isinstance(ours, list) or theirs == ours:
            return ""
        return one_line(f"its classes are {theirs}, expected {ours}")


MAX_WAITING_ROUNDS = 20
"""Closed rounds that may wait for the worker, each with its arrays on disk."""


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
    max_waiting_rounds : int
        Closed rounds that may wait on disk for a worker that is slower than the rounds; at that
        many, a round waits until one is finished. While MLflow is down rounds go on all the same.
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
    max_waiting_rounds: int = MAX_WAITING_ROUNDS
    pack_arrays: bool = False
    ignore_start: bool = False

    def __post_init__(self) -> None:
        _check_type("screening", self.screening, Screening)
        _check_type("early_stopping", self.early_stopping, EarlyStopping)
        seconds: object = self.node_wait_timeout
        if not isinstance(seconds, int | float) or not seconds >= 0:
            raise ValueError(f"node_wait_timeout is {seconds!r:.60}, expected 0 seconds or more.")
        most: object = self.max_waiting_rounds
        if isinstance(most, bool) or not isinstance(most, int) or most < 1:
            raise ValueError(f"max_waiting_rounds is {most!r:.60}, expected 1 round or more.")


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
    retention : Retention
        Which old versions are removed meanwhile and at the end; none by default.
    """

    params: Mapping[str, object] = field(default_factory=dict)
    origin: Origin = field(default_factory=Origin)
    writer: Writer | None = None
    health: Health = field(default_factory=Health)
    round_patience: float = 0.7
    drain_timeout: float = 60.0
    retry: Breaker = field(default_factory=Breaker)
    retention: Retention = field(default_factory=Retention)


@dataclass(frozen=True)
class ShadowEvaluation:
    """Have the nodes score the version that waits for approval beside the one in Production.

    After the last training round up to ``rounds`` rounds of evaluate messages follow. The inner
    strategy samples the nodes; each of them gets its message twice, once with either model. A
    test that may look after each round decides: better, worse, or undecided while it cannot.

    Parameters
    ----------
    rounds : int
        Most rounds in which nodes compare a version that waits for approval with Production.
        Rounds of earlier sessions count.
    confidence : float
        One minus the probability of a decision between equally good models. A decision needs at
        least 6 nodes at 0.95, 5 at 0.9 and 4 at 0.8.
    ab_test : bool
        Each node scores only one of the two models; needs many more nodes. For nodes that cannot
        hold both. They are paired at random, and the data of the two differ as well.
    fresh_data : bool
        True if nodes evaluate on data that are new each time, such as those of the last day: then
        a node counts anew as its data digest changes. By default it counts once, since data of
        which a part has changed would tell the same again.

    Raises
    ------
    SettingError
        If ``rounds`` or ``confidence`` is out of range.
    """

    rounds: Annotated[int, Field(ge=1), Key("shadow-rounds", off=0)] = 3
    confidence: Annotated[float, Field(gt=0, lt=1), Key("shadow-confidence")] = 0.95
    ab_test: Annotated[bool, Key("shadow-ab-test")] = False
    fresh_data: bool = False

    def __post_init__(self) -> None:
        check_settings(self)


@dataclass(frozen=True)
class Resume:
    """What to do with a session of the same model that was interrupted.

    It is the same session if model, request, number of rounds, arrays, the classes of the inner
    strategy, its numbers and texts, the params and the configs are the same.

    Parameters
    ----------
    mode : "auto" | "require" | "fresh"
        ``auto`` resumes it if it is the same, and else starts a new one. ``require`` resumes it or
        raises. ``fresh`` always starts a new one.
    ignoring : frozenset[str]
        Params that may have changed, since they shape no model.

    Raises
    ------
    ValueError
        If ``mode`` is another word.
    """

    mode: ResumeMode = "auto"
    ignoring: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        if self.mode not in get_args(ResumeMode):
            raise ValueError(f"resume is {self.mode!r}, expected 'auto', 'require' or 'fresh'.")


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
        for name, value in ("store", self.store), ("tracker", self.tracker):
            if isinstance(value, str | Path | type):
                raise TypeError(f"{name} is {value!r:.60}, expected an object: {name}=….")
        if require_model_of := getattr(self.monitor, "require_model_of", None):
            require_model_of(self.store)
        _check_strategy(self.strategy, ignore_start=self.rounds.ignore_start)

    @property
    def model_name(self) -> str:
        """Name of the registered model."""
        return getattr(self.store, "registered_model_name", DEFAULT_MODEL_NAME)


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


def _check_strategy(strategy: object, *, ignore_start: bool) -> None:
    """Require strategies of Flower's message API whose ``start()`` need not be run."""
    if not isinstance(strategy, Strategy):
        raise TypeError(_no_strategy(strategy, "strategy"))
    for _, level in strategy_levels(strategy):
        if isinstance(getattr(level, "setup", None), Setup):
            raise TypeError(
                "LifecycleStrategy is inside another one, expected only the outermost to be one: "
                "give the outer one the strategy of the inner one."
            )
        inside = getattr(level, "strategy", None)
        wraps = isinstance(level, _WRAPPERS) or isinstance(inside, type) or _is_legacy(inside)
        if wraps and not isinstance(inside, Strategy):
            raise TypeError(_no_strategy(inside, f"the strategy inside {type(level).__name__}"))
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


def _no_strategy(value: object, what: str) -> str:
    """Return the error that something else is given where a strategy is expected."""
    if isinstance(value, type):
        return f"{what} is the class {value.__name__}, expected an object: {value.__name__}(…)."
    modern, name = "flwr.serverapp.strategy", type(value).__name__
    if _is_legacy(value):
        return (
            f"{what} is a {name} of the legacy flwr.server API, expected one of {modern}: move the "
            f"app to Flower's message API, and import {name} from there."
        )
    return f"{what} is {value!r:.60}, expected a strategy of {modern}, such as FedAvg()."


def _is_legacy(value: object) -> bool:
    return any(base.__module__.startswith("flwr.server.") for base in type(value).__mro__)


def check_start(setup: Setup, arrays: ArrayRecord, *, central: bool) -> None:
    """Check the arguments of ``start()``; with an ``evaluate_fn`` scores are ``central``.

    Raises
    ------
    MetricError
        If nobody is requested to report the metric.
    ValueError
        If updates are to be bounded, and there is no model to measure them against.
    """
    metric, screening = setup.metric or "train/", setup.rounds.screening
    if not central and not metric.startswith("train/") and _never_evaluates(setup.strategy):
        raise MetricError(
            f"Nobody will report the metric {metric!r}: fraction_evaluate is 0, and start() has no "
            "evaluate_fn; give one of them, or set metric to one that training reports, such as "
            f"'train/{metric.removeprefix('client/')}'."
        )
    if not arrays and screening is not None and screening.max_update_norm is not None:
        raise ValueError(
            "max_update_norm bounds the difference to the model that nodes were sent, and "
            "initial_arrays is empty: give start() the first model, or set max_update_norm=None."
        )


def _never_evaluates(strategy: Strategy) -> bool:
    """Whether Flower's own code chooses the nodes that evaluate, and chooses none."""
    chain = [level for _, level in strategy_levels(strategy)]
    flowers = all(type(x).configure_evaluate.__module__.startswith("flwr.") for x in chain)
    return flowers and getattr(chain[-1], "fraction_evaluate", None) == 0
