# SPDX-License-Identifier: Apache-2.0
"""Who hears of a reply that did not count: log, report, tags and hooks, and how often in a row."""

from __future__ import annotations

import json
import logging
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Error, Message
from flwr.serverapp.strategy import FedAvg
from support.local_grid import LocalGrid, add_one, model, reply

from fl_app import LifecycleStrategy, RoundReport
from fl_app.events import RejectedReply, as_json
from fl_app.strategy import RoundSettings, RunFailedError
from fl_app.versions.tags import MAX_NODES, read_rejected, rejected_tag
from fl_registry import InMemoryModelStore, InMemoryTracker


class Rounds:
    """A session in which nodes are bad in the rounds that ``bad`` names, by node and phase."""

    def __init__(self, bad: dict[tuple[int, str], set[int]], rounds: int, **settings: Any) -> None:
        self.bad = bad
        self.store, self.tracker = InMemoryModelStore(), InMemoryTracker()
        events: list[Any] = []
        settings = {"metric": "accuracy"} | settings
        strategy = LifecycleStrategy(
            FedAvg(),
            store=self.store,
            tracker=self.tracker,
            hooks=[events.append],
            rounds=RoundSettings(pipeline=False),
            **settings,
        )
        try:
            strategy.start(LocalGrid(self.answer), model(), num_rounds=rounds)
        finally:
            self.reports = [event for event in events if isinstance(event, RoundReport)]

    def answer(self, node: int, message: Message) -> Any:
        phase = message.metadata.message_type
        number = message.content["config"]["server-round"]
        if number not in self.bad.get((node, phase), set()):
            return add_one(node, message)
        if phase == "evaluate":
            return reply(accuracy=9.0, examples=-1)
        if node == 13:
            return Error(3, "no disk")
        return reply(ArrayRecord([np.zeros(9)]))

    def in_a_row(self, node: str) -> list[tuple[str, int]]:
        return [
            (bad.phase, bad.in_a_row)
            for report in self.reports
            for bad in report.rejected
            if bad.node_id == node
        ]


def test_replies_are_counted_in_a_row_for_each_phase() -> None:
    one = Rounds({(12, "train"): {1, 2, 4}, (12, "evaluate"): {2, 3, 4, 5}}, 5)
    assert one.in_a_row("12") == [
        ("train", 1),
        ("train", 2),
        ("evaluate", 1),
        ("evaluate", 2),
        ("train", 1),
        ("evaluate", 3),
        ("evaluate", 4),
    ]
    assert one.in_a_row("11") == []
    assert [r.failed for r in one.reports] == [False] * 5
    assert one.reports[4].metrics["accuracy"] == pytest.approx(0.5)  # not the 9.0 of node 12


def test_a_node_is_reported_once_after_three(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "flwr.fl_app"):
        Rounds({(12, "train"): {1, 2, 3, 4, 5}}, 5)
    said = [r.getMessage() for r in caplog.records if r.name == "flwr.fl_app"]
    assert said[0] == (
        "round 1: node 12 is rejected: a reply (train): its arrays are not the model's: it "
        "lacks '1'"
    )
    assert said[2].startswith("round 3: node 12 is rejected: 3 replies in a row (train): its")
    reported = [line for line in said if "keeps failing" in line]
    assert reported == ["node 12 keeps failing: look at it, or leave it out"]


def test_errors_of_a_node_count_too() -> None:
    one = Rounds({(13, "train"): {1, 2}}, 2)
    assert one.in_a_row("13") == [("train", 1), ("train", 2)]
    assert one.reports[1].rejected[0].reason == "it answered with an error: no disk"


def test_the_version_names_them_and_the_node_is_not_among_its_own() -> None:
    one = Rounds({(12, "train"): {1}, (13, "evaluate"): {1}}, 1)
    (row,) = one.store.list_all_versions()
    assert [(bad.node_id, bad.phase) for bad in read_rejected(row["tags"])] == [
        ("12", "train"),
        ("13", "evaluate"),
    ]
    assert "expected a whole number" in read_rejected(row["tags"])[1].reason
    assert {node["node_id"] for node in json.loads(row["tags"]["nodes"])} == {"11", "13"}
    assert sorted(json.loads(row["tags"]["node_scores"])) == ["node 11", "node 12"]


def test_a_round_without_a_model_leaves_them_in_the_run_s_tags() -> None:
    everywhere = {(node, "train"): {2} for node in (11, 12, 13)}
    one = Rounds(everywhere, 2)
    assert one.reports[1].failed
    assert "node 11: its arrays are not the model's" in one.reports[1].reason
    tags = one.tracker.runs[0].tags
    assert tags["failed_round.2"].startswith("no client sent a valid reply (node 1")
    told = read_rejected({"rejected": tags["rejected.2"]})
    assert {bad.node_id for bad in told} == {"11", "12", "13"}


def test_rounds_that_set_all_aside_end_the_run() -> None:
    everywhere = {(node, "train"): {2, 3, 4} for node in (11, 12, 13)}
    with pytest.raises(RunFailedError, match="no client sent a valid reply"):
        Rounds(everywhere, 5)


def test_a_metric_that_all_evaluators_spoil_for_once_stages_nothing_and_ends_nothing() -> None:
    everywhere = {(node, "evaluate"): {2} for node in (11, 12, 13)}
    one = Rounds(everywhere, 3)
    assert [r.failed for r in one.reports] == [False] * 3
    assert np.isnan(one.reports[1].metrics["accuracy"])
    assert [row["stage"] for row in one.store.list_all_versions()] == [
        "Staging",
        "None",
        "Archived",
    ]


def test_hooks_get_them_as_json() -> None:
    one = Rounds({(12, "train"): {1}}, 1)
    data = as_json(one.reports[0])["data"]
    (bad,) = data["rejected"]
    assert bad["node_id"] == "12"
    assert (bad["phase"], bad["in_a_row"]) == ("train", 1)
    json.dumps(data, allow_nan=False)


def test_the_tag_stays_small_and_names_the_worst() -> None:
    nodes = [RejectedReply(str(n), "train", "x" * 200, in_a_row=n) for n in range(500)]
    tag = rejected_tag(nodes)
    assert len(tag["rejected"]) < 8000
    kept = read_rejected(tag)
    assert len(kept) == MAX_NODES
    assert kept[0].node_id == "499"
    assert rejected_tag([]) == {}


@pytest.mark.parametrize("junk", ["", "{", "[1]", '[{"node_id": 1}]', "null", '{"a": 1}'])
def test_a_tag_that_anybody_wrote_is_read_or_ignored(junk: str) -> None:
    assert read_rejected({"rejected": junk}) == []


@pytest.mark.parametrize("digest", ["x" * 129, "a\nb", 7, ["a"], b"\0"])
def test_a_digest_that_is_no_short_text_is_none(digest: Any) -> None:
    def answer(node: int, message: Message) -> Any:
        content = add_one(node, message)
        content["node"] = ConfigRecord({"data-digest": digest})
        return content

    store = InMemoryModelStore()
    LifecycleStrategy(store=store, tracker=InMemoryTracker()).start(
        LocalGrid(answer), model(), num_rounds=1
    )
    (row,) = store.list_all_versions()
    assert {node["data_digest"] for node in json.loads(row["tags"]["nodes"])} == {""}
