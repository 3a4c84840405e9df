# SPDX-License-Identifier: Apache-2.0
"""Waiting for nodes ends: at the deadline, with the counts, whatever comes and goes meanwhile."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Message
from flwr.serverapp import Grid
from flwr.serverapp.strategy import (
    Bulyan,
    DifferentialPrivacyServerSideAdaptiveClipping,
    DifferentialPrivacyServerSideFixedClipping,
    FedAdagrad,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedMedian,
    FedProx,
    FedTrimmedAvg,
    FedXgbBagging,
    FedXgbCyclic,
    FedYogi,
    Krum,
    MultiKrum,
    QFedAvg,
    Strategy,
)
from flwr.serverapp.strategy import strategy_utils as flowers
from hypothesis import given
from hypothesis import strategies as st
from support.local_grid import LocalGrid, add_one, model
from support.shadow_nodes import Nodes, World, grows

from fl_app import LifecycleStrategy, RoundReport
from fl_app.events import Event, SessionEnded
from fl_app.strategy import RoundSettings, RunFailedError, ShadowEvaluation
from fl_app.strategy.errors import TooFewNodesError
from fl_app.strategy.round.grids import NodeDeadline, required_nodes
from fl_app.strategy.round.screening import needs_of, screen_evaluate
from fl_registry import InMemoryModelStore, InMemoryTracker

SHIPPED: list[Callable[[], Strategy]] = [
    FedAvg,
    FedAvgM,
    FedAdam,
    FedAdagrad,
    FedYogi,
    FedMedian,
    FedTrimmedAvg,
    FedXgbBagging,
    FedXgbCyclic,
    Krum,
    MultiKrum,
    Bulyan,
    lambda: FedProx(proximal_mu=0.1),
    lambda: QFedAvg(client_learning_rate=0.1),
    lambda: DifferentialPrivacyServerSideFixedClipping(FedAvg(), 0.1, 1.0, 2),
    lambda: DifferentialPrivacyServerSideAdaptiveClipping(FedAvg(), 0.1, 2),
]
ONE_ARRAY = ArrayRecord([np.zeros(3, dtype=np.float32)])  # FedXgbBagging takes no others


class Federation(LocalGrid):
    """Nodes that come and go with a clock, which moves by Flower's own sleeping."""

    def __init__(self, connected: Callable[[float], int]) -> None:
        super().__init__(add_one)
        self.connected = connected
        self.now = 1000.0
        self.began = self.now

    def get_node_ids(self) -> Iterable[int]:
        return range(self.connected(self.now - self.began))

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def flower_sleeps(monkeypatch: pytest.MonkeyPatch) -> Callable[[Federation], None]:
    return lambda grid: monkeypatch.setattr(flowers, "sleep", grid.sleep)


def configure(strategy: Strategy, grid: Federation, phase: str, seconds: float) -> int:
    """Let the strategy configure a round, and return how many nodes it chose."""
    limited = NodeDeadline(
        grid,
        strategy,
        phase=phase,  # type: ignore[arg-type]
        seconds=seconds,
        clock=lambda: grid.now,
    )
    call = getattr(strategy, f"configure_{phase}")
    return len(list(call(1, ONE_ARRAY, ConfigRecord(), limited)))


@pytest.mark.parametrize("make", SHIPPED)
@pytest.mark.parametrize("phase", ["train", "evaluate"])
def test_every_strategy_of_flower_s_gives_up_at_the_deadline(
    make: Callable[[], Strategy], phase: str, flower_sleeps: Callable[[Federation], None]
) -> None:
    grid = Federation(lambda passed: 1)
    flower_sleeps(grid)
    with pytest.raises(TooFewNodesError) as caught:
        configure(make(), grid, phase, 600)
    assert 600 <= grid.now - grid.began <= 602
    said = str(caught.value)
    assert f"Too few nodes to {phase}" in said
    assert "after 600 s 1 connected, 2 needed, never more than 1 at once" in said
    assert "node-wait-timeout" in said


@pytest.mark.parametrize("make", SHIPPED)
def test_with_enough_nodes_nothing_changes(make: Callable[[], Strategy]) -> None:
    assert configure(make(), Federation(lambda passed: 5), "train", 600) in (1, 5)


