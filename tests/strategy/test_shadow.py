# SPDX-License-Identifier: Apache-2.0
"""Shadow evaluation in a session: what follows from the scores, and that nobody else notices."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord
from flwr.serverapp.strategy import (
    DifferentialPrivacyClientSideFixedClipping,
    DifferentialPrivacyServerSideFixedClipping,
    FedAdam,
    FedAvg,
    FedProx,
    Strategy,
)
from support.docs import run_block
from support.local_grid import model
from support.shadow_nodes import (
    NODES,
    NOTHING,
    PASS,
    Nodes,
    Turns,
    World,
    counted,
    falls,
    grows,
    mixed,
    weight_of,
)

from fl_app import LifecycleStrategy
from fl_app.strategy import Finite, ShadowEvaluation
from fl_app.strategy.shadow.messages import size
from fl_registry import InMemoryModelStore, InMemoryTracker, Stage


def test_what_is_better_waits_with_the_numbers(world: World, lines: Callable[[], str]) -> None:
    grid = Nodes(grows)
    world.session(grid, ShadowEvaluation())
    assert world.stage() is Stage.STAGING
    assert world.tags()["approval"] == "pending"
    result = world.result()
    assert (result["outcome"], result["champion"], result["rounds"]) == ("better", "1", 1)
    assert (result["better"], result["worse"], result["why"]) == (8, 0, "decided")
    assert result["mean_difference"] == pytest.approx(np.mean([grows(n, 2) - 0.3 for n in NODES]))
    assert "better than version 1 on the nodes: better on 8, worse on 0" in world.tags()["reason"]
    assert "shadow round 1/3  version 2  accuracy" in lines()
    extra = size(grid.sent[16:]) + sum(
        record.count_bytes() for records in grid.answers[8:] for record in records.values()
    )
    assert f"{extra / 1e3:.1f} kB extra  decided: better" in lines()
    assert "better than version 1 on the nodes" in lines().rpartition("why")[2]  # the table


def test_each_node_scores_both_on_the_same_message_but_for_the_arrays(world: World) -> None:
    grid = Nodes(grows)
    config = ConfigRecord({"batch-size": 7})
    strategy = world.strategy(shadow=ShadowEvaluation())
    strategy.start(grid, model(2), num_rounds=1, evaluate_config=config)
    twins = [m for m in grid.sent if m.metadata.message_type == "evaluate"][8:]
    assert sorted((m.metadata.dst_node_id, weight_of(m)) for m in twins) == sorted(
        (node, weight) for node in NODES for weight in (1.0, 3.0)
    )
    assert {m.content["config"]["batch-size"] for m in twins} == {7}
    assert {m.content["config"]["server-round"] for m in twins} == {2}
    assert len({(m.metadata.ttl, m.metadata.group_id) for m in twins}) == 1


def test_auto_promotes_what_is_better_and_says_why(world: World) -> None:
    world.session(Nodes(grows), ShadowEvaluation(), approval="auto")
    assert world.stage() is Stage.PRODUCTION
    assert world.tags()["approval"] == "approved"
    entry = world.store.history()[-1]
    assert "better than version 1 on the nodes" in entry.reason
    assert world.reports[-1].rounds[-1].stage is Stage.PRODUCTION


@pytest.mark.parametrize("approval", ["auto", "manual"])
def test_what_is_worse_is_archived(world: World, approval: str) -> None:
    world.session(Nodes(falls), ShadowEvaluation(), approval=approval)
    assert world.stage() is Stage.ARCHIVED
    assert world.tags()["approval"] == "rejected"
    assert world.result()["outcome"] == "worse"
    assert "worse than version 1 on the nodes" in world.store.history()[-1].reason
    (round_report,) = world.reports[-1].rounds
    assert (round_report.stage, round_report.approval) == (Stage.ARCHIVED, "rejected")
    assert world.store.get_latest_version(Stage.PRODUCTION) == "1"


def test_less_can_be_better(world: World) -> None:
    world.session(Nodes(falls), ShadowEvaluation(), mode="min", approval="auto")
    assert world.stage() is Stage.PRODUCTION


@pytest.mark.parametrize("approval", ["auto", "manual"])
def test_undecided_waits_for_a_person(world: World, approval: str) -> None:
    world.session(Nodes(mixed), ShadowEvaluation(), approval=approval)
    assert world.stage() is Stage.STAGING
    assert world.tags()["approval"] == "pending"
    assert "undecided beside version 1" in world.tags()["reason"]
    assert world.result()["why"].startswith("all connected nodes were counted")
    assert world.reports[-1].shadow is not None
    assert world.reports[-1].shadow.test.outcome == "undecided"


def test_without_a_champion_nothing_is_sent_and_auto_promotes(lines: Callable[[], str]) -> None:
    store, grid = InMemoryModelStore(), Nodes(grows)
    LifecycleStrategy(
        metric="accuracy",
        policy=PASS,
        approval="auto",
        shadow=ShadowEvaluation(),
        store=store,
        tracker=InMemoryTracker(),
    ).start(grid, model(), num_rounds=1)
    assert store.get_latest_version(Stage.PRODUCTION) == "1"
    assert len(grid.sent) == 16
    assert "no shadow evaluation: there is no version in Production" in lines()


def test_what_the_gates_refuse_is_not_asked_about(world: World, lines: Callable[[], str]) -> None:
    refuse = {Stage.STAGING: [Finite()]}
    grid = Nodes(grows)
    world.session(grid, ShadowEvaluation(), policy=refuse)
    assert len(grid.sent) == 16
    assert "no shadow evaluation: no version waits for approval" in lines()


INNER: dict[str, Callable[[], Strategy]] = {
    "FedAvg": FedAvg,
    "FedProx": lambda: FedProx(proximal_mu=0.1),
    "FedAdam": FedAdam,
    "DP on the server": lambda: DifferentialPrivacyServerSideFixedClipping(
        FedAvg(), noise_multiplier=0.01, clipping_norm=10, num_sampled_clients=8
    ),
    "DP on the nodes": lambda: DifferentialPrivacyClientSideFixedClipping(
        FedAdam(), noise_multiplier=0.01, clipping_norm=10, num_sampled_clients=8
    ),
}


def state_of(strategy: Strategy) -> Any:
    """All that a strategy and the one inside it hold, arrays as lists."""

    def plain(value: object) -> object:
        if isinstance(value, Strategy):
            return {name: plain(each) for name, each in vars(value).items()}
        if isinstance(value, ArrayRecord):
            return [plain(array) for array in value.to_numpy_ndarrays()]
        if isinstance(value, dict):
            return {name: plain(each) for name, each in value.items()}
        if isinstance(value, list | tuple):
            return [plain(each) for each in value]
        return value.tolist() if isinstance(value, np.ndarray) else repr(value)

    return plain(strategy)


@pytest.mark.parametrize("name", INNER)
def test_no_strategy_inside_notices(name: str) -> None:
    """Arrays, the strategy's state and all rounds end as they do without shadow evaluation."""
    ended = []
    for shadow in (None, ShadowEvaluation()):
        world, inner, grid = World(), INNER[name](), Nodes(grows)
        np.random.seed(3)  # the wrappers' noise
        random.seed(3)  # Flower's sampling
        result = world.session(grid, shadow, inner=inner)
        arrays = [a.tolist() for a in result.arrays.to_numpy_ndarrays()]
        ended.append((arrays, state_of(inner), result.evaluate_metrics_clientapp))
        assert len(grid.sent) == (16 if shadow is None else 32)
    assert ended[0] == ended[1]
    assert world.result()["outcome"] == "better"


