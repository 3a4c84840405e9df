# SPDX-License-Identifier: Apache-2.0
"""What a session must beat where scores are the clients', and what is never compared."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import (
    DifferentialPrivacyClientSideFixedClipping,
    DifferentialPrivacyServerSideFixedClipping,
    FedAvg,
    Strategy,
)
from support.local_grid import LocalGrid, model, reply

from fl_app import LifecycleStrategy
from fl_app.strategy import DataUsed, ModelCard, Origin, SessionSettings, default_policy
from fl_app.strategy.finish.evaluation import EvaluateFn
from fl_registry import Evidence, InMemoryModelStore, InMemoryTracker, Stage, decide_stage

LEARNS = 1.0
"""What a round of training adds to each weight."""


def score(weight: float) -> float:
    """A score that depends on the model alone: models 1, 2 and 3 have 0.5, 0.9 and 0.3."""
    return {1: 0.5, 2: 0.9, 3: 0.3}.get(round(weight), 0.1)


class Clients(LocalGrid):
    """Nodes that train, and score a model by what it is; `evaluated` has (round, weight)."""

    def __init__(self, *, training_scores: bool = False) -> None:
        super().__init__(self.reply_of)
        self.training_scores = training_scores
        self.evaluated: list[tuple[int, float]] = []

    def reply_of(self, node_id: int, message: Message) -> RecordDict | Error:
        received = message.content["arrays"].to_numpy_ndarrays()
        if message.metadata.message_type == "train":
            grown = [np.asarray(a + LEARNS, dtype=a.dtype) for a in received]
            more = {"accuracy": score(float(grown[0].mean()))} if self.training_scores else {}
            return reply(ArrayRecord(grown), loss=1.0, **more)
        weight = float(received[0].mean())
        number = int(message.content["config"]["server-round"])
        self.evaluated.append((number, weight))
        return reply(accuracy=score(weight), digest=f"data of {node_id}")


class World:
    """A registry, and sessions of one round that bring models 1, 2 and 3."""

    def __init__(self) -> None:
        self.store, self.tracker = InMemoryModelStore(), InMemoryTracker()

    def session(
        self, arrays: ArrayRecord, inner: Strategy | None = None, **more: Any
    ) -> tuple[Clients, Any]:
        grid = more.pop("grid", None) or Clients()
        evaluate_fn = more.pop("evaluate_fn", None)
        settings = {"metric": "accuracy", "store": self.store, "tracker": self.tracker, **more}
        strategy = LifecycleStrategy(inner or FedAvg(), **settings)
        return grid, strategy.start(grid, arrays, num_rounds=1, evaluate_fn=evaluate_fn)

    def stages(self) -> dict[str, str]:
        rows = sorted(self.store.list_all_versions(), key=lambda row: int(row["version"]))
        return {row["version"]: str(row["stage"]) for row in rows}

    def tag(self, version: str, name: str) -> str:
        return self.store.get_version(version).tags.get(name, "")


INNER: dict[str, Callable[[], Strategy]] = {
    "FedAvg": FedAvg,
    "DP on the server": lambda: DifferentialPrivacyServerSideFixedClipping(
        FedAvg(), noise_multiplier=0.0, clipping_norm=100.0, num_sampled_clients=3
    ),
    "DP on the nodes": lambda: DifferentialPrivacyClientSideFixedClipping(
        FedAvg(), noise_multiplier=0.0, clipping_norm=100.0, num_sampled_clients=3
    ),
}


@pytest.mark.parametrize("inner", INNER)
@pytest.mark.parametrize("approval", ["auto", "manual"])
def test_the_best_so_far_holds_across_sessions(inner: str, approval: str) -> None:
    world = World()
    for start in (0, 1, 2):
        world.session(model(start), INNER[inner](), approval=approval)
    best = "Production" if approval == "auto" else "Staging"
    assert world.stages() == {"1": "Archived", "2": best, "3": "None"}
    if approval == "manual":
        assert world.tag("2", "approval") == "pending"
    assert "0.3000 does not beat" in world.tag("3", "reason")
    assert "0.90" in world.tag("3", "reason")


def test_the_nodes_evaluate_production_and_staging_once_before_round_1() -> None:
    world = World()
    world.session(model(0), approval="auto")
    world.session(model(1))
    grid, result = world.session(model(2), evaluate_fn=None)
    assert world.store.get_latest_version(Stage.PRODUCTION) == "1"
    assert world.store.get_latest_version(Stage.STAGING) == "2"
    assert sorted(grid.evaluated) == [(0, 1.0)] * 3 + [(0, 2.0)] * 3 + [(1, 3.0)] * 3
    assert sorted(result.evaluate_metrics_clientapp) == [1]


def test_what_the_session_starts_from_is_evaluated_too_and_the_monitor_hears_of_it() -> None:
    heard: list[Any] = []

    class Monitor:
        def start_from(self, version: str, score: float) -> None:
            heard.append((version, score))

        def update_metrics(self, accuracy: float, round_num: int) -> None:
            heard.append((round_num, accuracy))

        def update_data(self, summaries: Any, round_num: int) -> None: ...

        def data_orders(self) -> dict[str, str | bool]:
            return {}

    world = World()
    world.session(model(0))
    world.session(
        model(1), monitor=Monitor(), session=SessionSettings(origin=Origin(parent_version="1"))
    )
    assert heard == [("1", pytest.approx(0.5)), (1, pytest.approx(0.9))]
    assert world.tracker.runs[-1].metrics["accuracy"] == [
        (0, pytest.approx(0.5)),
        (1, pytest.approx(0.9)),
    ]


def test_a_first_session_sends_nothing_more() -> None:
    grid, _ = World().session(model(0))
    assert grid.evaluated == [(1, 1.0)] * 3


def test_neither_the_strategy_nor_the_config_nor_random_states_notice() -> None:
    """A second session samples the nodes that it would sample without a version to beat."""

    class Counts(FedAvg):
        calls = 0

        def configure_evaluate(self, *args: Any) -> Any:
            self.calls += 1
            return super().configure_evaluate(*args)

    sampled, states, config = [], [], ConfigRecord({"batch-size": 7})
    for versions in (0, 1):
        world = World()
        for _ in range(versions):
            world.session(model(0), approval="auto")
        grid, inner = Clients(), Counts(fraction_train=0.5, fraction_evaluate=0.5)
        grid.node_ids = list(range(20))
        random.seed(3)
        np.random.seed(3)
        LifecycleStrategy(inner, metric="accuracy", store=world.store, tracker=world.tracker).start(
            grid, model(0), num_rounds=2, evaluate_config=config
        )
        sent = [m for m in grid.sent if m.content["config"]["server-round"]]
        sampled.append([m.metadata.dst_node_id for m in sent])
        assert inner.calls == 2
        assert len(grid.evaluated) == 10 * (2 + versions)
        states.append((random.getstate(), np.random.get_state()[1].tolist()))
    assert sampled[0] == sampled[1]
    assert states[0] == states[1]
    assert config["server-round"] == 2


@pytest.mark.parametrize("approval", ["auto", "manual"])
def test_where_nobody_evaluates_the_registered_score_stands_in(approval: str) -> None:
    world, scores = World(), Clients(training_scores=True)
    settings = {"metric": "train/accuracy", "grid": scores, "approval": approval}
    world.session(model(0), FedAvg(), **settings)
    for start in (1, 2):
        grid, _ = world.session(model(start), FedAvg(fraction_evaluate=0.0), **settings)
        assert not [number for number, _ in grid.evaluated if number == 0]
    best = "Production" if approval == "auto" else "Staging"
    assert world.stages() == {"1": "Archived", "2": best, "3": "None"}
    beaten = "the registered score of version 2, since it is not evaluated in this session"
    assert beaten in world.tag("3", "reason")
    assert world.tag("3", "score_source") == "training"


class Skips(FedAvg):
    """Asks nobody before round 1."""

    def configure_evaluate(self, server_round: int, *args: Any) -> Any:
        return super().configure_evaluate(server_round, *args) if server_round else []


class Hides(FedAvg):
    """Sends other arrays than it was given before round 1."""

    def configure_evaluate(self, server_round: int, arrays: ArrayRecord, *args: Any) -> Any:
        return super().configure_evaluate(server_round, arrays if server_round else model(9), *args)


@pytest.mark.parametrize("inner", [Skips, Hides])
def test_where_the_nodes_cannot_evaluate_it_the_reason_says_so(inner: type[FedAvg]) -> None:
    world = World()
    world.session(model(0), approval="auto")
    world.session(model(1), inner(), approval="auto")
    assert world.stages() == {"1": "Archived", "2": "Production"}
    said = "the registered score of version 1, since no node evaluated it in this session"
    assert said in world.tag("2", "reason")


def test_what_nodes_answered_before_round_1_outlives_the_process(tmp_path: Any) -> None:
    class Ends(Clients):
        def send_and_receive(self, messages: Any, *, timeout: float | None = None) -> Any:
            sent = list(messages)
            if any(m.metadata.message_type == "train" for m in sent):
                raise KeyboardInterrupt
            return super().send_and_receive(sent, timeout=timeout)

    world = World()
    world.session(model(0), approval="auto")
    with pytest.raises(KeyboardInterrupt):
        world.session(model(1), home=tmp_path, grid=Ends(), approval="auto")
    grid, _ = world.session(model(1), home=tmp_path, approval="auto")
    assert grid.evaluated == [(1, 2.0)] * 3
    assert world.stages() == {"1": "Archived", "2": "Production"}
    assert "registered score" not in world.tag("2", "reason")


# Sources


def holdout(scores: Callable[[float], float] = score) -> EvaluateFn:
    def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        return MetricRecord({"accuracy": scores(float(arrays.to_numpy_ndarrays()[0].mean()))})

    return evaluate


def test_a_version_records_where_its_score_comes_from() -> None:
    world = World()
    data = DataUsed("test", "ab" * 32)
    world.session(model(0))
    world.session(model(1), evaluate_fn=holdout())
    world.session(model(0), evaluate_fn=holdout(), model=ModelCard(holdout=data))
    world.session(model(0), evaluate_fn=holdout(), metric="client/accuracy")
    sources = [world.tag(str(n), "score_source") for n in (1, 2, 3, 4)]
    assert sources == ["clients", "holdout", f"holdout {'ab' * 32}", "clients"]


def test_scores_of_different_sources_are_not_compared() -> None:
    """Clients gave 0.9; on the holdout the same model has 0.2, and 0.4 is better."""
    world = World()
    world.session(model(1), approval="auto")
    world.session(model(0), evaluate_fn=holdout(lambda w: 0.6 - 0.2 * w), approval="auto")
    assert world.stages() == {"1": "Archived", "2": "Production"}
    assert "0.4000 beats production's 0.2000" in world.tag("2", "reason")


# Models of another shape


def wider() -> ArrayRecord:
    return ArrayRecord([*model(1).to_numpy_ndarrays(), np.ones((3, 2), np.float32)])


def double() -> ArrayRecord:
    first, second = model(1).to_numpy_ndarrays()
    return ArrayRecord([first.astype(np.float64), second])


CHANGED: dict[str, tuple[Callable[[], ArrayRecord], str]] = {
    "a layer more": (wider, "it lacks '2'"),
    "float64": (double, "its '0' is float32 [2, 3] and not float64 [2, 3]"),
}


@pytest.mark.parametrize("changed", CHANGED)
@pytest.mark.parametrize("stage", ["Staging", "Production"])
@pytest.mark.parametrize(
    "scored",
    [
        {},
        {"evaluate_fn": holdout()},
        {"evaluate_fn": holdout(), "model": ModelCard(holdout=DataUsed("test", "ab" * 32))},
    ],
    ids=["clients", "a holdout", "a holdout with a digest"],
)
def test_a_model_of_another_shape_is_not_blocked(
    changed: str, stage: str, scored: dict[str, Any]
) -> None:
    arrays, difference = CHANGED[changed]
    world = World()
    world.session(model(0), approval="auto" if stage == "Production" else "manual", **scored)
    assert world.stages() == {"1": stage}
    world.session(arrays(), approval="auto", **scored)
    known = "model" in scored or "evaluate_fn" not in scored
    assert difference in world.tag("2", "reason")
    assert "it is not this session's model" in world.tag("2", "reason")
    if known:  # a registered score of the same source stands in
        assert world.stages() == {"1": "Archived", "2": "Production"}
        assert "the registered score of version 1, since" in world.tag("2", "reason")
    else:
        assert world.stages()["2"] == "Staging"
        assert world.tag("2", "approval") == "pending"
        assert world.tag("2", "needs_person") == "true"
        assert "name it with ModelCard(holdout=" in world.tag("2", "reason")
        world.store.approve_version("2", actor="anna")
        assert world.store.get_latest_version(Stage.PRODUCTION) == "2"


@pytest.mark.parametrize("names", [["b", "a"], ["a", "c"]])
def test_a_model_of_other_classes_is_not_compared(names: list[str]) -> None:
    """Its arrays have the same shapes, and a score of them would mean nothing."""
    world, scored = World(), []

    def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        scored.append(float(arrays.to_numpy_ndarrays()[0].mean()))
        return MetricRecord({"accuracy": score(scored[-1])})

    cards = [ModelCard({"names": each}) for each in (["a", "b"], names)]
    world.session(model(0), approval="auto", evaluate_fn=evaluate, model=cards[0])
    scored.clear()
    world.session(model(2), approval="auto", evaluate_fn=evaluate, model=cards[1])
    assert set(scored) == {2, 3}  # the session's own, and not the one in Production
    expected = f"it is not this session's model: its classes are ['a', 'b'], expected {names}"
    assert expected in world.tag("2", "reason")
    assert world.tag("2", "needs_person") == "true"
    by_nodes, _ = world.session(model(4), approval="auto", model=cards[0])
    assert {weight for _, weight in by_nodes.evaluated} == {1, 5}  # not version 2, in Staging


def test_a_worse_model_of_another_shape_is_refused_by_the_registered_score() -> None:
    world = World()
    world.session(model(1), approval="auto")
    later = ArrayRecord([np.asarray(a + 1) for a in wider().to_numpy_ndarrays()])
    world.session(later, approval="auto")
    assert world.stages() == {"1": "Production", "2": "None"}
    assert "it lacks '2'" in world.tag("2", "reason")


def test_what_could_not_be_compared_is_left_to_a_person_by_each_gate() -> None:
    policy = default_policy("accuracy", class_margin=0.1)
    decision = decide_stage(
        policy, Evidence({"accuracy": 0.9}, champion={}, champion_note="version 1 has '2'")
    )
    assert (decision.stage, decision.needs_person) == (Stage.PRODUCTION, True)
    assert "version 1 has '2'" in decision.why
    assert "version 1 has '2'" in decision.reason
    below = default_policy("accuracy", threshold=0.95)
    refused = decide_stage(below, Evidence({"accuracy": 0.9}, best={}, best_note="unlike"))
    assert refused.stage is Stage.NONE


def test_staging_takes_nothing_worse_than_production_but_for_a_margin_that_allows_it() -> None:
    worse = Evidence({"accuracy": 0.88}, champion={"accuracy": 0.9})
    assert decide_stage(default_policy("accuracy"), worse).stage is Stage.NONE
    allowed = default_policy("accuracy", margin=-0.05, confidence=None)
    assert decide_stage(allowed, worse).stage is Stage.PRODUCTION
