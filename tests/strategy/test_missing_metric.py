# SPDX-License-Identifier: Apache-2.0
"""The metric that gates look at: spared from the limit, and missing without ending the run."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import pytest
from flwr.app import ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg
from support.local_grid import LocalGrid, add_one, model, reply

from fl_app import LifecycleStrategy
from fl_app.strategy import MetricError, NoRegression, StreamingFedAvg
from fl_app.strategy.round.screening import WatchedMetric, sound_metrics
from fl_app.strategy.shadow.messages import NodeEvaluation
from fl_registry import InMemoryModelStore, InMemoryTracker

MANY = {f"m{i:03}": float(i) for i in range(150)}


class World:
    """A registry and a tracker, and sessions of three rounds in them."""

    def __init__(self) -> None:
        self.store, self.tracker = InMemoryModelStore(), InMemoryTracker()

    def run(self, scores: Callable[[int, int], Any], inner: Any = None, **kwargs: Any) -> Any:
        """Nodes answer ``scores(node_id, server_round)`` in evaluation: metrics, or an error."""

        def answer(node_id: int, message: Message) -> Any:
            if message.metadata.message_type == "train":
                return add_one(node_id, message)
            said = scores(node_id, int(message.content["config"]["server-round"]))
            return reply(**said) if isinstance(said, dict) else said

        kwargs = {"metric": "accuracy", **kwargs}
        strategy = LifecycleStrategy(
            inner,
            store=self.store,
            tracker=self.tracker,
            artifacts=[],  # plots of a hundred metrics take seconds
            **kwargs,
        )
        return strategy.start(LocalGrid(answer), model(), num_rounds=3)

    @property
    def rows(self) -> list[dict[str, Any]]:
        return sorted(self.store.list_all_versions(), key=lambda row: int(row["version"]))

    @property
    def stages(self) -> list[str]:
        return [row["stage"] for row in self.rows]


@pytest.fixture
def here() -> World:
    return World()


@pytest.mark.parametrize("kind", [FedAvg, StreamingFedAvg])
def test_the_metric_counts_after_a_hundred_others(here: World, kind: type[FedAvg]) -> None:
    here.run(lambda _, number: {**MANY, "accuracy": 0.1 * number}, kind())
    assert here.stages == ["Archived", "Archived", "Staging"]
    assert "m099" in here.rows[0]["metrics"]
    assert "m100" not in here.rows[0]["metrics"]


def test_so_does_one_of_training(here: World) -> None:
    def answer(node_id: int, message: Message) -> RecordDict:
        trained = add_one(node_id, message)
        more = MetricRecord({**MANY, **dict(trained["metrics"]), "accuracy": 0.5})
        return RecordDict({**trained, "metrics": more})

    strategy = LifecycleStrategy(
        metric="train/accuracy", store=here.store, tracker=here.tracker, artifacts=[]
    )
    strategy.start(LocalGrid(answer), model(), num_rounds=1)
    assert here.rows[0]["metrics"]["train/accuracy"] == pytest.approx(0.5)
    assert here.stages == ["Staging"]


def test_its_classes_have_room_of_their_own() -> None:
    classes = {f"accuracy/{i}": 0.5 for i in range(400)}
    kept, faults = sound_metrics({**MANY, **classes, "accuracy": 0.5}, (), "accuracy")
    assert len([name for name in kept if name.startswith("accuracy/")]) == 200
    assert "accuracy" in kept
    assert len([name for name in kept if name.startswith("m")]) == 100
    assert faults[0] == "it has 350 metrics, expected at most 100"


def test_a_gate_sees_all_classes(here: World) -> None:
    policy = {"Staging": [NoRegression("accuracy", margin=0.1)]}
    classes = {f"accuracy/{i}": 0.5 for i in range(250)}
    here.run(lambda *_: {**classes, "accuracy": 0.5}, policy=policy)
    assert "accuracy/249" in here.rows[0]["metrics"]


def test_shadow_rounds_spare_it_too() -> None:
    class Remembers(FedAvg):
        def aggregate_evaluate(self, server_round: int, replies: Any) -> MetricRecord | None:
            self.averaged = super().aggregate_evaluate(server_round, replies)
            return self.averaged

    grid = LocalGrid(lambda *_: reply(**MANY, accuracy=0.5))
    lifecycle = LifecycleStrategy(inner := Remembers(), metric="accuracy")
    evaluation = NodeEvaluation(lifecycle.setup, grid, ConfigRecord(), 60.0, 3)
    evaluation.aggregate(evaluation.send(evaluation.messages(model())))
    assert inner.averaged is not None
    assert inner.averaged["accuracy"] == pytest.approx(0.5)


def test_a_metric_is_watched_in_the_phase_that_it_is_of() -> None:
    phases: tuple[Literal["train", "evaluate"], ...] = ("train", "evaluate")
    names = {
        metric: [WatchedMetric.of(metric, phase).name for phase in phases]
        for metric in ("mAP", "client/mAP", "train/loss")
    }
    assert names == {"mAP": ["", "mAP"], "client/mAP": ["", "mAP"], "train/loss": ["loss", ""]}


def bad(value: Any) -> Callable[[int, int], dict[str, Any]]:
    """Scores that are spoiled in round 1 on all nodes."""
    return lambda _, number: {"accuracy": value if number == 1 else 0.1 * number, "loss": 1.0}


@pytest.mark.parametrize("value", [math.nan, math.inf, [0.5, 0.5]])
def test_a_metric_that_all_nodes_spoil_in_round_one_stages_nothing_and_ends_nothing(
    here: World, lines: Callable[[], str], value: Any
) -> None:
    here.run(bad(value))
    assert here.stages == ["None", "Archived", "Staging"]
    assert "not a finite number: accuracy" in here.rows[0]["tags"]["reason"]
    assert "round 1 has no accuracy: of 3 nodes it is" in lines()
    assert [run.status for run in here.tracker.runs] == ["FINISHED"]


def test_so_does_one_that_is_in_rejected_replies_only(
    here: World, lines: Callable[[], str]
) -> None:
    def scores(node_id: int, number: int) -> dict[str, float]:
        if number > 1:
            return {"accuracy": 0.1 * number}
        return {"loss": 1.0} if node_id == 11 else {"accuracy": 0.5, "examples": 0}

    here.run(scores)
    assert here.stages == ["None", "Archived", "Staging"]
    assert "of 2 nodes it is in a reply that was rejected: metric 'num-examples' is 0" in lines()


def test_so_does_one_of_a_minority(here: World, lines: Callable[[], str]) -> None:
    def scores(node_id: int, number: int) -> dict[str, float]:
        return {"accuracy": 0.5, "loss": 1.0} if node_id == 11 or number > 1 else {"loss": 1.0}

    here.run(scores)
    assert here.stages == ["None", "Staging", "None"]
    assert "round 1 has no accuracy: 1 of 3 replies have it" in lines()


def test_once_rejected_it_is_known_and_may_be_missing(here: World) -> None:
    here.run(lambda _, number: {"accuracy": math.nan} if number == 1 else {"loss": 1.0})
    assert here.stages == ["None"] * 3


def test_evaluation_without_a_reply_decides_nothing_yet(here: World) -> None:
    def scores(node_id: int, number: int) -> Any:
        return Error(100, "no disk") if number == 1 else {"accuracy": 0.1 * number}

    here.run(scores)
    assert here.stages == ["None", "Archived", "Staging"]


def test_the_first_replies_without_it_end_the_run_whichever_round(here: World) -> None:
    def scores(node_id: int, number: int) -> Any:
        return Error(100, "no disk") if number == 1 or node_id == 11 else {"loss": 1.0}

    said = r"Nobody reported the metric 'accuracy'; reported were \['loss', .*\(1 replies were re"
    with pytest.raises(MetricError, match=said):
        here.run(scores)
    assert here.stages == ["None"]


def test_names_are_listed_up_to_twenty(here: World) -> None:
    with pytest.raises(MetricError, match=r"'m000'.*\] and 8\d more"):
        here.run(lambda *_: MANY)


def test_an_average_that_leaves_it_out_is_named(here: World) -> None:
    inner = FedAvg(evaluate_metrics_aggr_fn=lambda *_: MetricRecord({"mean": 0.5}))
    with pytest.raises(MetricError, match=r"Nodes reported the metric 'accuracy', and the strat"):
        here.run(lambda *_: {"accuracy": 0.5}, inner)
