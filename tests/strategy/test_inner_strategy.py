# SPDX-License-Identifier: Apache-2.0
"""The inner strategy and its state: put back after a bad round, and freed of replies that harm."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid, SamplingMethod
from flwr.serverapp import strategy as flower
from flwr.serverapp.strategy import FedAvg, Strategy
from support.hostile_replies import Parts, first_model, honest
from support.local_grid import LocalGrid

from fl_app import LifecycleStrategy, RoundReport
from fl_app.strategy import RoundSettings, RunFailedError, Screening
from fl_app.strategy.round.inner_strategy import snapshot
from fl_app.strategy.round.screening import DEFAULT_SCREENING
from fl_app.strategy.shadow.messages import NodeEvaluation
from fl_registry import InMemoryModelStore, InMemoryTracker


def run(
    strategy: Strategy,
    answer: Any,
    model: ArrayRecord,
    rounds: int,
    nodes: Sequence[int] = (1, 2, 3),
    *,
    screening: Screening | None = DEFAULT_SCREENING,
) -> tuple[ArrayRecord, list[RoundReport]]:
    """A session; the last model and the reports."""
    reports: list[Any] = []
    wrapped = LifecycleStrategy(
        strategy,
        store=InMemoryModelStore(),
        tracker=InMemoryTracker(),
        hooks=[reports.append],
        rounds=RoundSettings(screening=screening, pipeline=False),
    )
    np.random.seed(1)
    random.seed(1)
    result = wrapped.start(LocalGrid(answer, nodes), model, num_rounds=rounds)
    return result.arrays, [event for event in reports if isinstance(event, RoundReport)]


def trained(node: int, message: Message) -> RecordDict:
    """Honest, and another reply in each round."""
    return parts(int(message.content["config"]["server-round"]), node).content()


def parts(server_round: int, node: int) -> Parts:
    made = honest(10 * server_round + node)
    return replace(made, metrics={**made.metrics, "num-examples": 10})  # accountants want equals


class Accountant:
    """As Flower's, but for what dp-accounting computes."""

    def __init__(self) -> None:
        self.config = SimpleNamespace(
            sampling_method=SamplingMethod.NO_AMPLIFICATION, population_size=3, max_epsilon=None
        )
        self.events: list[object] = []

    def compose(self, event: object, count: int = 1) -> None:
        self.events += [event] * count

    def get_privacy_spent(self, delta: float | None = None) -> Any:
        return SimpleNamespace(epsilon=1.0, delta=1e-5, num_releases=len(self.events))

    def state_dict(self) -> dict[str, object]:
        return {"events": list(self.events)}

    def load_state_dict(self, state: dict[str, list[object]]) -> None:
        self.events = list(state["events"])


def accounted() -> Strategy:
    return flower.DifferentialPrivacyServerSideFixedClipping(
        fedavg(),
        0.1,
        1.0,
        3,
        accountant=Accountant(),  # type: ignore[arg-type]
    )


def fedavg() -> FedAvg:
    return FedAvg(fraction_evaluate=0.0)


def plain(kind: type[Strategy], **settings: Any) -> Callable[[], Strategy]:
    return lambda: kind(fraction_evaluate=0.0, **settings)  # type: ignore[call-arg]


STATEFUL: dict[str, Callable[[], Strategy]] = {
    "FedAvgM": plain(flower.FedAvgM, server_momentum=0.9, server_learning_rate=0.5),
    "FedAdam": plain(flower.FedAdam),
    "FedYogi": plain(flower.FedYogi),
    "FedAdagrad": plain(flower.FedAdagrad),
    "QFedAvg": plain(flower.QFedAvg, client_learning_rate=0.1),
    "DP with an adaptive norm": lambda: flower.DifferentialPrivacyServerSideAdaptiveClipping(
        fedavg(), noise_multiplier=0.0, num_sampled_clients=3
    ),
    "DP with an accountant": accounted,
}


