# SPDX-License-Identifier: Apache-2.0
"""Versions that other tools registered, with what they like in their tags: each fault, by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fl_registry import ArtifactError, InMemoryModelStore, ModelManager, UnknownVersion
from fl_registry.files.artifacts import HALF_FILE

MakeWeights = Callable[[float], Path]
NAME = "fl-global-model"


def foreign(manager: ModelManager, **tags: str) -> str:
    """Register a version as another tool would, beside one of our own."""
    return str(manager.client.create_model_version(NAME, "/elsewhere", tags=tags).version)


@pytest.fixture
def ours(manager: ModelManager, weights: MakeWeights) -> ModelManager:
    manager.promote_to_production(manager.save_model_version(weights(1), metrics={"m": 0.5}))
    return manager


@pytest.mark.parametrize(
    "digest",
    [
        "../../../../escaped",
        "/tmp/escaped",  # noqa: S108
        "0" * 63,
        "A" * 64,
        "0" * 64 + "/../../../escaped",
        "0" * 64 + "\n",
    ],
)
def test_a_digest_that_is_a_path_leads_nowhere(
    ours: ModelManager, monkeypatch: pytest.MonkeyPatch, digest: str
) -> None:
    """The digest names a folder of the cache."""
    model_id = ours.get_version("1").tags["model_id"]
    monkeypatch.setattr("fl_registry.mlflow.files.local_folder", lambda location: None)
    version = foreign(ours, sha256=digest, model_id=model_id, size="1")
    with pytest.raises(ArtifactError, match="has no digest to check"):
        ours.weights_path(version)
    half = json.dumps({"sha256": digest, "size": 1, "changes": {}})
    ours.client.set_model_version_tag(NAME, "1", "half", half)
    with pytest.raises(ArtifactError, match="has no half-precision copy"):
        ours.load_production_model(lambda: None, half=True)
    assert not (ours.backend.connection.home / "cache").exists()


@pytest.mark.parametrize("metrics", ["1" + "0" * 400, '{"m": ' + "9" * 400 + "}", "[" * 5000])
def test_metrics_that_no_float_can_be_break_no_list(ours: ModelManager, metrics: str) -> None:
    foreign(ours, metrics=metrics, size="9" * 400, created="yesterday")
    found, mine = ours.list_all_versions()
    assert (found["metrics"], mine["metrics"]) == ({}, {"m": 0.5})
    assert ours.compare_versions("1", "2")["differences"] == {}


@pytest.mark.parametrize("tag", ["nodes", "half", "per_example"])
def test_tags_that_are_nested_without_end_are_no_answer(ours: ModelManager, tag: str) -> None:
    version = foreign(ours, **{tag: "[" * 5000})
    assert ours.compare_versions("1", version)["data"] is None
    with pytest.raises(ArtifactError):
        ours.compress_version(version)


@pytest.mark.parametrize("version", ["9" * 5000, "9" * 30, "1\n", "¹", "0"])
def test_a_version_that_no_database_has_is_unknown(ours: ModelManager, version: str) -> None:
    if version.strip() == "1":
        assert ours.get_version(version).version == "1"
        return
    with pytest.raises(UnknownVersion) as caught:
        ours.get_version(version)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("model_id", ["../experiments/1", "m-' OR '1'='1", "x", ""])
def test_what_is_no_id_of_a_logged_model_is_not_asked_for(
    ours: ModelManager, model_id: str
) -> None:
    version = foreign(ours, model_id=model_id, sha256="0" * 64)
    with pytest.raises(ArtifactError, match="does not say which logged model"):
        ours.weights_path(version)


def test_a_half_copy_that_cannot_be_replaced_stays(
    weights: MakeWeights, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = InMemoryModelStore()
    store.save_model_version(weights(1))
    store.compress_version("1")
    half = store.backend.files.path(store.get_version("1"), HALF_FILE, "")
    before = half.read_bytes()

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("shutil.copyfileobj", full)
    with pytest.raises(Exception, match="No space left on device"):
        store.compress_version("1")
    assert half.read_bytes() == before
    assert [p.name for p in half.parent.iterdir() if p.name.startswith(".")] == []


def test_a_save_that_fails_leaves_no_files_of_it(
    ours: ModelManager, weights: MakeWeights, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = ours.backend.connection.home
    before = sorted(home.rglob("*.safetensors"))

    def full(source: str, target: Any, **_: Any) -> None:
        Path(target).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("shutil.copy2", full)
    with pytest.raises(Exception, match="No space left on device"):
        ours.save_model_version(weights(2))
    assert sorted(home.rglob("*.safetensors")) == before
    assert len(ours.list_all_versions()) == 1
