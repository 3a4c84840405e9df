# SPDX-License-Identifier: Apache-2.0
"""What reaches the gates in a session: classes, examples and nodes, beside production's."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, Message, MetricRecord
from flwr.serverapp.strategy import FedAvg
from support.docs import run_block
from support.local_grid import LocalGrid, add_one, model, reply

from fl_app import LifecycleStrategy
from fl_app.strategy import BeatsChampion, NoRegression, ScoredRecord, default_policy
from fl_app.strategy.errors import MetricError
from fl_app.strategy.finish.evaluation import EvaluateFn, scored_by
from fl_registry import (
    Evidence,
    ExampleScores,
    InMemoryModelStore,
    InMemoryTracker,
    Stage,
    decide_stage,
)


@pytest.fixture
def store() -> InMemoryModelStore:
    return InMemoryModelStore()


def session(
    store: InMemoryModelStore,
    evaluate_fn: EvaluateFn | None,
    *,
    start: float,
    policy: Any = None,
    grid: LocalGrid | None = None,
) -> dict[str, Any]:
    """Run one round that ends in a model of ``start + 1``, and return its version."""
    strategy = LifecycleStrategy(
        FedAvg(),
        metric="accuracy",
        approval="auto",
        policy=policy,
        store=store,
        tracker=InMemoryTracker(),
    )
    strategy.start(grid or LocalGrid(add_one), model(start), num_rounds=1, evaluate_fn=evaluate_fn)
    return max(store.list_all_versions(), key=lambda row: int(row["version"]))


def weight(arrays: ArrayRecord) -> float:
    return float(arrays.to_numpy_ndarrays()[0].mean())


def by_class(server_round: int, arrays: ArrayRecord) -> MetricRecord:
    """More weight: better on the whole, worse at fish."""
    grown = weight(arrays) / 10
    return MetricRecord(
        {"accuracy": grown, "accuracy/fish": 0.9 - grown, "accuracy/shark": 3 * grown}
    )


def test_a_candidate_that_is_worse_in_one_class_is_refused_by_name(
    store: InMemoryModelStore,
) -> None:
    policy = default_policy("accuracy", class_margin=0.05)
    assert session(store, by_class, start=0, policy=policy)["stage"] == "Production"
    refused = session(store, by_class, start=1, policy=policy)
    assert refused["stage"] == "Staging"
    assert refused["tags"]["approval"] == "none"
    said = "more than 0.0500 of accuracy is lost: class fish goes from 0.8000 to 0.7000"
    assert refused["tags"]["reason"] == said
    assert store.get_latest_version(Stage.PRODUCTION) == "1"
    wider = default_policy("accuracy", class_margin=0.5)
    assert session(store, by_class, start=2, policy=wider)["stage"] == "Production"


def per_example(noise: float) -> EvaluateFn:
    """Forty numbers whose mean grows by 0.02 a round, each with noise of its own."""

    def score(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        grown = weight(arrays)
        random = np.random.default_rng(int(grown))
        drawn = random.normal(0, noise, 40)
        numbers = (0.5 + 0.02 * grown + drawn - drawn.mean()).tolist()
        return MetricRecord({"accuracy": float(np.mean(numbers)), "per-example/accuracy": numbers})

    return score


@pytest.mark.parametrize(("noise", "stage"), [(0.01, "Production"), (0.5, "Staging")])
def test_a_gain_must_be_sure_example_by_example(
    store: InMemoryModelStore, noise: float, stage: str
) -> None:
    session(store, per_example(noise), start=0)
    found = session(store, per_example(noise), start=1)
    assert found["stage"] == stage
    assert "95 % sure on 40 examples" in found["tags"]["reason"]
    assert set(found["metrics"]) == {"accuracy", "client/accuracy", "train/loss"}


def test_groups_are_given_with_the_results(store: InMemoryModelStore) -> None:
    def score(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        record = per_example(0.01)(server_round, arrays)
        return MetricRecord({**record, "per-example/group": [n // 8 for n in range(40)]})

    session(store, score, start=0)
    found = session(store, score, start=1)
    assert found["stage"] == "Production"
    assert "sure on 40 examples of 5 groups" in found["tags"]["reason"]
    wrong = MetricRecord({"per-example/accuracy": [0.5] * 3, "per-example/group": [1, 2]})
    with pytest.raises(MetricError, match="per-example/group that cannot be used: There are 2"):
        scored_by(wrong)


def test_the_champion_is_scored_once_a_session(store: InMemoryModelStore) -> None:
    scored: list[float] = []

    def counted(server_round: int, arrays: ArrayRecord) -> MetricRecord | None:
        scored.append(weight(arrays))
        return per_example(0.01)(server_round, arrays)

    session(store, counted, start=0)
    scored.clear()
    LifecycleStrategy(metric="accuracy", store=store, tracker=InMemoryTracker()).start(
        LocalGrid(add_one), model(4), num_rounds=3, evaluate_fn=counted
    )
    assert sorted(scored) == pytest.approx([1, 4, 5, 6, 7])


def test_results_of_one_s_own_decide_too(store: InMemoryModelStore) -> None:
    class Best(ExampleScores):
        """A metric that is no mean: the best example."""

        def resampled(self, metric: str, counts: np.ndarray) -> np.ndarray | None:
            best: np.ndarray = np.where(counts > 0, self.scores[metric], -np.inf).max(axis=1)
            return best

    def score(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        numbers = [*[0.0] * 15, weight(arrays), *[0.0] * 14]
        return ScoredRecord({"accuracy": max(numbers)}, Best({"accuracy": numbers}))

    session(store, score, start=0)
    found = session(store, score, start=5)
    assert found["stage"] == "Staging"  # one example in thirty is drawn too seldom
    assert "the gain is 0.0000 to 5.0000, 95 % sure on 30 examples" in found["tags"]["reason"]


def nodes(scores: dict[int, float], *, digests: bool = True) -> LocalGrid:
    """Nodes that always score so; node 21 has the data of node 11, and so on."""

    def answer(node_id: int, message: Message) -> Any:
        if message.metadata.message_type == "train":
            return add_one(node_id, message)
        digest = f"data-{node_id % 10}" if digests else ""
        return reply(accuracy=scores[node_id], digest=digest)

    return LocalGrid(answer, node_ids=tuple(scores))


@pytest.mark.parametrize("digests", [True, False])
def test_a_candidate_that_is_worse_on_one_node_is_refused_by_name(
    store: InMemoryModelStore, digests: bool
) -> None:
    policy = {
        Stage.STAGING: [],
        Stage.PRODUCTION: [NoRegression("accuracy", 0.1, by="node"), BeatsChampion("accuracy")],
    }
    before = nodes({11: 0.5, 12: 0.5, 13: 0.5}, digests=digests)
    first = session(store, by_class, start=0, policy=policy, grid=before)
    assert first["stage"] == "Production"
    assert set(json.loads(first["tags"]["node_scores"]).values()) == {0.5}
    later = {21: 0.8, 22: 0.3, 23: 0.5} if digests else {11: 0.8, 12: 0.3, 14: 0.1}
    grid = nodes(later, digests=digests)
    refused = session(store, by_class, start=1, policy=policy, grid=grid)
    assert refused["stage"] == "Staging"
    node = 22 if digests else 12
    said = f"more than 0.1000 of accuracy is lost: node {node} goes from 0.5000 to 0.3000"
    assert refused["tags"]["reason"] == said


@pytest.mark.parametrize("tag", ["", "[1]", '{"a": "x"}', "{"])
def test_a_tag_that_others_wrote_compares_no_node(store: InMemoryModelStore, tag: str) -> None:
    policy = {Stage.STAGING: [], Stage.PRODUCTION: [NoRegression("accuracy", by="node")]}
    grid = nodes({11: 0.5, 12: 0.5})
    session(store, by_class, start=0, policy=policy, grid=grid)
    store.set_version_tags("1", {"node_scores": tag})
    refused = session(store, by_class, start=1, policy=policy, grid=grid)
    assert "node that scored both" in refused["tags"]["reason"]


def test_the_page_s_policy_runs() -> None:
    names = run_block("gates.md", "NoRegression(")
    fresh = Evidence({"mAP50": 0.6, "train/loss": 2.0})
    assert decide_stage(names["policy"], fresh).stage is Stage.PRODUCTION
    assert decide_stage(names["policy"], Evidence({"mAP50": 0.6})).stage is Stage.NONE
    worse = Evidence(
        {"mAP50": 0.6, "mAP50/fish": 0.2, "train/loss": 2.0}, {"mAP50": 0.5, "mAP50/fish": 0.5}
    )
    decision = decide_stage(names["policy"], worse)
    assert decision.stage is Stage.STAGING
    assert "class fish" in decision.why