def test_only_answers_on_the_candidate_reach_the_inner_strategy(world: World) -> None:
    seen: list[tuple[int, list[float]]] = []

    class Looks(FedAvg):
        def aggregate_evaluate(self, server_round: int, replies: Any) -> MetricRecord | None:
            scores = [float(m.content["metrics"]["accuracy"]) for m in replies]
            if server_round:  # before round 1 it is Production that is scored
                seen.append((server_round, sorted(scores)))
            return super().aggregate_evaluate(server_round, replies)

    world.session(Nodes(grows), ShadowEvaluation(), inner=Looks())
    on_candidate = sorted(grows(node, 3) for node in NODES)
    assert seen == [(1, pytest.approx(on_candidate)), (2, pytest.approx(on_candidate))]


def test_replies_come_in_any_order(world: World) -> None:
    class Shuffled(Nodes):
        def send_and_receive(self, messages: Any, *, timeout: float | None = None) -> Any:
            replies = list(super().send_and_receive(messages, timeout=timeout))
            return replies[::-3] + replies[-2::-3] + replies[-3::-3]

    world.session(Shuffled(falls), ShadowEvaluation())
    assert world.result()["outcome"] == "worse"
    assert world.result()["worse"] == 8


def test_rounds_go_on_until_it_is_sure_and_no_longer(world: World) -> None:
    grid = Nodes(grows)
    world.session(grid, ShadowEvaluation(rounds=9), inner=Turns())
    assert world.result()["rounds"] == 3  # with 2 and 4 nodes it was not sure
    assert len(grid.sent) == 8 + 2 + 3 * 4
    logged = world.tracker.runs[-1].metrics
    assert [step for step, _ in logged["shadow/evidence-better"]] == [2, 3, 4]
    assert [step for step, _ in logged["accuracy"]] == [1]
    assert logged["shadow/candidate/accuracy"][0][1] > logged["shadow/champion/accuracy"][0][1]
    bytes_told = sum(value for _, value in logged["shadow/extra-bytes"])
    both = [m.content for m in grid.sent[10:]] + grid.answers[2:]
    assert bytes_told == sum(r.count_bytes() for records in both for r in records.values())
    assert world.result()["extra_bytes"] == bytes_told


