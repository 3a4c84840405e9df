# SPDX-License-Identifier: Apache-2.0
"""A round finished beside the next one is finished as if it had been waited for."""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Sequence
from typing import Any

from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg
from hypothesis import given, settings
from hypothesis import strategies as st
from support.local_grid import LocalGrid, add_one, model, reply

from fl_app.events import Event, RoundReport
from fl_app.strategy import LifecycleStrategy, RoundSettings, StreamingFedAvg
from fl_registry import InMemoryModelStore, InMemoryTracker

OWN = ("created", "save_key")
"""What differs between two sessions whatever they do."""

Score = float | None
"""What the holdout says of a round; None for a round without a model."""


def session(scores: Sequence[Score], inner: type[FedAvg], **named: Any) -> dict[str, Any]:
    """All that a session of rounds with these scores leaves behind."""

    def answer(node: int, message: Message) -> RecordDict:
        number = int(message.content["config"]["server-round"])
        if message.metadata.message_type == "train" and scores[number - 1] is None:
            return RecordDict()  # no model, no metrics
        return add_one(node, message) if message.content["arrays"] else reply()

    def holdout(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        time.sleep(chance.random() / 500)
        score = scores[server_round - 1] if server_round else 0.0
        return MetricRecord({"score": 0.0 if score is None else score})

    random.seed(7)  # by which Flower samples the nodes
    chance = random.Random()
    reports: list[RoundReport] = []

    def hear(event: Event) -> None:
        if isinstance(event, RoundReport):
            reports.append(event)

    store, tracker = InMemoryModelStore(), InMemoryTracker()
    with tempfile.TemporaryDirectory() as home:
        strategy = LifecycleStrategy(
            inner(), metric="score", store=store, tracker=tracker, home=home, hooks=[hear], **named
        )
        result = strategy.start(
            LocalGrid(answer), model(), num_rounds=len(scores), evaluate_fn=holdout
        )
    return {
        "arrays": [a.tobytes() for a in result.arrays.to_numpy_ndarrays()],
        "scores": {r: dict(m) for r, m in result.evaluate_metrics_serverapp.items()},
        "versions": [
            {
                "stage": row["stage"],
                "metrics": row["metrics"],
                "tags": {k: v for k, v in row["tags"].items() if k not in OWN},
            }
            for row in store.list_all_versions()
        ],
        "reports": [(r.round, r.stage, r.approval, r.reason, r.failed) for r in reports],
    }


@given(
    st.lists(st.one_of(st.none(), st.sampled_from([0.1, 0.4, 0.5, 0.9])), min_size=1, max_size=6),
    st.sampled_from([FedAvg, StreamingFedAvg]),
    st.sampled_from(["manual", "auto"]),
)
@settings(deadline=None, max_examples=8)
def test_results_and_decisions_are_the_same_as_inline(
    scores: list[Score], inner: type[FedAvg], approval: str
) -> None:
    for number in range(len(scores) - 2):  # three failures in a row end the run
        if scores[number : number + 3] == [None] * 3:
            scores[number] = 0.1
    if scores == [None] * len(scores):  # and so does a session without a model
        scores[0] = 0.1
    piped = session(scores, inner, rounds=RoundSettings(pipeline=True), approval=approval)
    assert piped == session(scores, inner, rounds=RoundSettings(pipeline=False), approval=approval)
    assert len(piped["versions"]) == sum(score is not None for score in scores)