class Spoils(Strategy):
    """Another strategy, whose model it makes worthless in some rounds, after the fact."""

    def __init__(self, strategy: Strategy, rounds: set[int]) -> None:
        self.strategy, self.rounds = strategy, rounds

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        return self.strategy.configure_train(server_round, arrays, config, grid)

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
        arrays, metrics = self.strategy.aggregate_train(server_round, replies)
        if arrays is not None and server_round in self.rounds:
            bad = {k: Array(np.full_like(a.numpy(), np.nan)) for k, a in arrays.items()}
            return ArrayRecord(bad), metrics
        return arrays, metrics

    def configure_evaluate(self, *args: Any) -> Iterable[Message]:
        return []

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> None:
        return None

    def summary(self) -> None:
        self.strategy.summary()


def state(strategy: Strategy) -> Any:
    """All that a strategy keeps, as plain values."""
    return _plain(vars(strategy))


def _plain(value: Any) -> Any:
    if isinstance(value, dict | ArrayRecord):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_plain(v) for v in value]
    if isinstance(value, Array):
        return value.numpy().tolist()
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, Strategy | Accountant):
        return _plain(vars(value))
    return value


@pytest.mark.parametrize("name", STATEFUL)
def test_a_bad_round_leaves_the_state_as_it_was(name: str) -> None:
    inner = STATEFUL[name]()
    _, reports = run(Spoils(inner, {2}), trained, first_model(), 2)
    assert [r.failed for r in reports] == [False, True]
    assert "not finite" in reports[1].reason
    before = STATEFUL[name]()
    run(before, trained, first_model(), 1)
    # What was noted as the round began (the arrays sent, the pending release) may stay.
    for part, other in ((inner, before), *nested(inner, before)):
        for attribute in ("m_t", "v_t", "momentum_vector", "clipping_norm", "accountant"):
            assert _plain(getattr(part, attribute, None)) == _plain(
                getattr(other, attribute, None)
            ), attribute


def nested(one: Strategy, other: Strategy) -> list[tuple[Strategy, Strategy]]:
    if not hasattr(one, "strategy"):
        return []
    return [(one.strategy, other.strategy), *nested(one.strategy, other.strategy)]


@pytest.mark.parametrize("name", sorted(set(STATEFUL) - {"DP with an accountant"}))
def test_a_session_goes_on_as_if_a_bad_round_had_not_been(name: str) -> None:
    ours, _ = run(Spoils(STATEFUL[name](), {2}), trained, first_model(), 3)
    bare, arrays = STATEFUL[name](), first_model()
    for number in (1, 3):
        grid = LocalGrid(trained, (1, 2, 3))
        sent = list(bare.configure_train(number, arrays, ConfigRecord(), grid))
        sent.sort(key=lambda message: message.metadata.dst_node_id)
        replies = [
            Message(parts(number, m.metadata.dst_node_id).content(), reply_to=with_id(m))
            for m in sent
        ]
        made, _ = bare.aggregate_train(number, replies)
        assert made is not None
        arrays = ArrayRecord({k: Array(a.numpy().astype(np.float32)) for k, a in made.items()})
    for mine, theirs in zip(ours.values(), arrays.values(), strict=True):
        np.testing.assert_allclose(mine.numpy(), theirs.numpy(), rtol=1e-5)


def with_id(message: Message) -> Message:
    message.metadata.__dict__["_message_id"] = "1"
    return message


def test_a_state_can_be_put_back_more_than_once() -> None:
    inner = STATEFUL["QFedAvg"]()
    inner.configure_train(1, first_model(), ConfigRecord(), LocalGrid(trained, (1, 2, 3)))
    put_back = snapshot(inner)
    for _ in range(2):
        inner.current_arrays.clear()  # type: ignore[attr-defined]
        inner.q = 7  # type: ignore[attr-defined]
        inner.more = True  # type: ignore[attr-defined]
        put_back()
        assert len(inner.current_arrays) == 2  # type: ignore[attr-defined]
        assert inner.q == 0.1  # type: ignore[attr-defined]
        assert not hasattr(inner, "more")


