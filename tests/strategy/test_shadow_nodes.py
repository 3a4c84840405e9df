# SPDX-License-Identifier: Apache-2.0
"""Which nodes a shadow evaluation counts, and what is told of the others."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, Error, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg
from hypothesis import given
from hypothesis import strategies as st
from support.local_grid import LocalGrid, model, reply
from support.shadow_nodes import NODES, Nodes, World, counted, falls, grows, mixed, weight_of

from fl_app.strategy import ModelCard, ShadowEvaluation
from fl_app.strategy.shadow.rounds import Paired, ShadowScores
from fl_registry import Evidence, Stage, Verdict


def test_a_node_counts_once_and_its_data_too(world: World, lines: Callable[[], str]) -> None:
    def same_data(node_id: int, message: Message) -> RecordDict | None:
        good = grows(node_id, weight_of(message))
        return reply(accuracy=good, digest="shared") if node_id > 104 else None

    grid = Nodes(grows, faults=same_data)
    world.session(grid, ShadowEvaluation(rounds=4))
    assert world.result()["better"] == 5  # 101 to 104, and one of the rest
    assert world.result()["rounds"] == 1  # nobody else is there
    told = re.findall("the data of node (10[5-8]) were counted already", lines())
    assert len(set(told)) == 3  # those that Flower happened to sample later


def test_nodes_without_a_digest_count_once(world: World) -> None:
    grid = Nodes(mixed, faults=lambda n, m: reply(accuracy=mixed(n, weight_of(m))))
    world.session(grid, ShadowEvaluation(rounds=4))
    assert (world.result()["better"], world.result()["worse"]) == (4, 4)


def test_fresh_data_count_anew(world: World) -> None:
    asked: list[int] = []

    def streams(node_id: int, message: Message) -> RecordDict:
        asked.append(node_id)
        day = (asked.count(node_id) + 1) // 2  # both messages of a round are about one day
        return reply(accuracy=grows(node_id, weight_of(message)), digest=f"{node_id} day {day}")

    grid = Nodes(grows, node_ids=(101, 102), faults=streams)
    world.session(grid, ShadowEvaluation(rounds=6, fresh_data=True))
    assert world.result()["outcome"] == "better"
    assert world.result()["better"] >= 6
    again = World()
    again.session(Nodes(grows, node_ids=(101, 102)), ShadowEvaluation(rounds=6, fresh_data=True))
    assert again.result()["better"] == 2  # their digests stay
    assert again.result()["why"] == "the budget of 6 rounds is spent"


def test_what_keeps_a_node_from_counting_is_told(world: World, lines: Callable[[], str]) -> None:
    def broken(node_id: int, message: Message) -> RecordDict | Error | None:
        heavy = weight_of(message) > 1
        return {
            (101, True): Error(code=1, reason="out of\n memory"),
            (102, False): Error(code=2),
            (103, True): RecordDict({"metrics": MetricRecord({"num-examples": 1, "loss": 0.1})}),
            (104, heavy): reply(accuracy=0.5, digest=f"data {heavy}"),
        }.get((node_id, heavy))

    class Late(Nodes):
        def send_and_receive(self, messages: Any, *, timeout: float | None = None) -> Any:
            replies = super().send_and_receive(messages, timeout=timeout)
            return [m for m in replies if m.metadata.src_node_id != 105]

    world.session(Late(grows, faults=broken), ShadowEvaluation(rounds=1))
    assert world.result()["better"] == 3
    for said in (
        "node 101, on the candidate: out of memory; not counted",
        "node 102, on the champion: error 2; not counted",
        "node 103, on the candidate: no 'accuracy' in the answer, but ['loss', 'num-ex",
        "node 104: its data changed between its two answers; not counted",
        "node 105, on the candidate: no answer in time; not counted",
    ):
        assert said in lines()


def test_a_node_that_failed_is_asked_again(world: World) -> None:
    failed: list[int] = []

    def once(node_id: int, message: Message) -> Error | None:
        if node_id < 104 and weight_of(message) == 1 and node_id not in failed:
            failed.append(node_id)
            return Error(code=1, reason="busy")
        return None

    grid = Nodes(grows, faults=once)
    world.session(grid, ShadowEvaluation())
    assert world.result()["rounds"] == 2
    assert sorted(node for node, _ in grid.evaluated[24:]) == [101, 101, 102, 102, 103, 103]
    assert world.result()["outcome"] == "better"


def test_no_score_is_worse_than_any_and_never_better(world: World) -> None:
    def broken(node_id: int, message: Message) -> RecordDict | None:
        lost = node_id == 105 and weight_of(message) > 1
        return reply(accuracy=float("nan"), digest="data-105") if lost else None

    world.session(Nodes(grows, faults=broken), ShadowEvaluation(), approval="auto")
    assert world.stage() is Stage.STAGING
    assert (world.result()["better"], world.result()["worse"]) == (7, 1)
    assert 0 < world.result()["mean_difference"] < 0.1  # it counts as much as two others


def test_a_metric_that_no_node_reports_ends_it(world: World, lines: Callable[[], str]) -> None:
    def holdout(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        return MetricRecord({"mAP50": float(arrays.to_numpy_ndarrays()[0].mean())})

    grid = Nodes(grows)
    strategy = world.strategy("auto", metric="mAP50", shadow=ShadowEvaluation(rounds=5))
    strategy.start(grid, model(2), num_rounds=1, evaluate_fn=holdout)
    assert len(grid.sent) == 32
    assert "no node reports 'mAP50'" in world.tags()["reason"]
    assert world.stage() is Stage.STAGING


def test_a_champion_of_another_shape_is_not_compared(lines: Callable[[], str]) -> None:
    world = World()

    def wide(node_id: int, message: Message) -> RecordDict:
        received = message.content["arrays"].to_numpy_ndarrays()
        if message.metadata.message_type == "train":
            return reply(ArrayRecord([a + 1 for a in received]), loss=1.0)
        return reply(accuracy=0.5)

    grid = LocalGrid(wide, NODES)
    strategy = world.strategy("auto", shadow=ShadowEvaluation())
    strategy.start(grid, ArrayRecord([np.zeros((5, 5), np.float32)]), num_rounds=1)
    assert len(grid.sent) == 16
    assert (
        "version 1 is not compared: it has other arrays than this session's model"
        in world.tags()["reason"]
    )
    assert world.stage() is Stage.STAGING


def test_a_champion_of_other_classes_is_not_compared(world: World) -> None:
    def session(names: list[str], shadow: ShadowEvaluation | None) -> Nodes:
        grid, card = Nodes(grows), ModelCard({"names": names})
        strategy = world.strategy("auto" if shadow is None else "manual", model=card, shadow=shadow)
        strategy.start(grid, model(2), num_rounds=1)
        return grid

    session(["a", "b"], None)
    world.store.promote_to_production("2")
    grid = session(["b", "a"], ShadowEvaluation(rounds=2))
    assert len(grid.sent) == 16  # a round to train, and one to evaluate
    reason = world.tags("3")["shadow"] + world.tags("3")["reason"]
    assert "version 2 is not compared: its classes are ['a', 'b'], expected ['b', 'a']" in reason


def test_a_champion_whose_weights_are_gone_is_not_compared(world: World) -> None:
    def loses(evidence: Evidence) -> Verdict:
        world.store.weights_path("1").unlink()
        return Verdict("Loses", True, "it passes")

    grid = Nodes(grows)
    policy = {Stage.STAGING: [], Stage.PRODUCTION: [loses]}
    world.session(grid, ShadowEvaluation(), policy=policy)
    assert len(grid.sent) == 16
    assert "version 1 cannot be loaded" in world.tags()["reason"]


@pytest.mark.parametrize("sends", ["nothing", "other arrays"])
def test_an_inner_strategy_that_cannot_serve(world: World, sends: str) -> None:
    class Odd(FedAvg):
        def configure_evaluate(self, server_round: int, arrays: ArrayRecord, *more: Any) -> Any:
            sent = model(9) if sends == "other arrays" else arrays
            messages = super().configure_evaluate(server_round, sent, *more)
            return [] if sends == "nothing" and server_round > 1 else messages

    grid = Nodes(grows)
    world.session(grid, ShadowEvaluation(), inner=Odd())
    assert len(grid.sent) == 16
    told = {"nothing": "samples no node to evaluate", "other arrays": "hold other arrays"}
    assert told[sends] in world.tags()["reason"]


def test_a_person_may_be_quicker(world: World, lines: Callable[[], str]) -> None:
    def approves(node_id: int, message: Message) -> None:
        if world.store.get_version("2").stage is Stage.STAGING and weight_of(message) == 1:
            world.store.reject_version("2", actor="anna")

    world.session(Nodes(grows, faults=approves), ShadowEvaluation(), approval="auto")
    assert world.stage() is Stage.ARCHIVED
    assert "the shadow evaluation changes nothing" in lines()
    (round_report,) = world.reports[-1].rounds
    assert (round_report.stage, round_report.approval) == (Stage.ARCHIVED, "rejected")


def test_a_champion_that_went_meanwhile_decides_nothing(
    world: World, lines: Callable[[], str]
) -> None:
    world.session(Nodes(grows), None, approval="auto")

    def goes_back(node_id: int, message: Message) -> None:
        if world.store.get_latest_version(Stage.PRODUCTION) == "2" and weight_of(message) == 3:
            world.store.rollback()

    world.session(Nodes(falls, faults=goes_back), ShadowEvaluation(), start=4)
    assert world.result("3")["outcome"] == "worse"
    assert world.stage("3") is Stage.STAGING
    assert "version 1 was promoted meanwhile: a person decides" in lines()


# Each node scores one.


def test_ab_test_asks_each_node_once_and_pairs_at_random() -> None:
    assigned = set()
    for _ in range(6):
        world, grid = World(), Nodes(grows)
        world.session(grid, ShadowEvaluation(ab_test=True))
        asked = grid.evaluated[8:]
        assert sorted(node for node, _ in asked) == list(NODES)
        assert sorted(weight for _, weight in asked) == [1] * 4 + [3] * 4
        assigned.add(tuple(sorted(asked)))
        assert world.result()["better"] == 4
        assert "better on 4, worse on 0 of 4 pairs of nodes" in world.tags()["reason"]
    assert len(assigned) > 3


def test_ab_test_decides_with_enough_pairs() -> None:
    world = World()
    grid = Nodes(grows, node_ids=range(100, 121))
    world.session(grid, ShadowEvaluation(ab_test=True))
    assert world.result()["outcome"] == "better"
    assert len(grid.evaluated) == 21 + 20  # an odd one out is not asked


def test_ab_test_leaves_out_pairs_of_which_one_failed() -> None:
    world = World()
    grid = Nodes(grows, faults=lambda n, m: Error(code=1) if n == 103 else None)
    world.session(grid, ShadowEvaluation(ab_test=True, rounds=3))
    assert world.result()["better"] == 3
    assert world.result()["why"] == "the budget of 3 rounds is spent"  # a pair is left, and fails
    assert {len(set(nodes)) for nodes in [counted(world, 3)]} == {6}


numbers = st.floats(-1, 1) | st.just(float("nan"))
pairs = st.builds(
    Paired,
    numbers,
    numbers,
    st.lists(st.text(max_size=5), min_size=1, max_size=2).map(tuple),
    st.lists(st.text(max_size=5), min_size=1, max_size=2).map(tuple),
)


@given(st.lists(st.lists(pairs, max_size=3).map(tuple), max_size=4).map(tuple))
def test_scores_survive_their_tag(rounds: tuple[tuple[Paired, ...], ...]) -> None:
    scores = ShadowScores("2", "1", "accuracy", "max", rounds=rounds)
    back = ShadowScores("2", "1", "accuracy", "max").resumed(scores.as_tag())
    assert repr(back) == repr(scores)
    for other in (("3", "1", "accuracy", "max"), ("2", "1", "accuracy", "min")):
        assert ShadowScores(*other).resumed(scores.as_tag()).rounds == ()


def test_more_scores_than_a_tag_holds_are_left_out() -> None:
    many = [Paired(0.1, 0.2, (f"{n:019d}",), (f"{n:016d}",)) for n in range(3000)]
    tag = ShadowScores("2", "1", "accuracy", "max").with_round(many).as_tag()
    assert len(tag) < 100_000
    assert ShadowScores("2", "1", "accuracy", "max").resumed(tag).rounds == ()


@given(st.floats(0, 1), st.floats(0, 1))
def test_differences_are_in_favour_of_the_candidate(new: float, old: float) -> None:
    pair = Paired(new, old, ("1",), ("a",))
    assert pair.difference("max") == -pair.difference("min") == new - old
    assert Paired(new, float("nan"), ("1",), ("a",)).difference("min") == float("inf")
    assert Paired(float("inf"), old, ("1",), ("a",)).difference("max") == -float("inf")
    assert Paired(float("nan"), float("inf"), ("1",), ("a",)).difference("max") == 0


@pytest.mark.parametrize("wrong", [{"rounds": 0}, {"confidence": 1.0}, {"confidence": 0.0}])
def test_settings_are_checked_at_once(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"(rounds|confidence) is .*, expected"):
        ShadowEvaluation(**wrong)