def test_the_budget_is_kept_over_sessions(world: World, lines: Callable[[], str]) -> None:
    grid = Nodes(grows)
    world.session(grid, ShadowEvaluation(rounds=2), inner=Turns())
    assert world.result()["outcome"] == "undecided"
    assert "the budget of 2 rounds is spent" in world.tags()["reason"]
    # Version 3 does not get to Staging; version 2 still waits, and its budget is spent.
    later = Nodes(grows)
    world.session(later, ShadowEvaluation(rounds=2), inner=Turns(), policy=NOTHING)
    assert len(later.sent) == 8 + 2
    assert "shadow evaluation of version 2: the budget of 2 rounds is spent" in lines()
    # A greater one goes on where the rounds ended, with the nodes that were not asked.
    more = Nodes(grows)
    world.session(more, ShadowEvaluation(rounds=5), policy=NOTHING, approval="auto")
    fresh = {node for node, _ in more.evaluated[8:]}
    assert len(fresh) == 4
    assert not {str(node) for node in fresh} & counted(world, rounds=2)
    assert world.result()["rounds"] == 3
    assert world.stage() is Stage.PRODUCTION
    assert world.tags()["reason"].count("shadow evaluation: ") == 1


def test_another_champion_begins_anew(world: World) -> None:
    world.session(Nodes(grows), ShadowEvaluation(rounds=1), inner=Turns())
    world.store.promote_to_production("2")
    world.session(Nodes(grows), ShadowEvaluation(rounds=1), inner=Turns(), start=4)
    assert world.result("3")["champion"] == "2"
    assert world.result("3")["better"] == 2


def test_a_decision_is_not_taken_twice(world: World, lines: Callable[[], str]) -> None:
    world.session(Nodes(grows), ShadowEvaluation())
    grid = Nodes(falls)
    world.session(grid, ShadowEvaluation(), policy=NOTHING)
    assert len(grid.sent) == 16
    assert "shadow evaluation of version 2: decided" in lines()
    assert world.stage() is Stage.STAGING


@pytest.mark.parametrize("tag", ["", "[]", "{", '{"rounds": 3}', "null"])
def test_a_tag_that_others_wrote_begins_anew(world: World, tag: str) -> None:
    world.session(Nodes(grows), ShadowEvaluation(rounds=1), inner=Turns())
    world.store.set_version_tags("2", {"shadow_scores": tag})
    world.session(Nodes(grows), ShadowEvaluation(rounds=1), policy=NOTHING)
    assert world.result()["better"] == 8


def test_a_session_that_was_cut_short_is_gone_on_with(world: World) -> None:
    class Ends(Nodes):
        def send_and_receive(self, messages: Any, *, timeout: float | None = None) -> Any:
            if len(self.sent) == 8 + 2 + 4:
                raise KeyboardInterrupt
            return super().send_and_receive(messages, timeout=timeout)

    with pytest.raises(KeyboardInterrupt):
        world.session(Ends(grows), ShadowEvaluation(rounds=9), inner=Turns())
    assert len(counted(world, rounds=9)) == 2
    assert world.tags()["approval"] == "pending"
    grid = Nodes(grows)
    world.session(grid, ShadowEvaluation(rounds=9), policy=NOTHING)
    assert len(grid.sent) == 16 + 2 * 6
    assert world.result()["rounds"] == 2
    assert world.result()["better"] == 8


def test_the_page_s_nodes_decide(world: World) -> None:
    told = run_block("gates.md", "ShadowEvaluation(")["strategy"].setup
    more = {"policy": told.policy, "approval": told.approval}
    world.session(Nodes(grows), told.shadow, **more)
    assert world.stage() is Stage.PRODUCTION
    world.session(Nodes(mixed), told.shadow, start=4, **more)
    assert world.stage("3") is Stage.STAGING