# Replies that pass screening, and that a strategy cannot take.


def trees(count: int) -> bytes:
    """A model of XGBoost's, as far as Flower reads it."""
    model = {
        "gbtree_model_param": {"num_trees": str(count), "num_parallel_tree": "1"},
        "trees": [{"id": n} for n in range(count)],
        "tree_info": [0] * count,
        "iteration_indptr": list(range(count + 1)),
    }
    return json.dumps({"learner": {"gradient_booster": {"model": model}}}).encode()


def as_model(document: bytes) -> ArrayRecord:
    return ArrayRecord([np.frombuffer(document, np.uint8)])


@pytest.mark.parametrize("junk", [b"", b"\xff\xfe", b"[]", b'{"learner": 1}', b"[" * 100_000])
def test_bagging_loses_only_the_trees_that_are_none(junk: bytes) -> None:
    def answer(node: int, message: Message) -> RecordDict:
        document = junk if node == 2 else trees(1)
        metrics = MetricRecord({"num-examples": 5})
        return RecordDict({"arrays": as_model(document), "metrics": metrics})

    inner = flower.FedXgbBagging(fraction_evaluate=0.0)
    arrays, reports = run(inner, answer, as_model(b""), 3)
    assert [r.failed for r in reports] == [False] * 3
    for report in reports:
        (bad,) = report.rejected
        assert bad.node_id == "2"
        assert "FedXgbBagging raised" in bad.reason
    grown = json.loads(arrays["0"].numpy().tobytes())["learner"]["gradient_booster"]["model"]
    assert len(grown["trees"]) == 6


class Picky(FedAvg):
    """Somebody's own strategy, which cannot do with what node 2 sends."""

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
        for message in replies:
            message.content["node"]["site"]
        return super().aggregate_train(server_round, replies)


def from_sites(node: int, message: Message) -> RecordDict:
    content = trained(node, message)
    content["node"] = ConfigRecord({} if node % 2 == 0 else {"site": "a"})
    return content


def test_a_reply_that_a_strategy_of_somebody_s_own_cannot_take_is_rejected() -> None:
    inner = Picky(fraction_evaluate=0.0)
    _, reports = run(inner, from_sites, first_model(), 3)
    assert [r.failed for r in reports] == [False] * 3
    assert [bad.reason for r in reports for bad in r.rejected] == [
        "Picky raised KeyError: 'site'"
    ] * 3
    assert [bad.in_a_row for r in reports for bad in r.rejected] == [1, 2, 3]
    _, reports = run(inner, from_sites, first_model(), 1, nodes=(1, 2, 3, 4, 5))
    assert sorted(bad.node_id for bad in reports[0].rejected) == ["2", "4"]


def test_a_strategy_that_takes_nothing_ends_the_run_by_its_own_words() -> None:
    def answer(node: int, message: Message) -> RecordDict:
        return from_sites(2, message)

    with pytest.raises(RunFailedError, match="because Picky raised KeyError: 'site'"):
        run(Picky(fraction_evaluate=0.0), answer, first_model(), 9)


def test_a_strategy_that_declines_says_so() -> None:
    inner = flower.Bulyan(fraction_evaluate=0.0, num_malicious_nodes=1)
    with pytest.raises(RunFailedError, match="because Bulyan made no model of 3 replies"):
        run(inner, trained, first_model(), 9)


def test_metrics_of_somebody_s_own_making_that_fail_in_evaluation_cost_only_metrics() -> None:
    def broken(records: list[RecordDict], weighted_by: str) -> MetricRecord:
        raise ZeroDivisionError("no examples")

    def answer(node: int, message: Message) -> RecordDict:
        if message.metadata.message_type == "train":
            return trained(node, message)
        return RecordDict({"metrics": MetricRecord({"num-examples": 1, "accuracy": 0.5})})

    _, reports = run(FedAvg(evaluate_metrics_aggr_fn=broken), answer, first_model(), 2)
    assert [r.failed for r in reports] == [False, False]
    assert [sorted(r.metrics) for r in reports] == [["train/norm_bit", "train/train_loss"]] * 2