def test_nodes_that_come_in_time_are_waited_for(
    flower_sleeps: Callable[[Federation], None],
) -> None:
    grid = Federation(lambda passed: 2 if passed >= 599 else 1)
    flower_sleeps(grid)
    assert configure(FedAvg(), grid, "train", 600) == 2


def test_the_message_says_what_a_share_of_the_nodes_needs(
    flower_sleeps: Callable[[Federation], None],
) -> None:
    """Flower wants as many as it first saw, though `min_available_nodes` is 2."""
    first = iter([10])
    grid = Federation(lambda passed: next(first, 6))
    flower_sleeps(grid)
    with pytest.raises(TooFewNodesError, match="6 connected, 10 needed, never more than 10"):
        configure(FedAvg(), grid, "train", 60)


def test_a_strategy_of_one_s_own_may_poll_as_it_likes() -> None:
    class Own(FedAvg):
        def configure_train(self, server_round, arrays, config, grid):  # type: ignore[no-untyped-def]
            while len(list(grid.get_nodes())) < 3:
                federation.sleep(7)
            return []

    federation = Federation(lambda passed: 2)
    with pytest.raises(TooFewNodesError, match="2 connected, 2 needed"):
        configure(Own(), federation, "train", 60)
    assert 60 <= federation.now - federation.began <= 67


def test_a_lazy_strategy_whose_numbers_are_not_known() -> None:
    class Unknown(Strategy):
        def configure_train(self, server_round, arrays, config, grid):  # type: ignore[no-untyped-def]
            while not list(grid.get_node_ids()):
                federation.sleep(1)
            yield from ()

        configure_evaluate = aggregate_train = aggregate_evaluate = configure_train

        def summary(self) -> None: ...

    federation = Federation(lambda passed: 0)
    with pytest.raises(TooFewNodesError, match="0 connected, more needed, never more than 0"):
        configure(Unknown(), federation, "train", 60)
    assert required_nodes(Unknown(), "train", 5) is None


@given(
    st.lists(st.integers(0, 6), min_size=1, max_size=40),
    st.integers(1, 5),
    st.integers(2, 30),
)
def test_it_ends_at_the_deadline_or_with_enough_nodes_however_they_come_and_go(
    counts: list[int], needed: int, seconds: int
) -> None:
    grid = Federation(lambda passed: counts[min(int(passed), len(counts) - 1)])
    limited = NodeDeadline(grid, FedAvg(), phase="train", seconds=seconds, clock=lambda: grid.now)
    enough = next((t for t, n in enumerate(counts) if n >= needed), None)
    try:
        list(limited.get_node_ids())
        while len(list(limited.get_node_ids())) < needed:
            grid.sleep(1)
    except TooFewNodesError:
        passed = grid.now - grid.began
        assert enough is None or enough > seconds
        # One question more for each answer that was more than all before.
        assert seconds <= passed <= seconds + 6
    else:
        assert enough == int(grid.now - grid.began)


def test_all_else_goes_to_the_grid_inside() -> None:
    grid = Federation(lambda passed: 3)
    limited: Grid = NodeDeadline(grid, FedAvg(), phase="train", seconds=60)
    messages = list(FedAvg().configure_train(1, model(), ConfigRecord(), grid))
    replies = list(limited.send_and_receive(messages, timeout=1))
    assert len(replies) == 3
    assert [node.node_id for node in limited.get_nodes()] == [0, 1, 2]
    assert limited.run is grid.run
    for call in (
        lambda: limited.push_messages([]),
        lambda: limited.pull_messages([]),
        lambda: limited.create_message(messages[0].content, "train", 1, ""),
    ):
        with pytest.raises(NotImplementedError):
            call()


def test_nodes_that_did_not_answer_are_rejected() -> None:
    grid = Federation(lambda passed: 3)
    messages = list(FedAvg().configure_train(1, model(), ConfigRecord(), grid))
    replies = list(grid.send_and_receive(messages))
    asked = [str(message.metadata.dst_node_id) for message in messages]
    needs = needs_of(FedAvg())
    assert screen_evaluate(replies, None, needs=needs, requested=asked).rejected == {}
    replies.pop(1)
    (missing,) = {"0", "1", "2"} - {str(r.metadata.src_node_id) for r in replies}
    some = screen_evaluate(replies, None, needs=needs, requested=asked)
    assert some.rejected == {missing: "it sent no answer in time"}
    assert len(some.replies) == len(some.good) == 2
    none = screen_evaluate([], None, needs=needs, requested=asked)
    assert list(none.nodes) == ["0", "1", "2"]
    assert not none.good


