# SPDX-License-Identifier: Apache-2.0
"""What comparing two versions tells: differences one can count on, and None where nobody knows."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from fl_registry import FederatedLearningTracker, InMemoryModelStore, InvalidMetric, ModelManager
from fl_registry.gates.paired import paired_verdict
from fl_registry.store import ModelStore
from fl_registry.versions import architecture_differences, data_differences, param_differences

MakeWeights = Callable[[float], Path]


@pytest.fixture(params=["memory", "mlflow"])
def store(request: pytest.FixtureRequest) -> ModelStore:
    """Return the stores whose files lie on this machine, where a test can damage them."""
    if request.param == "memory":
        return InMemoryModelStore()
    found: ModelManager = request.getfixturevalue("manager")
    return found


def nodes(**contributions: tuple[int, str]) -> str:
    rows = [
        {"node_id": name, "num_examples": count, "data_digest": digest}
        for name, (count, digest) in contributions.items()
    ]
    return json.dumps(rows)


def test_all_that_differs_between_two_versions(store: ModelStore, tmp_path: Path) -> None:
    paths = []
    for name, arrays in (
        ("one", {"a": np.zeros(2, np.float32), "old": np.zeros(1), "same": np.ones(3)}),
        ("two", {"a": np.zeros((2, 2), np.float16), "new": np.zeros(1), "same": np.ones(3)}),
    ):
        paths.append(tmp_path / f"{name}.safetensors")
        save_file(arrays, paths[-1])
    random = np.random.default_rng(1)
    scores = {f"picture {n}": float(random.random()) for n in range(200)}
    better = {name: score + 0.1 for name, score in scores.items()}
    for path, metrics, took_part, per_example in (
        (paths[0], {"mAP50": 0.5, "loss": 1.0}, nodes(n1=(10, "x"), n2=(5, "y")), scores),
        (paths[1], {"mAP50": 0.75}, nodes(n1=(10, "z"), n3=(7, "y")), better),
    ):
        store.save_model_version(
            path, metrics=metrics, tags={"nodes": took_part}, per_example=per_example
        )
    found = store.compare_versions("1", 2)
    assert found["version1"]["metrics"]["mAP50"] == 0.5
    assert found["version2"] == store.get_version("2").as_row()
    assert found["differences"] == {"mAP50": 0.25}
    assert found["params"] is None
    assert found["architecture"] == {
        "only_in_version1": ["old"],
        "only_in_version2": ["new"],
        "changed": {
            "a": [{"dtype": "float32", "shape": [2]}, {"dtype": "float16", "shape": [2, 2]}]
        },
    }
    assert found["data"] == {
        "only_in_version1": ["n2"],
        "only_in_version2": ["n3"],
        "changed": ["n1"],
        "num_nodes": [2, 2],
        "num_examples": [15.0, 17.0],
    }
    assert found["paired"]["verdict"] == "better"
    assert found["paired"]["mean_difference"] == pytest.approx(0.1)
    assert found["paired"]["examples"] == 200
    assert store.compare_versions("2", "1")["paired"]["verdict"] == "worse"
    json.dumps(found)  # a plain dictionary, for pages and files


def test_what_is_not_known_is_none_and_never_an_error(
    store: ModelStore, weights: MakeWeights
) -> None:
    store.save_model_version(weights(1), tags={"nodes": "not json"}, run_id="abc123")
    store.save_model_version(weights(2), tags={"nodes": "[]"}, per_example={"a": 1.0})
    (store.weights_path("1").parent / "spec.json").unlink()
    (store.weights_path("2").parent / "per_example.json").write_text('{"a": 2.0}')
    found = store.compare_versions("1", "2")
    unknown = ("params", "architecture", "data", "paired")
    assert [found[part] for part in unknown] == [None] * 4
    assert found["differences"] == {}
    assert store.compare_versions("2", "2")["paired"] is None  # changed since it was saved
    store.weights_path("2").unlink()
    assert store.compare_versions("1", "2")["version2"]["version"] == "2"


def test_params_are_those_of_the_runs_that_made_the_versions(
    manager: ModelManager, weights: MakeWeights, mlflow_home: Path
) -> None:
    runs = []
    for rounds, extra in ((10, {"model": "n"}), (20, {"model": "n", "seed": 1})):
        with FederatedLearningTracker(home=mlflow_home) as tracker:
            tracker.log_params({"rounds": rounds, **extra})
            assert tracker.run is not None
            runs.append(tracker.run.info.run_id)
    for number, run_id in enumerate([*runs, "f" * 32], start=1):
        manager.save_model_version(weights(number), run_id)
    expected = {"rounds": ["10", "20"], "seed": [None, "1"]}
    assert manager.compare_versions("1", "2")["params"] == expected
    assert manager.compare_versions("1", "1")["params"] == {}
    assert manager.compare_versions("1", "3")["params"] is None


def test_results_per_example_are_checked_before_anything_is_saved(
    store: ModelStore, weights: MakeWeights
) -> None:
    for wrong, says in (
        ({"a": float("nan")}, "example 'a' is nan"),
        ({"a": "good"}, "example 'a' is 'good'"),
        ({1: 0.5, "1": 0.5}, "2 examples under 1 names"),
    ):
        with pytest.raises(InvalidMetric, match=says):
            store.save_model_version(weights(1), per_example=wrong)  # type: ignore[arg-type]
    assert store.list_all_versions() == []


def test_the_verdict_needs_enough_examples_and_a_clear_difference() -> None:
    few = paired_verdict(dict.fromkeys("abc", 0.0), dict.fromkeys("abcd", 1.0))
    assert few is not None
    assert (few["verdict"], few["examples"], few["only_in_version2"]) == ("undecided", 3, 1)
    nothing = paired_verdict({"a": 1.0}, {"b": 1.0})
    assert nothing is not None
    assert (nothing["verdict"], nothing["interval"], nothing["mean_difference"]) == (
        "undecided",
        None,
        None,
    )
    random = np.random.default_rng(0)
    one = {str(n): float(value) for n, value in enumerate(random.normal(0, 1, 300))}
    two = {str(n): float(value) for n, value in enumerate(random.normal(0, 1, 300))}
    noise = paired_verdict(one, two)
    assert noise is not None
    assert noise["verdict"] == "undecided"
    assert noise["interval"][0] < 0 < noise["interval"][1]
    assert paired_verdict(one, two) == noise  # seeded
    assert paired_verdict(one, None) is None
    assert paired_verdict({}, two) is None


def test_the_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    random, held = np.random.default_rng(7), 0
    for _ in range(100):
        drawn = random.normal(0.2, 1.0, 60)
        found = paired_verdict(
            dict.fromkeys(map(str, range(60)), 0.0),
            {str(n): float(value) for n, value in enumerate(drawn)},
        )
        assert found is not None
        held += found["interval"][0] <= 0.2 <= found["interval"][1]
    assert 88 <= held <= 100


SCORES = st.dictionaries(st.text(max_size=3), st.floats(-1e6, 1e6), max_size=40)


@given(SCORES, SCORES)
def test_turning_a_comparison_round_turns_its_verdict_round(
    one: dict[str, float], two: dict[str, float]
) -> None:
    forth, back = paired_verdict(one, two), paired_verdict(two, one)
    if forth is None or back is None:
        assert not one or not two
        return
    turned = {"better": "worse", "worse": "better", "undecided": "undecided"}
    assert back["verdict"] == turned[forth["verdict"]]


@pytest.mark.parametrize(
    "text", [None, "", "null", "[]", "{}", "[1]", '{"arrays": 3}', '{"arrays": [{}]}', "\xff"]
)
def test_descriptions_of_any_content_are_read_or_left(text: str | None) -> None:
    content = None if text is None else text.encode("latin-1")
    assert architecture_differences(content, content) is None or text is None
    found = data_differences(text, text)
    assert found is None or found["num_nodes"] == [0, 0]


def test_param_differences_tell_what_only_one_side_has() -> None:
    assert param_differences({"a": "1", "b": "2"}, {"b": "3"}) == {
        "a": ["1", None],
        "b": ["2", "3"],
    }
    assert param_differences(None, {}) is None
