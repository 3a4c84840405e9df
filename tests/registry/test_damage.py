# SPDX-License-Identifier: Apache-2.0
"""Weights files with one changed bit, or without their end: refused wherever they are used."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from safetensors.numpy import save_file

from fl_registry import ArtifactError, InMemoryModelStore, ModelManager
from fl_registry.files.digests import file_digest
from fl_registry.store import ModelStore

NIGHTLY = settings.get_current_profile_name() == "nightly"
pytestmark = pytest.mark.chaos
FLIPS, CUTS = 1_000, 100


def prepared(store: ModelStore, tmp_path: Path) -> bytes:
    """Put versions 1 and 2 into production, leave 3 new, and return the bytes of each file."""
    for number in (1, 2, 3):
        path = tmp_path / f"{number}.safetensors"
        arrays = np.random.default_rng(number).normal(size=(64, 64)).astype(np.float32)
        save_file({"a": arrays, "n": np.array(number)}, path)
        store.save_model_version(path, metrics={"m": 0.5})
    for version in "12":
        store.promote_to_production(version)
    return store.weights_path("1").read_bytes()


def damages(content: bytes) -> list[bytes]:
    """Return the content with one bit flipped, and cut off, at places all over the file."""
    draw = random.Random(20261123)
    found = []
    for _ in range(FLIPS):
        place = draw.randrange(len(content) * 8)
        changed = bytearray(content)
        changed[place // 8] ^= 1 << place % 8
        found.append(bytes(changed))
    return found + [content[: draw.randrange(len(content))] for _ in range(CUTS)]


def refused(act: Callable[[], object]) -> bool:
    try:
        act()
    except ArtifactError:
        return True
    return False


def used(store: ModelStore) -> list[Callable[[], object]]:
    return [
        lambda: store.weights_path("1"),
        lambda: store.promote_to_production("3"),
        lambda: store.promote_to_staging("3"),
        store.rollback,
        lambda: store.rollback(to="1"),
        lambda: store.promote_to_production("1"),
    ]


def module() -> object:
    raise AssertionError("a damaged file must be found before a module is built")


def check(store: ModelStore, tmp_path: Path, every: int) -> None:
    content = prepared(store, tmp_path)
    paths = {version: store.weights_path(version) for version in "123"}
    before = store.history()
    for damage in damages(content)[::every]:
        for path in paths.values():
            path.write_bytes(damage)
        assert [act for act in used(store) if not refused(act)] == []
        with pytest.raises(ArtifactError):
            store.load_production_model(module)
    assert store.history() == before


def test_every_damage_is_found_before_load_promotion_and_rollback(tmp_path: Path) -> None:
    check(InMemoryModelStore(), tmp_path, 1)


def test_damage_is_found_in_mlflow_too(manager: ModelManager, tmp_path: Path) -> None:
    check(manager, tmp_path, 1 if NIGHTLY else 50)


def test_a_file_is_read_again_only_after_somebody_touched_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, read = InMemoryModelStore(), []
    prepared(store, tmp_path)
    path = store.weights_path("1")
    os.utime(path)
    time.sleep(0.1)  # longer than a tick of the file system's clock
    monkeypatch.setattr(
        "fl_registry.files.digests.file_digest",
        lambda path: read.append(path) or file_digest(path),
    )
    for _ in range(3):
        store.weights_path("1")
    assert read == [path]
    os.utime(path)
    store.weights_path("1")
    assert read == [path, path]