class Silent(LocalGrid):
    """A grid on which some nodes never answer what is sent in some phases."""

    def __init__(self, *silent: tuple[int, str]) -> None:
        super().__init__(add_one)
        self.silent = silent

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        heard = [m for m in messages if self._answers(m)]
        return super().send_and_receive(heard, timeout=timeout)

    def _answers(self, message: Message) -> bool:
        asked = message.metadata
        return (asked.dst_node_id, asked.message_type) not in self.silent


def test_a_round_goes_on_with_the_answers_that_came_and_names_who_hangs(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", logger="flwr.fl_app")
    store, reports = InMemoryModelStore(), list[Event]()
    grid = Silent((12, "train"), (11, "evaluate"))
    LifecycleStrategy(
        store=store,
        tracker=InMemoryTracker(),
        hooks=[reports.append],
        rounds=RoundSettings(pipeline=False),
    ).start(grid, model(), num_rounds=3)
    rows = list(reversed(store.list_all_versions()))
    assert len(rows) == 3
    for row in rows:
        assert {node["node_id"] for node in json.loads(row["tags"]["nodes"])} == {"11", "13"}
    told = [r.rejected for r in reports if isinstance(r, RoundReport)]
    assert [[(s.node_id, s.phase, s.reason, s.in_a_row) for s in each] for each in told] == [
        [
            ("12", "train", "it sent no answer in time", number),
            ("11", "evaluate", "it sent no answer in time", number),
        ]
        for number in (1, 2, 3)
    ]
    assert "node 12 keeps failing: look at it, or leave it out" in caplog.messages


def test_a_round_in_which_nobody_answers_has_failed_and_three_end_the_run() -> None:
    store, tracker = InMemoryModelStore(), InMemoryTracker()
    grid = Silent(*((node, "train") for node in (11, 12, 13)))
    with pytest.raises(RunFailedError, match="node 11: it sent no answer in time"):
        LifecycleStrategy(store=store, tracker=tracker).start(grid, model(), num_rounds=9)
    assert store.list_all_versions() == []
    assert tracker.runs[0].status == "FAILED"


@pytest.mark.parametrize("pipeline", [True, False])
def test_too_few_nodes_fail_the_session_and_what_was_made_stays(
    pipeline: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, tracker, events = InMemoryModelStore(), InMemoryTracker(), list[Event]()
    grid = LocalGrid(add_one)

    def leave(event: Event) -> None:
        if isinstance(event, RoundReport) and event.round == 2:
            grid.node_ids = [11]

    monkeypatch.setattr(flowers, "sleep", lambda seconds: None)
    with pytest.raises(TooFewNodesError, match="1 connected, 2 needed, never more than"):
        LifecycleStrategy(
            store=store,
            tracker=tracker,
            hooks=[leave, events.append],
            rounds=RoundSettings(pipeline=pipeline, node_wait_timeout=0.0),
        ).start(grid, model(), num_rounds=99)
    assert len(store.list_all_versions()) >= 2
    assert tracker.runs[0].status == "FAILED"
    (ended,) = (event for event in events if isinstance(event, SessionEnded))
    assert ended.status == "failed"
    assert ended.reason.startswith("TooFewNodesError: Too few nodes to ")


def test_too_few_nodes_for_shadow_rounds_end_those_and_not_the_session(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Leaving(Nodes):
        def get_node_ids(self) -> Iterable[int]:
            trained = len(self.sent) >= 2 * len(self.node_ids)
            return self.node_ids[:1] if trained else self.node_ids

    monkeypatch.setattr(flowers, "sleep", lambda seconds: None)
    world.session(Leaving(grows), ShadowEvaluation(), rounds=RoundSettings(node_wait_timeout=0.0))
    assert world.tags()["approval"] == "pending"
    assert world.result()["why"].startswith("Too few nodes to evaluate since")
    assert world.tracker.runs[-1].status == "FINISHED"
