# SPDX-License-Identifier: Apache-2.0
"""`Result` is Flower's, and each metric name has one source in all rounds of a session."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg, Result, Strategy
from support.local_grid import LocalGrid, add_one, model, reply

from fl_app import LifecycleStrategy
from fl_app.strategy import RoundSettings, ScoredRecord
from fl_app.strategy.finish.evaluation import EvaluateFn
from fl_registry import ExampleScores, InMemoryModelStore, InMemoryTracker, Stage


def weight(arrays: ArrayRecord) -> float:
    return float(arrays.to_numpy_ndarrays()[0].mean())


def central(server_round: int, arrays: ArrayRecord) -> MetricRecord:
    return MetricRecord({"accuracy": weight(arrays) / 10, "loss": 1.0 - weight(arrays) / 10})


def every_second(server_round: int, arrays: ArrayRecord) -> MetricRecord | None:
    return central(server_round, arrays) if server_round % 2 == 0 else None


def from_round_1(server_round: int, arrays: ArrayRecord) -> MetricRecord | None:
    return central(server_round, arrays) if server_round else None


def rich(server_round: int, arrays: ArrayRecord) -> MetricRecord:
    """Lists of floats and ints, and a whole number that stays one."""
    grown = weight(arrays)
    return MetricRecord(
        {
            "accuracy": grown / 10,
            "correct": int(grown),
            "per_class": [grown / 10, 0.5],
            "confusion": [1, 2, 3, 4],
            "per-example/accuracy": [0.0, 1.0] * 20,
        }
    )


def per_example(server_round: int, arrays: ArrayRecord) -> MetricRecord:
    numbers = [weight(arrays) / 10] * 40
    return ScoredRecord({"accuracy": weight(arrays) / 10}, ExampleScores({"accuracy": numbers}))


def list_metrics(node_id: int, message: Message) -> RecordDict:
    answer = add_one(node_id, message)
    answer["metrics"]["per_class"] = [0.1 * (node_id % 10), 0.5]
    answer["metrics"]["seen"] = node_id
    return answer


CASES: dict[str, tuple[EvaluateFn | None, Callable[[int, Message], RecordDict]]] = {
    "central": (central, add_one),
    "clients only": (None, add_one),
    "every second round": (every_second, add_one),
    "not before round 1": (from_round_1, add_one),
    "lists and ints": (rich, list_metrics),
    "clients' lists": (None, list_metrics),
    "results per example": (per_example, add_one),
    "never": (lambda server_round, arrays: None, add_one),
    "empty": (lambda server_round, arrays: MetricRecord(), add_one),
}


def wrapped(**more: Any) -> LifecycleStrategy:
    parts = {"store": InMemoryModelStore(), "tracker": InMemoryTracker()}
    return LifecycleStrategy(FedAvg(), **{"metric": "accuracy", **parts, **more})


def plain(records: dict[int, MetricRecord]) -> dict[int, dict[str, Any]]:
    return {number: dict(record) for number, record in records.items()}


def fields(result: Result) -> tuple[Any, ...]:
    return (
        [a.tolist() for a in result.arrays.to_numpy_ndarrays()],  # integers stay integers
        plain(result.train_metrics_clientapp),
        plain(result.evaluate_metrics_clientapp),
        plain(result.evaluate_metrics_serverapp),
        [type(v) for r in result.evaluate_metrics_serverapp.values() for v in r.values()],
    )


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("rounds", [0, 5])
@pytest.mark.parametrize("pipeline", [True, False])
def test_result_is_what_the_inner_strategy_returns(case: str, rounds: int, pipeline: bool) -> None:
    evaluate_fn, answer = CASES[case]
    results = []
    strategies: list[Strategy] = [FedAvg(), wrapped(rounds=RoundSettings(pipeline=pipeline))]
    for strategy in strategies:
        grid = LocalGrid(answer)
        random.seed(3)  # sampling shuffles the nodes, and so the order of the sums
        result = strategy.start(grid, model(), num_rounds=rounds, evaluate_fn=evaluate_fn)
        results.append(fields(result))
    assert results[0] == results[1]


def test_the_server_s_scores_by_round_are_logged_at_the_end(
    lines: Callable[[], str],
) -> None:
    wrapped().start(LocalGrid(add_one), model(), num_rounds=2, evaluate_fn=rich)
    assert "Initial global evaluation results: " in lines()
    table = lines().rpartition("ServerApp-side Evaluate Metrics, by round:")[2]
    for number in (0, 1, 2):
        assert f"{number}: {{'accuracy': 0." in table
    assert "'per_class': [0.2, 0.5]" in table.replace("\n", "").replace(
        "0.20000000298023224", "0.2"
    )


def test_a_resumed_session_has_the_scores_of_all_rounds(tmp_path: Path) -> None:
    """Those of an earlier process too, as `evaluate_fn` returned them."""

    class Ends(LocalGrid):
        def send_and_receive(self, messages: Any, *, timeout: float | None = None) -> Any:
            if len(self.sent) >= 2 * 6:
                raise KeyboardInterrupt
            return super().send_and_receive(messages, timeout=timeout)

    parts = {"store": InMemoryModelStore(), "tracker": InMemoryTracker(), "home": tmp_path}
    with pytest.raises(KeyboardInterrupt):
        wrapped(**parts, rounds=RoundSettings(pipeline=False)).start(
            Ends(add_one), model(), num_rounds=3, evaluate_fn=rich
        )
    result = wrapped(**parts).start(LocalGrid(add_one), model(), num_rounds=3, evaluate_fn=rich)
    bare = FedAvg().start(LocalGrid(add_one), model(), num_rounds=3, evaluate_fn=rich)
    mine, flowers = (plain(r.evaluate_metrics_serverapp) for r in (result, bare))
    assert {n: mine[n] for n in (1, 2, 3)} == {n: flowers[n] for n in (1, 2, 3)}
    assert mine[0]["accuracy"] == flowers[0]["accuracy"]


def test_a_round_that_the_server_does_not_evaluate_has_no_score(
    lines: Callable[[], str],
) -> None:
    """Central 0.0, 0.2, 0.4 in even rounds; the clients' own accuracy is higher."""

    def clients(node_id: int, message: Message) -> RecordDict:
        if message.metadata.message_type == "train":
            return add_one(node_id, message)
        return reply(accuracy=0.9)

    store, tracker = InMemoryModelStore(), InMemoryTracker()
    strategy = wrapped(store=store, tracker=tracker)
    strategy.start(LocalGrid(clients), model(), num_rounds=4, evaluate_fn=every_second)
    rows = {row["tags"]["round"]: row for row in store.list_all_versions()}
    for number in ("1", "3"):
        assert set(rows[number]["metrics"]) == {"client/accuracy", "train/loss"}
        assert rows[number]["stage"] == "None"
        assert "evaluate_fn returned no metrics in this round" in rows[number]["tags"]["reason"]
    assert rows["2"]["metrics"]["client/accuracy"] == pytest.approx(0.9)
    assert [rows[n]["stage"] for n in ("2", "4")] == ["Archived", "Staging"]
    curve = tracker.runs[0].metrics["accuracy"]
    assert curve == [(0, 0.0), (2, pytest.approx(0.2)), (4, pytest.approx(0.4))]
    assert "round 1/4  version 1 None" in lines()


def test_nothing_is_staged_where_the_server_never_returns_a_score() -> None:
    store = InMemoryModelStore()
    strategy = wrapped(store=store, approval="auto")
    strategy.start(LocalGrid(add_one), model(), num_rounds=2, evaluate_fn=lambda r, a: None)
    assert {row["stage"] for row in store.list_all_versions()} == {str(Stage.NONE)}


def test_the_monitor_hears_of_no_round_without_a_score() -> None:
    heard: list[int] = []

    class Monitor:
        def start_from(self, version: str, score: float) -> None: ...

        def update_metrics(self, accuracy: float, round_num: int) -> None:
            heard.append(round_num)

        def update_data(self, summaries: Any, round_num: int) -> None: ...

        def data_orders(self) -> dict[str, str | bool]:
            return {}

    wrapped(monitor=Monitor()).start(
        LocalGrid(add_one), model(), num_rounds=4, evaluate_fn=every_second
    )
    assert heard == [2, 4]
