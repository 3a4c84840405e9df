# SPDX-License-Identifier: Apache-2.0
"""The model card: each fact is the registry's, what is missing is named, and no text breaks it."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from fl_app.versions.card import DETECTOR, model_card
from fl_app.versions.tags import gates_tag
from fl_registry import InMemoryModelStore, UnknownVersion, Verdict
from fl_registry.files.weights import save_weights

DIGEST = "sha256:" + "ab" * 32
TAGS = {
    "round": "3",
    "session": "2",
    "flower_run_id": "77",
    "parent_version": "1",
    "trigger": "new pictures",
    "metric": "mAP50",
    "score_source": "holdout",
    "app_version": "0.1.0",
    "nodes": json.dumps(
        [
            {"node_id": "11", "num_examples": 40, "data_digest": DIGEST},
            {"node_id": "12", "num_examples": 2},
        ]
    ),
    "node_scores": json.dumps({"ab12": 0.5, "cd34": 0.25}),
    **gates_tag(
        [
            Verdict("AtLeast", True, "mAP50 0.5906 is at least 0.5"),
            Verdict("NoRegression", False, "more than 0.02 is lost", "on other data"),
        ]
    ),
}  # fmt: skip
METRICS = {"mAP50": 0.5906, "precision": 0.25, "mAP50/fish": 0.75, "mAP50/shark": 0.43125}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("card") / "w.safetensors"
    model = {"family": DETECTOR, "model": "yolov8n", "names": ["fish", "shark"], "image_size": 64}
    arrays = {"w": np.ones((2, 3), dtype=np.float32), "b": np.ones(5, dtype=np.float32)}
    save_weights(arrays, path, model=model)
    return path


@pytest.fixture
def store(weights: Path) -> InMemoryModelStore:
    store = InMemoryModelStore()
    store.save_model_version(weights, "run-1", METRICS, TAGS, description="Sees fish.")
    return store


def front_matter(card: str) -> dict[str, Any]:
    fields = yaml.safe_load(card.split("---\n")[1])
    assert isinstance(fields, dict)
    return fields


def body(card: str) -> str:
    return card.split("---\n", 2)[2]


def tables(card: str) -> list[list[list[str]]]:
    """The cells of each table, as a Markdown reader sees them."""
    found: list[list[list[str]]] = []
    tokens = MarkdownIt("commonmark").enable("table").parse(body(card))
    for before, token in pairwise(tokens):
        if before.type == "table_open":
            found.append([])
        if before.type == "tr_open":
            found[-1].append([])
        if before.type in ("th_open", "td_open"):
            parts = token.children or []
            found[-1][-1].append("".join(part.content for part in parts))
    return found


def test_a_card_has_what_registry_and_journal_know(store: InMemoryModelStore) -> None:
    store.promote_to_staging("1", actor="policy", reason="the best so far")
    store.promote_to_production("1", actor="Ada", reason="it sees sharks")
    card = model_card(store, "Production", model_name="reef")
    fields = front_matter(card)
    assert fields["license"] is None
    assert fields["pipeline_tag"] == "object-detection"
    (entry,) = fields["model-index"]
    (result,) = entry["results"]
    assert {m["type"]: m["value"] for m in result["metrics"]} == {
        "mAP50": 0.5906,
        "precision": 0.25,
    }
    nodes, overall, classes, by_node, gates, moves = tables(card)  # in memory a run has no settings
    assert nodes[1:] == [["11", "40", DIGEST], ["12", "2", "not recorded"]]
    assert overall[1:] == [["mAP50", "0.5906"], ["precision", "0.2500"]]
    assert classes == [["class", "mAP50"], ["fish", "0.7500"], ["shark", "0.4313"]]
    assert by_node[1:] == [["ab12", "0.5000"], ["cd34", "0.2500"]]
    assert gates[1:] == [
        ["AtLeast", "passed", "mAP50 0.5906 is at least 0.5"],
        ["NoRegression", "refused", "more than 0.02 is lost; on other data"],
    ]
    assert [row[1:] for row in moves[1:]] == [
        ["stage", "The gates (policy)", "the best so far"],
        ["promote", "Ada", "it sees sharks"],
    ]
    record = store.get_version("1")
    for said in (
        "# reef, version 1",
        "Sees fish.",
        f"`{record.sha256}`",
        "2 with 11 numbers",
        "yolov8n",
        "fish, shark",
        "`run-1`",
        "version 1",
        "new pictures",
        f"Ada put it into Production on {store.history()[-1].time[:10]}: it sees sharks.",
        "fl-app export 1 best.pt --name 'reef'",
    ):
        assert said in card, said


def test_what_was_not_recorded_is_said(weights: Path) -> None:
    store = InMemoryModelStore()
    store.save_model_version(weights)
    card = model_card(store, "1")
    assert front_matter(card)["model-index"][0]["results"] == []
    for said in (
        "**MLflow run**: not recorded",
        "**Parent**: not recorded",
        "The settings of the run are not recorded",
        "The nodes and their data are not recorded.",
        "No metrics are recorded.",
        "Results of gates are not recorded.",
        "so nobody has approved it",
        "The journal has no entry of this version.",
    ):
        assert said in card, said
    with pytest.raises(UnknownVersion):
        model_card(store, "2")


def test_tags_that_others_wrote_count_as_missing(store: InMemoryModelStore) -> None:
    store.set_version_tags("1", {"nodes": "[{]", "gates": '{"a": 1}', "node_scores": "3"})
    card = model_card(store, "1")
    assert "The nodes and their data are not recorded." in card
    assert "Metrics by node are not recorded." in card
    assert "Results of gates are not recorded" in card


def test_the_family_is_the_one_of_the_shipped_model() -> None:
    serving = (Path(__file__).parents[2] / "models" / "fl_models" / "serving.py").read_text()
    match = re.search(r'^FAMILY = "(.*)"$', serving, re.MULTILINE)
    assert match is not None
    assert match.group(1) == DETECTOR


@given(
    text=st.text(max_size=30) | st.sampled_from(["a | b", "\n# x", "</td><script>", "`|`", "$x$"])
)
def test_no_text_of_others_changes_the_card_s_form(text: str) -> None:
    store = STORES.setdefault("one", InMemoryModelStore())
    if not store.list_all_versions():
        save_weights({"w": np.ones(2, dtype=np.float32)}, store.backend.scratch / "w.safetensors")
        store.save_model_version(store.backend.scratch / "w.safetensors", tags=TAGS)
    plain = model_card(store, "1")
    reason = text.replace("\0", "")
    store.set_version_tags("1", {"session": reason, "trigger": reason or "a"})
    nodes = json.dumps([{"node_id": reason, "num_examples": 1, "data_digest": reason}])
    store.set_version_tags("1", {**gates_tag([Verdict(reason, True, reason)]), "nodes": nodes})
    card = model_card(store, "1")
    store.set_version_tags("1", TAGS)
    front_matter(card)
    heads = [line for line in card.splitlines() if line.startswith("#")]
    assert heads == [line for line in plain.splitlines() if line.startswith("#")]
    assert [len(row) for table in tables(card) for row in table if len(row) not in (2, 3)] == []
    assert [t for t in MarkdownIt().parse(body(card)) if t.type == "html_block"] == []


STORES: dict[str, InMemoryModelStore] = {}
