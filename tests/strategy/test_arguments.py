# SPDX-License-Identifier: Apache-2.0
"""What LifecycleStrategy refuses when it is made or started, in a sentence that says what to do."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
from flwr.app import ArrayRecord
from flwr.serverapp.strategy import DifferentialPrivacyServerSideFixedClipping, FedAvg, Result
from support.local_grid import LocalGrid, add_one, model

from fl_app import LifecycleStrategy
from fl_app.strategy import (
    BestSoFar,
    EarlyStopping,
    MetricError,
    RoundSettings,
    Screening,
    ShadowEvaluation,
    StreamingFedAvg,
)
from fl_registry import InMemoryModelStore, InMemoryTracker, Stage

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from flwr.server.strategy import FedAvg as LegacyFedAvg


class Saving(FedAvg):
    """As Flower's advanced example: a loop of its own that saves the best model."""

    def start(self, *args: Any, **kwargs: Any) -> Result:
        raise AssertionError("LifecycleStrategy runs Flower's own loop")


class StreamingSaving(StreamingFedAvg):
    start = Saving.start  # type: ignore[assignment]


def private(inner: Any) -> FedAvg:
    """Flower's wrapper around a strategy."""
    wrapped: Any = DifferentialPrivacyServerSideFixedClipping(inner, 1.0, 1.0, 3)
    return wrapped


def make(*args: Any, **kwargs: Any) -> LifecycleStrategy:
    return LifecycleStrategy(*args, store=InMemoryModelStore(), tracker=InMemoryTracker(), **kwargs)


@pytest.mark.parametrize(
    ("inner", "said"),
    [
        (Saving(), r"Saving\.start\(\) would not be run.*ignore_start=True"),
        (private(Saving()), r"Saving\.start\(\) would not be run.*ignore_start=True"),
        (StreamingSaving(), r"StreamingSaving\.start\(\) would not be run"),
        (LegacyFedAvg(), r"FedAvg of the legacy flwr\.server API.*import FedAvg from there"),
        (private(LegacyFedAvg()), r"inside Differential.*the legacy flwr\.server API"),
        (FedAvg, r"the class FedAvg, expected an object: FedAvg\(…\)"),
        (private(FedAvg), r"inside Differential.*the class FedAvg"),
        ("FedAvg", r"'FedAvg', expected a strategy of flwr\.serverapp\.strategy"),
        (private("FedAvg"), r"inside Differential.*'FedAvg', expected a strategy"),
        (make(), "LifecycleStrategy is inside another one"),
        (private(make()), "LifecycleStrategy is inside another one"),
    ],
)
def test_a_strategy_that_cannot_be_honoured_is_refused(inner: Any, said: str) -> None:
    with pytest.raises((TypeError, ValueError), match=said):
        make(inner)


@pytest.mark.parametrize("inner", [FedAvg(), private(FedAvg()), StreamingFedAvg()])
def test_flowers_own_start_is_no_reason(inner: FedAvg) -> None:
    make(inner)


def test_a_start_that_is_ignored_is_named_in_the_log(lines: Callable[[], str]) -> None:
    strategy = make(private(Saving()), rounds=RoundSettings(ignore_start=True))
    strategy.start(LocalGrid(add_one), model(), num_rounds=1)
    assert "Saving.start() is not run" in lines()
    assert strategy.setup.store.list_all_versions()


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"mode": "maximum"}, "mode is 'maximum', expected 'max' or 'min'"),
        ({"approval": "never"}, "approval is 'never', expected 'manual' or 'auto'"),
        ({"metric": ""}, "metric is '', expected the name of a metric"),
        ({"policy": {Stage.ARCHIVED: []}}, "gates for Archived, expected Stage.STAGING and"),
        ({"policy": {Stage.STAGING: BestSoFar("a")}}, r"policy\[Staging\] is BestSoFar.*a list"),
        ({"policy": {Stage.STAGING: ["best"]}}, r"policy\[Staging\] has 'best' in it, expected f"),
        ({"policy": [BestSoFar("a")]}, "expected lists of gates by stage"),
        ({"hooks": print}, "hooks is <built-in function print>, expected a list"),
        ({"hooks": ["slack"]}, "hooks has 'slack' in it, expected functions"),
        ({"artifacts": ["confusion.png"]}, "artifacts has 'confusion.png' in it"),
        ({"rounds": Screening()}, r"rounds is Screening.*, expected RoundSettings\(…\) or None"),
        ({"model": {"family": "toy"}}, r"model is {'family'.*, expected ModelCard\(…\) or None"),
        ({"shadow": True, "metric": "a"}, r"shadow is True, expected ShadowEvaluation\(…\)"),
        ({"shadow": ShadowEvaluation()}, "shadow needs a metric"),
        (
            {"rounds": RoundSettings(early_stopping=EarlyStopping(3))},
            "early_stopping needs a metric",
        ),
        ({"tracker": "http://mlflow"}, "tracker is 'http://mlflow', expected an object"),
        ({"store": InMemoryModelStore}, "store is <class.*, expected an object"),
    ],
)
def test_arguments_that_cannot_be_honoured_are_refused(wrong: dict[str, Any], said: str) -> None:
    fakes = {"store": InMemoryModelStore(), "tracker": InMemoryTracker()}
    with pytest.raises((TypeError, ValueError), match=said):
        LifecycleStrategy(**{**fakes, **wrong})


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"node_wait_timeout": -1}, "node_wait_timeout is -1, expected 0 seconds or more"),
        ({"node_wait_timeout": float("nan")}, "node_wait_timeout is nan"),
        ({"screening": True}, r"screening is True, expected Screening\(…\) or None"),
    ],
)
def test_settings_of_rounds_that_cannot_be_honoured_are_refused(
    wrong: dict[str, Any], said: str
) -> None:
    with pytest.raises((TypeError, ValueError), match=said):
        RoundSettings(**wrong)


def test_without_a_metric_the_reason_says_to_give_one() -> None:
    strategy = make()
    strategy.start(LocalGrid(add_one), model(), num_rounds=1)
    (row,) = strategy.setup.store.list_all_versions()
    assert row["stage"] == "None"
    assert "give LifecycleStrategy(metric=…)" in row["tags"]["reason"]


@pytest.mark.parametrize("wrap", [lambda inner: inner, private])
def test_a_metric_that_nobody_is_asked_for_is_refused_before_round_one(wrap: Any) -> None:
    grid = LocalGrid(add_one)
    with pytest.raises(MetricError, match="'accuracy': fraction_evaluate is 0, and start"):
        make(wrap(FedAvg(fraction_evaluate=0.0)), metric="accuracy").start(grid, model())
    assert grid.sent == []


def test_a_bound_on_updates_of_no_model_is_refused() -> None:
    strategy = make(rounds=RoundSettings(screening=Screening(max_update_norm=1.0)))
    with pytest.raises(ValueError, match="initial_arrays is empty: give start"):
        strategy.start(LocalGrid(add_one), ArrayRecord())