def test_without_screening_a_masked_reply_reaches_the_strategy_untouched() -> None:
    seen: list[list[str]] = []

    class Masked(FedAvg):
        """As one for secure aggregation: what nodes send makes sense only in sum."""

        def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
            seen.extend(sorted(message.content) for message in replies)
            return first_model(server_round), None

    def answer(node: int, message: Message) -> RecordDict:
        masked = ArrayRecord([np.full(9, np.nan)])
        return RecordDict({"masked": masked, "shares": masked, "a": MetricRecord({"x": 1.0})})

    inner = Masked(fraction_evaluate=0.0)
    arrays, _ = run(inner, answer, first_model(), 1, screening=None)
    assert seen == [["a", "masked", "shares"]] * 3
    assert float(arrays["layer.bias"].numpy()[0]) == 1.0


def test_the_norm_of_an_update_is_that_from_the_round_s_own_model() -> None:
    def answer(node: int, message: Message) -> RecordDict:
        sent = message.content["arrays"]
        far = 1000.0 if node == 2 else 1.0
        grown = {name: Array(array.numpy() + np.float32(far)) for name, array in sent.items()}
        metrics = MetricRecord({"num-examples": 10})
        return RecordDict({"arrays": ArrayRecord(grown), "metrics": metrics})

    rules = Screening(max_update_norm=3.0)  # nine weights by one: the honest norm is 3
    arrays, reports = run(fedavg(), answer, first_model(), 3, screening=rules)
    np.testing.assert_allclose(arrays["layer.bias"].numpy(), 3.0, rtol=1e-6)
    assert [r.rejected for r in reports] == [()] * 3
    refusing = replace(rules, norm_action="refuse")
    arrays, reports = run(fedavg(), answer, first_model(), 3, screening=refusing)
    np.testing.assert_allclose(arrays["layer.bias"].numpy(), 3.0, rtol=1e-6)
    assert [r.rejected[0].reason for r in reports] == [
        "its update has norm 3000, expected at most 3"
    ] * 3


def test_a_hostile_answer_in_a_shadow_round_does_not_reach_the_strategy() -> None:
    seen: list[float] = []

    class Watched(FedAvg):
        def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> Any:
            merged = super().aggregate_evaluate(server_round, replies)
            seen.append(merged["accuracy"] if merged is not None else np.nan)
            return merged

    def answer(node: int, message: Message) -> RecordDict:
        wrong = {"num-examples": -7} if node == 2 else {"num-examples": 10, "accuracy": 0.5}
        return RecordDict({"metrics": MetricRecord(dict(wrong))})

    setup, grid = LifecycleStrategy(Watched()).setup, LocalGrid(answer, (1, 2, 3))
    evaluation = NodeEvaluation(setup, grid, ConfigRecord(), 10.0, 3)
    evaluation.aggregate(evaluation.send(evaluation.messages(first_model())))
    assert seen == [0.5]


def test_replies_are_whole_when_they_are_tried_again() -> None:
    def of_sites(records: list[RecordDict], weighted_by: str) -> MetricRecord:
        return MetricRecord({"sites": len([record["node"]["site"] for record in records])})

    inner = flower.FedMedian(fraction_evaluate=0.0, train_metrics_aggr_fn=of_sites)
    arrays, reports = run(inner, from_sites, first_model(), 1)  # it takes the arrays out first
    assert [bad.node_id for bad in reports[0].rejected] == ["2"]
    assert reports[0].metrics == {"train/sites": 2.0}
    both = [parts(1, node).arrays["layer.bias"].numpy() for node in (1, 3)]
    np.testing.assert_allclose(arrays["layer.bias"].numpy(), np.median(both, axis=0), rtol=1e-6)
